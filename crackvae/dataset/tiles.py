"""One listed file to its tile. Jobs do it in a process of its own: `decoder.Decoder`."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b

from crackvae.config import ImageConfig
from crackvae.dataset.sources import Reader
from crackvae.errors import ImageError
from crackvae.images.decode import Gray
from crackvae.images.tile import prepare
from crackvae.schema import Status


def read_tile(
    reader: Reader,
    image: ImageConfig,
    uri: str,
    size: int | None = None,
    content_hash: str | None = None,
    *,
    on_read: Callable[[], object] = lambda: None,
) -> tuple[Gray, float]:
    """Reads and decodes a file.

    Args:
        reader: Keeps archives open between calls.
        image: How a file becomes a tile.
        uri: Of the file.
        size: Bytes that were listed, where known.
        content_hash: `hash_content` of what was listed, where known.
        on_read: Called between reading and decoding.

    Returns:
        tile_SS and darkness.

    Raises:
        ImageError: The file cannot be scored, or it is not the file that was listed.
    """
    data = reader.read(uri, image.max_megabytes * 10**6)
    if size and len(data) != size:  # 0 is what a tar says of a link, and its target is read
        raise ImageError(Status.UNREADABLE, f"changed since it was listed: {len(data):,} bytes, was {size:,}")
    if content_hash and hash_content(data) != content_hash:
        raise ImageError(Status.UNREADABLE, "changed since it was listed: other content")
    on_read()
    return prepare(data, image)


def hash_content(data: bytes) -> str:
    """The manifest's content_hash of a file's bytes."""
    return blake2b(data, digest_size=16).hexdigest()
