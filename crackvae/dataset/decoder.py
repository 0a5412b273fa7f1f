"""Files to pixels in a process of its own: a file that ends a decoder ends nothing else.

A decoder is C code that meets bytes from anywhere. It may crash, ask for any amount of memory, or
never come to an end. The child answers a few small files at a time, for each answer wakes this
process up. Where it dies or overruns its time, another child is asked for the same files one by one,
so that the file at which that happens is known.

Hostile bytes may have taken the child over: its answers are JSON and gray levels, are checked, and
nothing is ever unpickled. A small file costs 0.11 ms more than it does in this process; answered one
by one, 0.18 ms (`make bench` on an Intel Xeon, 2026-11-27).
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from math import isnan
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from crackvae.config import ImageConfig
from crackvae.dataset import decoder_process
from crackvae.dataset.decoder_process import READY, File, receive, send
from crackvae.errors import CrackvaeError, ImageError, UnavailableError
from crackvae.images.decode import Gray
from crackvae.schema import BASELINES, PART, Status

_START_SECONDS = 60  # it takes a third of a second
_GRACE_SECONDS = 5  # to a decoder that is stuck asleep: its own alarm ends it before we do
_EXIT_SECONDS = 5  # a process in an uninterruptible read heeds not even SIGKILL
# Of CPU, while it waits; a read that S3 does not answer takes 0.02. Sixteen at once look busy, and end by themselves.
_IDLE_SECONDS = 0.05
_TOGETHER = 8  # answers: with their tiles they fill two thirds of the socket's buffer
_ANSWER_BYTES = 2**16  # at most, besides the pixels
_NONSENSE = "the decoder's answer makes no sense"
# What a file tells of itself.
_TOLD = {f.name: f.type for f in list(PART)[PART.names.index(BASELINES[0]) : PART.names.index("tiles")]}
_FLOAT32, _INT32 = pa.float32().id, pa.int32().id
_FLOAT32_MAX = float(np.finfo(np.float32).max)
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

_Process = subprocess.Popen[bytes]
Row = dict[str, Any]


class _Child(NamedTuple):
    process: _Process
    channel: socket.socket
    lifeline: socket.socket


class Decoder:
    """Reads and decodes files in a child process, which the first of them starts.

    A file at which the child dies, runs out of memory or of time is tried once more in a fresh
    one. For one thread at a time.

    Args:
        image: How a file becomes a tile, and the limits.
    """

    def __init__(self, image: ImageConfig) -> None:
        self._image = image
        self.tile_size = image.tile_size
        self._child: _Child | None = None

    def read(self, files: pa.Table) -> tuple[NDArray[np.uint8], pa.Table]:
        """Reads and decodes files, each to one tile. Takes and raises what `photographs` does.

        Returns:
            tiles_NSS with zeros in the place of a file that failed, and a table of `schema.PART`
            without scores.
        """
        tiles_NSS = np.zeros((files.num_rows, self._image.tile_size, self._image.tile_size), np.uint8)
        rows = []
        for tile_SS, (row, arrays) in zip(tiles_NSS, self.photographs(files), strict=True):
            rows.append(row)
            if arrays:
                tile_SS[:] = arrays[0]
        return tiles_NSS, pa.Table.from_pylist(rows, PART)

    def photographs(self, files: pa.Table) -> Iterator[tuple[Row, list[Gray]]]:
        """Reads and decodes files, one ahead of the caller.

        Args:
            files: Column uri, and where there are any: image_id, and size and content_hash, by
                which a file that has changed since it was listed is `unreadable`.

        Yields:
            Of each file, columns of `schema.PART` and what `tiles.pixels` makes of it; nothing of
            one that failed. image_id is the URI where `files` has none.

        Raises:
            CrackvaeError: The child does not start.
            UnavailableError: An object store gave no answer.
        """
        names, unknown = set(files.column_names), [None] * files.num_rows
        size, content_hash = (files[c].to_pylist() if c in names else unknown for c in ("size", "content_hash"))
        wanted = list(zip(files["uri"].to_pylist(), size, content_hash, strict=True))
        image_id = files["image_id" if "image_id" in names else "uri"].to_pylist()
        try:
            for name, (row, arrays) in zip(image_id, self._rows(wanted), strict=True):
                yield {"image_id": name, **row}, arrays
        except BaseException:  # interrupted, it would answer the next list with the rest of this one
            self.close()
            raise

    def close(self) -> None:
        """Ends the child, at once. The next `read` starts another."""
        if self._child is not None:
            (process, channel, lifeline), self._child = self._child, None
            process.kill()
            channel.close()
            lifeline.close()
            with suppress(subprocess.TimeoutExpired):
                process.wait(_EXIT_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _rows(self, wanted: Sequence[File]) -> Iterator[tuple[Row, list[Gray]]]:
        together = 1 if self._image.tiling == "native" else _TOGETHER
        done, suspects = 0, 0  # files of which one has ended a child
        ahead = True
        while done < len(wanted):
            asked = wanted[done : done + suspects] if suspects else wanted[done:]
            try:
                for answer in self._answers(asked, 1 if suspects else together, ahead):
                    done, suspects = done + 1, max(0, suspects - 1)
                    yield answer
            except ImageError as error:
                self.close()
                ahead = False  # it may have been a later file, on a share that hangs
                if suspects:
                    done += 1
                    yield {"status": str(error.status), "message": error.message}, []
                suspects = 0 if suspects else together

    def _answers(self, wanted: Sequence[File], together: int, ahead: bool) -> Iterator[tuple[Row, list[Gray]]]:
        """Row and pixels of each file; ImageError where the child ends, at one of the next `together`.

        With `ahead` the child begins to read a file while it decodes those before.
        """
        if self._child is not None and self._child.process.poll() is not None:  # it was killed while idle
            self.close()
        if self._child is None:
            self._child = _start(self._image)
        process, channel, _ = self._child
        with suppress(OSError):  # it has just died: the missing answer will say so
            send(channel, json.dumps([wanted, together, ahead]).encode())
        for _ in wanted:
            yield _checked(_answer(process, channel, self._image), self._image)


def _start(image: ImageConfig) -> _Child:
    (channel, theirs), (lifeline, held) = socket.socketpair(), socket.socketpair()
    fds = [theirs.fileno(), held.fileno()]
    with theirs, held:
        process = subprocess.Popen(
            # -P: this may be a folder of images from anywhere, with a numpy.py in it.
            [sys.executable, "-P", "-m", decoder_process.__name__, *map(str, fds)],
            pass_fds=fds,
            process_group=0,  # Ctrl-C is for the parent to decide on
            env=os.environ | _ONE_THREAD,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
    try:
        channel.settimeout(_START_SECONDS)
        send(channel, image.model_dump_json().encode())
        if receive(channel, _ANSWER_BYTES) == READY:
            channel.settimeout(image.max_seconds + _GRACE_SECONDS)
            return _Child(process, channel, lifeline)
        reason = _NONSENSE
    except TimeoutError:
        reason = f"no answer in {_START_SECONDS} s"
    except (EOFError, OSError, ValueError):
        reason = _ending(process, image)
    process.kill()
    raise CrackvaeError(f"the decoder does not start: {reason}; see standard error, in Ray the worker's log")


def _answer(process: _Process, channel: socket.socket, image: ImageConfig) -> bytearray:
    """The next answer. A read may take as long as it is at work, as in a large .tar.gz."""
    most = _ANSWER_BYTES + (image.max_megapixels * 1_100_000 if image.tiling == "native" else image.tile_size**2)
    try:
        worked = _cpu_seconds(process)
        while True:
            try:
                return receive(channel, most)
            except TimeoutError:
                before, worked = worked, _cpu_seconds(process)
                if worked - before < _IDLE_SECONDS:
                    raise ImageError(Status.UNREADABLE, f"no answer in {image.max_seconds} s") from None
    except (EOFError, OSError):
        raise ImageError(Status.CRASHED, _ending(process, image)) from None
    except ValueError:
        raise ImageError(Status.CRASHED, _NONSENSE) from None


def _cpu_seconds(process: _Process) -> float:
    return time.clock_gettime(~process.pid << 3 | 2)  # clock_getcpuclockid(3), which Python lacks


def _ending(process: _Process, image: ImageConfig) -> str:
    try:
        code = process.wait(_EXIT_SECONDS)
    except subprocess.TimeoutExpired:
        return "the decoder hung up"
    if code == -signal.SIGALRM:
        return f"took over {image.max_seconds} s"
    if code >= 0:
        return f"the decoder ended with exit code {code}"
    return "the decoder was ended by " + next((s.name for s in signal.Signals if s == -code), f"signal {-code}")


def _checked(answer: bytearray, image: ImageConfig) -> tuple[Row, list[Gray]]:
    try:
        end = answer.find(b"\n")
        row = json.loads(answer if end < 0 else answer[:end])
        if "unavailable" in row:
            raise UnavailableError(" ".join(row["unavailable"].split()))
        status = Status(row["status"])
        if status == Status.OK:
            return _typed(row), _arrays(memoryview(answer)[end + 1 :], row, image)
        message = row["message"].encode(errors="backslashreplace").decode()
    except UnavailableError:
        raise
    except Exception:  # whatever hostile bytes lead to
        raise ImageError(Status.CRASHED, _NONSENSE) from None
    if status == Status.CRASHED:
        raise ImageError(status, message)
    return {"status": str(status), "message": message}, []


def _typed(row: Row) -> Row:
    """The columns of `schema.PART` in it, as they will be written."""
    row = {name: row[name] for name in _TOLD if row.get(name) is not None}
    is_nan = any(isinstance(value, float) and isnan(value) for value in row.values())
    if is_nan or not {*BASELINES, "width", "height"} <= row.keys():
        raise ValueError(row)
    if "taken" in row:
        row["taken"] = datetime.fromisoformat(row["taken"])
    return {"status": str(Status.OK)} | {name: _as_written(value, _TOLD[name]) for name, value in row.items()}


def _as_written(value: Any, kind: pa.DataType) -> Any:
    """A value as a column of that type gives it back. What every file has is quick: pa.scalar takes 7 microseconds."""
    if type(value) is float and kind.id == _FLOAT32 and abs(value) < _FLOAT32_MAX:
        return float(np.float32(value))
    if type(value) is int and kind.id == _INT32 and -(2**31) <= value < 2**31:
        return value
    return pa.scalar(value, kind).as_py()


def _arrays(data: memoryview, row: Row, image: ImageConfig) -> list[Gray]:
    if image.tiling != "native":
        side = image.tile_size
        return [np.frombuffer(data, np.uint8).reshape(side, side)]
    height, width, (h, w, _) = row["height"], row["width"], row["shapes"][1]
    gray_HW, chroma_hw2 = (np.frombuffer(part, np.uint8) for part in (data[: height * width], data[height * width :]))
    return [gray_HW.reshape(height, width), chroma_hw2.reshape(h, w, 2)]
