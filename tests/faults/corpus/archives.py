"""Archives, their members, and sources that are refused as a whole."""

from __future__ import annotations

import gzip
import io
import os
import struct
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

from faults.corpus.kind import PNG, Kind, too_large, unreadable

BOMB = PNG + bytes(8_000_000)
OUTSIDE = {"../../outside.png": PNG, "/etc/absolute.png": PNG, "a/../../dots.png": PNG, "./b//slashes.png": PNG}
INSIDE = ("outside.png", "etc/absolute.png", "dots.png", "b/slashes.png")


def _zip(members: Mapping[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return stream.getvalue()


def _tar(members: Mapping[str, bytes | tuple[bytes, str]]) -> bytes:
    """A tar of files, and of links and the like: their type and target."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            if isinstance(data, bytes):
                member.size = len(data)
            else:
                member.type, member.linkname = data
            archive.addfile(member, io.BytesIO(data) if isinstance(data, bytes) else None)
    return stream.getvalue()


def _patched(name: str, local: int, central: int, value: bytes) -> bytes:
    """A zip of one member, with a field of both its headers changed."""
    data = bytearray(_zip({name: PNG}))
    for signature, offset in ((b"PK\3\4", local), (b"PK\1\2", central)):
        start = data.index(signature) + offset
        data[start : start + len(value)] = value
    return bytes(data)


def _backwards() -> bytes:
    """A tar whose second member has a size of -512 bytes: its end is its own header."""
    data = bytearray(_tar({"a.png": b"", "b.png": b""}))
    header = data[512:1024]
    header[124:136] = b"\xff" + (2**88 - 512).to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    data[512:1024] = header
    return bytes(data)


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _table(row: str) -> Callable[[Path], int]:
    return lambda path: path.write_text(f"uri\n{row}\n")


def _gzipped(members: Mapping[str, bytes]) -> bytes:
    return gzip.compress(_tar(members))


READ = {
    "a.zip": _zip({"in-zip.png": PNG}),
    "a.tar": _tar({"in-tar.png": PNG}),
    "a.tar.gz": _gzipped({"in-tar-gz.png": PNG}),
    "really-a-tar.tgz": _tar({"in-tgz.png": PNG}),
}
LINKS = _tar({"first.png": PNG, "second.png": (tarfile.SYMTYPE, "first.png")})
LEAVING = _tar({"up.png": (tarfile.SYMTYPE, "../survey/gray.png"), "root.png": (tarfile.LNKTYPE, "/etc/passwd")})
LONGER = _patched("longer.png", 18, 20, struct.pack("<II", 2**31, 2**31))

KINDS = [
    Kind(
        "zip, tar, tar.gz, and a wrong suffix of theirs",
        "read in place",
        READ,
        members=("in-zip.png", "in-tar.png", "in-tar-gz.png", "in-tgz.png"),
    ),
    Kind(
        "member named ../x or /x",
        "nothing is unpacked, and its image_id does not lead out",
        {"outside.zip": _zip(OUTSIDE), "outside.tar": _tar({"../../tar/up.png": PNG})},
        members=(*INSIDE, "tar/up.png"),
    ),
    Kind(
        "name in a tar that is not UTF-8",
        "shown escaped",
        {"bytes.tar": _tar({os.fsdecode(b"\xff.png"): PNG})},
        members=(r"\xff.png",),
    ),
    Kind("link to a member of its tar", "read", {"link.tar": LINKS}, members=("first.png", "second.png")),
    Kind(
        "link out of its tar",
        "never followed",
        {"leaving.tar": LEAVING},
        **unreadable("the archive has no such member"),
        members=("up.png", "root.png"),
    ),
    Kind(
        "looping link in a tar",
        "it has no content",
        {"loop.tar": _tar({"round.png": (tarfile.SYMTYPE, "round.png")})},
        **unreadable("a link that leads to itself"),
        members=("round.png",),
    ),
    Kind(
        "FIFO in a tar",
        "it has no content",
        {"fifo.tar": _tar({"pipe.png": (tarfile.FIFOTYPE, "")})},
        **unreadable("is no regular file"),
        members=("pipe.png",),
    ),
    Kind(
        "member that is a bomb",
        "unpacked up to the limit and no further",
        {"bomb.zip": _zip({"zip-bomb.png": BOMB}), "bomb.tar.gz": _gzipped({"tar-bomb.png": BOMB})},
        **too_large("over [0-9,]+ bytes"),
        members=("zip-bomb.png", "tar-bomb.png"),
    ),
    Kind(
        "encrypted member",
        "there is no password",
        {"encrypted.zip": _patched("encrypted.png", 6, 8, b"\1")},
        **unreadable(".+encrypted.+"),
        members=("encrypted.png",),
    ),
    Kind(
        "member with a wrong checksum",
        "it is not what was packed",
        {"crc.zip": _patched("crc.png", 14, 16, b"abcd")},
        **unreadable("BadZipFile: Bad CRC-32.+"),
        members=("crc.png",),
    ),
    Kind(
        "unknown compression in a zip",
        "Python does not know it",
        {"method.zip": _patched("method.png", 8, 10, b"c\0")},
        **unreadable("NotImplementedError: That compression method is not supported"),
        members=("method.png",),
    ),
    Kind(
        "member that claims to be longer",
        "it is not what its archive lists",
        {"longer.zip": LONGER},
        **unreadable("changed since it was listed: [0-9,]+ bytes, was 2,147,483,648"),
        members=("longer.png",),
    ),
    Kind(
        "archive gone since it was listed",
        "its members are not there to be scored",
        {"gone.zip": _zip({"in-gone.png": PNG})},
        **unreadable("No such file or directory"),
        members=("in-gone.png",),
        after=Path.unlink,
    ),
    Kind(
        "archive cut since it was listed",
        "none of it can be trusted",
        {"cut.zip": _zip({"in-cut.png": PNG}), "cut.tar.gz": _gzipped({"in-cut-gz.png": PNG})},
        **unreadable("BadZipFile.+|ReadError.+|EOFError.+"),
        members=("in-cut.png", "in-cut-gz.png"),
        after=_cut,
    ),
]

TEXT = b"no archive, but a text\n" * 99
CUT = {
    "cut.zip": _zip({"a.png": PNG})[:-30],
    "cut.tar": _tar({"a.png": PNG})[:1000],
    "cut.tgz": _gzipped({"a.png": PNG})[:1000],
}
SECRETS = {
    "key.csv": _table("s3://user:hunter2@bucket/a.png"),
    "slash.csv": _table("s3://user:hun/ter2@bucket/a.png"),
    "query.csv": _table("s3://bucket/a.png?secret_key=hunter2"),
}
NO_ARCHIVE = "cannot be read as an archive: "


def _refused(name: str, why: str, files: Mapping[str, bytes | Callable[[Path], object]], message: str) -> Kind:
    return Kind(name, why, files, None, message)


REFUSED = [
    _refused(
        "text named .zip, .tar or .tar.gz",
        "nothing of it can be listed",
        {f"text{suffix}": TEXT for suffix in (".zip", ".tar", ".tar.gz")},
        NO_ARCHIVE,
    ),
    _refused("cut archive", "what it lost cannot be listed", CUT, NO_ARCHIVE),
    _refused(
        "tar that leads back to itself",
        "its list would never end (CVE-2025-8194)",
        {"backwards.tar": _backwards()},
        NO_ARCHIVE + "negative size",
    ),
    _refused(
        "folder without an image", "probably the wrong one", {"empty": Path.mkdir}, "no image; found no file at all"
    ),
    _refused(
        "table with a path out of its folder",
        "a table from elsewhere could name any file",
        {"up.csv": _table("../secret.png")},
        "row 1: '../secret.png' leaves the table's folder; give a full path or URI",
    ),
    _refused("URI with a password or key", "a run would keep it", SECRETS, "row 1: holds a password or key"),
    _refused(
        "URI that is none",
        "it could mean anything",
        {"uri.csv": _table("s3://[bucket/a.png")},
        "row 1: is no valid URI",
    ),
]
