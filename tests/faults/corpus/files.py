"""Names, what is no regular file, and what is another file when it is scored."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from faults.corpus.formats import encode
from faults.corpus.kind import GRAY_HW, PNG, Kind, gray, unreadable

NAMES = (
    "new\nline",
    'comma, "quote"',
    "=1+1",
    "@SUM(1)",
    "-rf",
    "'; DROP TABLE x",
    "żółw 🐢",
    "e\u0301 is not é",
    "right\u202eto left",
    "50% #1?x=1&y!",
    "in!",
    "back\\slash",
    "\x1b[31mred",
    "tab\t",
    " space ",
    "a" * 251,
)
OTHER = encode(gray(GRAY_HW[:, ::-1]), "PNG")
CHANGED = "what was listed is not there to be scored"


def _link(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


def _deep(path: Path) -> str:
    """Folders in folders, to beyond the 4,095 bytes that a path may have: not even root lists them."""
    at = os.open(path.parent, os.O_RDONLY)
    for _ in range(20):
        os.mkdir("x" * 250, dir_fd=at)
        below = os.open("x" * 250, os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)
    depth = 1
    while len(os.fsencode(path.parent)) + 251 * depth < 4096:
        depth += 1
    return "deep/" + "/".join(["x" * 250] * depth) + "/"


def _to_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _chmod(mode: int, *, parent: bool) -> Callable[[Path], None]:
    return lambda path: (path.parent if parent else path).chmod(mode)


KINDS = [
    Kind(
        "odd name",
        "kept to the byte; results.csv quotes it, and none is a formula",
        {f"{name}.jpg": PNG for name in NAMES},
    ),
    Kind("name that is not UTF-8", "shown escaped", {os.fsdecode(b"caf\xe9 \xff.jpg"): PNG}),
    Kind("folder named a.jpg", "a folder, whatever its name", {"files/a.jpg/inside.png": PNG}),
    Kind("link to an image", "read", {"files/soft.jpg": _link("../gray.png")}),
    Kind(
        "dangling link",
        "it has no content",
        {"dangling.jpg": _link("nowhere")},
        **unreadable("No such file or directory"),
    ),
    Kind(
        "looping link", "the same", {"loop.jpg": _link("loop.jpg")}, **unreadable("Too many levels of symbolic links")
    ),
    Kind("FIFO", "reading it would wait for ever", {"fifo.jpg": os.mkfifo}, **unreadable("is no regular file")),
    Kind("link to a device", "it never ends", {"device.jpg": _link("/dev/zero")}, **unreadable("is no regular file")),
    Kind(
        "link to a folder",
        "not followed, so that none goes round; and not passed over",
        {"files/link.jpg": _link(".")},
        **unreadable("is no regular file"),
    ),
    Kind(
        "folder that cannot be listed",
        "a row of its own, else what lies in it would vanish",
        {"deep/x": _deep},
        **unreadable("the folder cannot be listed: File name too long"),
    ),
    Kind(
        "gone since it was listed",
        CHANGED,
        {"gone.png": PNG},
        **unreadable("No such file or directory"),
        after=Path.unlink,
    ),
    Kind(
        "a folder since it was listed",
        CHANGED,
        {"replaced.png": PNG},
        **unreadable("is no regular file"),
        after=_to_folder,
    ),
    Kind(
        "grown since it was listed",
        CHANGED,
        {"grown.png": PNG},
        **unreadable("changed since it was listed: [0-9,]+ bytes, was [0-9,]+"),
        after=lambda path: path.write_bytes(PNG + b"x"),
    ),
    Kind(
        "emptied since it was listed",
        CHANGED,
        {"emptied.png": PNG},
        **unreadable("changed since it was listed: 0 bytes, was [0-9,]+"),
        after=lambda path: path.write_bytes(b""),
    ),
    Kind(
        "another image of as many bytes since `crackvae split`",
        CHANGED,
        {"swapped.png": PNG.ljust(len(PNG + OTHER), b"\0")},
        **unreadable("changed since it was listed: other content"),
        after=lambda path: path.write_bytes(OTHER.ljust(len(PNG + OTHER), b"\0")),
    ),
]

# As another user than root, who may read everything.
FORBIDDEN = [
    Kind(
        "no permission to read",
        "another user's file",
        {"secret.png": PNG},
        **unreadable("Permission denied"),
        after=_chmod(0, parent=False),
    ),
    Kind(
        "folder without permission to enter",
        "its files are known by name only",
        {"locked/a.png": PNG},
        **unreadable("Permission denied"),
        after=_chmod(0o444, parent=True),
    ),
    Kind(
        "folder without permission to list",
        "a row of its own, else what lies in it would vanish",
        {"closed/a.png": PNG},
        **unreadable("the folder cannot be listed: Permission denied"),
        after=_chmod(0, parent=True),
        members=("closed/",),
    ),
]
