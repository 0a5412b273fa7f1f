"""One listed file to its pixels. Jobs do it in a process of its own: `decoder.Decoder`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from typing import Any, TypeVar

from crackvae.config import ImageConfig
from crackvae.dataset.reader import Reader
from crackvae.errors import ImageError
from crackvae.images import ground
from crackvae.images.decode import Decoded, Gray, decode
from crackvae.images.tile import darkness, line_filter, to_tile
from crackvae.schema import Status
from crackvae.terminal import progress

_READERS, _CHUNK = 8, 64  # threads, and files that each takes at a time
_T = TypeVar("_T")


def read_image(
    reader: Reader,
    image: ImageConfig,
    uri: str,
    size: int | None = None,
    content_hash: str | None = None,
    *,
    on_read: Callable[[], object] = lambda: None,
) -> Decoded:
    """Reads and decodes a file; in color where it is to be covered by native tiles.

    Args:
        reader: Keeps archives open between calls.
        image: How a file becomes a tile.
        uri: Of the file.
        size: Bytes that were listed, where known.
        content_hash: `hash_content` of what was listed, where known.
        on_read: Called between reading and decoding.

    Returns:
        As by `decode`.

    Raises:
        ImageError: The file cannot be scored, or it is not the file that was listed.
    """
    data = reader.read(uri, image.max_megabytes * 10**6)
    if size and len(data) != size:  # 0 is what a tar says of a link, and its target is read
        raise ImageError(Status.UNREADABLE, f"changed since it was listed: {len(data):,} bytes, was {size:,}")
    if content_hash and hash_content(data) != content_hash:
        raise ImageError(Status.UNREADABLE, "changed since it was listed: other content")
    on_read()
    color = image.tiling == "native"
    return decode(data, min_side=image.min_side, max_megapixels=image.max_megapixels, color=color)


def describe(decoded: Decoded) -> dict[str, Any]:
    """What the file tells: columns of `schema.PART`."""
    height, width = decoded.gray_HW.shape
    columns = {**vars(decoded.metadata)}  # dataclasses.asdict would copy each value, at a tenth of the decoding
    pitch = ground.sampling_distance(decoded.metadata, width, height)
    if pitch:
        columns |= {"mm_per_pixel": pitch.mm_per_pixel, "mm_per_pixel_error": pitch.relative_error}
    baselines = {"darkness": darkness(decoded.gray_HW), "line_filter": line_filter(decoded.gray_HW)}
    return {**baselines, "width": width, "height": height, **columns}


def pixels(decoded: Decoded, image: ImageConfig) -> list[Gray]:
    """What is scored: the image as one tile_SS, or gray_HW and chroma_hw2 at native resolution."""
    if decoded.chroma_hw2 is None:
        return [to_tile(decoded.gray_HW, image.tile_size)]
    return [decoded.gray_HW, decoded.chroma_hw2]


def hash_content(data: bytes) -> str:
    """The manifest's content_hash of a file's bytes."""
    return blake2b(data, digest_size=16).hexdigest()


def hash_files(uris: Sequence[str], max_bytes: int) -> list[str | None]:
    """`hash_content` of files, None where one cannot be read."""

    def hashed(reader: Reader, uri: str) -> str | None:
        try:
            return hash_content(reader.read(uri, max_bytes))
        except ImageError:
            return None

    return list(of_each(hashed, uris, _READERS, "files"))


def of_each(act: Callable[[Reader, Any], _T], files: Sequence[Any], threads: int, unit: str) -> Iterator[_T]:
    """What `act` makes of each file. A thread takes neighbours: an archive is read mostly in its order."""
    local = threading.local()

    def read(start: int) -> list[_T]:
        if not hasattr(local, "reader"):
            local.reader = Reader()
        return [act(local.reader, file) for file in files[start : start + _CHUNK]]

    with ThreadPoolExecutor(threads) as pool, progress("reading", len(files), unit) as advance:
        for made in pool.map(read, range(0, len(files), _CHUNK)):
            advance(len(made))
            yield from made
