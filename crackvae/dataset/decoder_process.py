"""The child of a `decoder.Decoder`: ``python -m crackvae.dataset.decoder_process SOCKET LIFELINE``.

It answers each file of a list with a line of JSON and, where the file is ok, its pixels; so many answers at a time as
the list asks for.
"""

from __future__ import annotations

import fcntl
import json
import os
import resource
import select
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path

import cv2

from crackvae.config import ImageConfig
from crackvae.dataset.reader import Reader
from crackvae.dataset.tiles import describe, pixels, read_image
from crackvae.errors import ImageError, UnavailableError
from crackvae.schema import Status

READY = b"ready"
File = tuple[str, int | None, str | None]  # uri, size, content_hash
_REQUEST_BYTES = 2**32
_encode = json.JSONEncoder(default=str).encode  # json.dumps makes an encoder each time


def send(channel: socket.socket, *messages: bytes) -> None:
    """Sends messages, in one step: each step wakes the other side up."""
    channel.sendall(b"".join(len(message).to_bytes(4, "big") + message for message in messages))


def receive(channel: socket.socket, most: int) -> bytearray:
    """Waits for a message.

    Raises:
        EOFError: The other side is gone. OSError as by the socket: TimeoutError if it has a timeout.
        ValueError: The message has more than `most` bytes.
    """
    size = int.from_bytes(_take(channel, 4), "big")
    if size > most:
        raise ValueError(size)
    return _take(channel, size)


def _take(channel: socket.socket, size: int) -> bytearray:
    data = bytearray(size)
    left = memoryview(data)
    while left:
        received = channel.recv_into(left)
        if not received:
            raise EOFError
        left = left[received:]
    return data


def main() -> None:
    """Reads and decodes what the parent lists, until the parent is gone."""
    channel, lifeline = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])
    for number in (signal.SIGALRM, signal.SIGIO):
        signal.signal(number, signal.SIG_DFL)  # each ends the process, whatever it is doing
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    _hold(lifeline)
    with suppress(EOFError, ConnectionError):
        image = ImageConfig.model_validate_json(receive(channel, _REQUEST_BYTES))
        memory = _limit_memory(image)
        cv2.setNumThreads(1)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff prints its warnings
        send(channel, READY)
        with Reader() as reader:
            while True:
                files, together, ahead = json.loads(receive(channel, _REQUEST_BYTES))
                reader.expect((uri, size) for uri, size, _ in files if ahead)
                for start in range(0, len(files), together):
                    answers = [_answer(file, reader, image, memory) for file in files[start : start + together]]
                    send(channel, *answers)


def _hold(lifeline: int) -> None:
    """Has the kernel end this process when the parent no longer holds the other end.

    A decoder that is stuck does not see the channel close. PR_SET_PDEATHSIG would be the end of the
    thread that started this process, and Ray's threads come and go.
    """
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, os.O_ASYNC)  # SIGIO
    if select.select([lifeline], [], [], 0)[0]:  # it was let go before
        sys.exit()


def _limit_memory(image: ImageConfig) -> int:
    """Limits the address space to what the largest file may need; returns the limit in bytes.

    JPEG 2000 takes 25 bytes a pixel, WebP 16, CMYK JPEG 12, the rest 9 or less, and a file is held
    up to three times. Libraries take 0.7 GB, threads that read ahead as much, an archive's list some
    2 kB a member.
    """
    limit = 4 * 2**30 + 3 * image.max_megabytes * 10**6 + 25 * image.max_megapixels * 10**6
    limit = min([limit, *(given for given in resource.getrlimit(resource.RLIMIT_AS) if given >= 0)])
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError):  # where the machine has less, the kernel had better choose this process
        Path("/proc/self/oom_score_adj").write_text("1000")
    return limit


def _answer(file: File, reader: Reader, image: ImageConfig, memory: int) -> bytes:
    try:
        decoded = read_image(reader, image, *file, on_read=lambda: signal.alarm(image.max_seconds))
        header, arrays = describe(decoded), pixels(decoded, image)
    except UnavailableError as error:
        return json.dumps({"unavailable": str(error)}).encode()
    except Exception as error:
        if isinstance(error, MemoryError) or isinstance(error.__cause__, MemoryError):
            error = ImageError(Status.CRASHED, f"needs more than {memory / 1e9:.1f} GB of memory")
        elif not isinstance(error, ImageError):  # a defect of ours, or of a library
            error = ImageError(Status.CRASHED, f"{type(error).__name__}: {error}")
        return json.dumps({"status": error.status, "message": error.message}).encode()
    finally:
        signal.alarm(0)
    header = {name: value for name, value in header.items() if value is not None}
    header |= {"status": Status.OK, "shapes": [array.shape for array in arrays]}
    return _encode(header).encode() + b"\n" + b"".join(array.tobytes() for array in arrays)


if __name__ == "__main__":
    main()
