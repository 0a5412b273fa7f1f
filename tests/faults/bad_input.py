"""Bad input, strange input, and what each must become: the one table.

`build` writes all of it into a folder, `change` is what happens between index and score, `table`
puts it into Markdown. The kinds are in `corpus/`, written by Pillow, NumPy and struct.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from faults.corpus import archives, bombs, damaged, files, pixels, tiffs
from faults.corpus.kind import Kind

from crackvae.config import ImageConfig

# So that bombs may be small: they are judged by 4 MB and 5 seconds here.
LIMITS = ImageConfig(tile_size=32, max_megabytes=4, max_seconds=5)

FILES = damaged.KINDS + pixels.KINDS + tiffs.KINDS + bombs.KINDS + files.KINDS
KINDS = FILES + archives.KINDS
FORBIDDEN = files.FORBIDDEN
REFUSED = archives.REFUSED


@dataclass(frozen=True)
class Corpus:
    """Files of every kind.

    Attributes:
        sources: What to index.
        ids: The image_ids that rows must have, by kind.
    """

    sources: list[str]
    ids: dict[str, list[str]]


def build(folder: Path) -> Corpus:
    """Writes a file of every kind in a folder, and archives of them in another."""
    ids = {}
    for kind in FILES:
        ids[kind.name] = make(kind, folder / "survey")
    for kind in archives.KINDS:
        make(kind, folder / "archives")
        ids[kind.name] = list(kind.members)
    names = [name for kind in archives.KINDS for name in kind.files]
    return Corpus([str(folder / "survey"), *(str(folder / "archives" / name) for name in names)], ids)


def make(kind: Kind, folder: Path) -> list[str]:
    """Makes the files of a kind, and gives their image_ids."""
    ids = []
    for name, content in kind.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        given = path.write_bytes(content) if isinstance(content, bytes) else content(path)
        shown = os.fsencode(name).decode("utf-8", "backslashreplace")
        ids.append(given if isinstance(given, str) else shown)
    return ids


def change(folder: Path, kinds: Sequence[Kind] = KINDS) -> None:
    """What happens to the files after they were listed."""
    for kind in kinds:
        place = folder / ("archives" if kind in archives.KINDS else "survey")
        for name in kind.files:
            kind.after(place / name)


def table() -> list[str]:
    """The table as lines of Markdown, its header first, a kind a line."""
    lines = ["| file | becomes | message | why |", "| --- | --- | --- | --- |"]
    for kind in [*KINDS, *FORBIDDEN, *REFUSED]:
        becomes = str(kind.status) if kind.status else "refused, exit code 3"
        lines.append(f"| {kind.name} | {becomes} | {_plain(kind.message)} | {kind.why} |")
    return lines


def _plain(message: str) -> str:
    """A regular expression for people."""
    for pattern, text in ((r"\[0-9,?\]\+", "N"), (r"\.[+*]", "..."), (r"\\(.)", r"\1"), (r"\|", " or ")):
        message = re.sub(pattern, text, message)
    return "" if message == "..." else message
