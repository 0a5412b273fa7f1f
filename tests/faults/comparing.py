"""Compares a run with an undisturbed one, byte by byte and row by row."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from faults.harness import parts

_TIMES = ("created",)  # in run.json
_NOT_RESULTS = (".lock", "figures", "report.html")


@dataclass(frozen=True)
class Difference:
    """What a run has otherwise than the undisturbed one.

    Attributes:
        lost: Rows that are missing.
        double: Rows that are there again.
        different: Rows of another content.
        files: Files that are missing, too many, or of other bytes; run.json's times do not count.
    """

    lost: int = 0
    double: int = 0
    different: int = 0
    files: tuple[str, ...] = ()

    def __add__(self, other: Difference) -> Difference:
        rows = [getattr(self, name) + getattr(other, name) for name in ("lost", "double", "different")]
        return Difference(*rows, (*self.files, *other.files))


def compare(reference: Path, run: Path) -> Difference:
    """Compares a finished run with the undisturbed one."""
    expected, found = _contents(reference), _contents(run)
    files = [name for name in sorted(expected.keys() | found.keys()) if expected.get(name) != found.get(name)]
    return Difference(*_rows(_results(reference), _results(run)), tuple(files))


def torn(reference: Path, run: Path) -> list[str]:
    """Shards' files that are visible and not what they will be at the end."""
    whole = parts(reference)
    return [
        name for name, path in parts(run).items() if name not in whole or path.read_bytes() != whole[name].read_bytes()
    ]


def leftovers(run: Path) -> list[str]:
    """Temporary files that nobody will need."""
    return sorted(str(path.relative_to(run)) for path in run.rglob("*.tmp"))


def missing_pictures(reference: Path, run: Path) -> set[str]:
    return {path.name for path in (reference / "figures").iterdir()} - {p.name for p in run.glob("figures/*.png")}


def _contents(run: Path) -> dict[str, bytes]:
    names = (path.relative_to(run) for path in run.rglob("*") if path.is_file() and path.suffix != ".tmp")
    contents = {str(name): (run / name).read_bytes() for name in names if name.parts[0] not in _NOT_RESULTS}
    header = json.loads(contents["run.json"])
    contents["run.json"] = json.dumps({key: header[key] for key in header if key not in _TIMES}).encode()
    return contents


def _results(run: Path) -> list[dict[str, Any]]:
    tables = [pq.read_table(path) for path in sorted(run.glob("results/*.parquet"))]
    return pa.concat_tables(tables).to_pylist() if tables else []


def _rows(expected: list[dict[str, Any]], found: list[dict[str, Any]]) -> tuple[int, int, int]:
    wanted = {row["image_id"]: row for row in expected}
    times = Counter(row["image_id"] for row in found)
    assert len(wanted) == len(expected), "the undisturbed run has a row twice"
    lost = len(wanted.keys() - times.keys())
    double = sum(count - 1 for count in times.values())
    different = sum(repr(row) != repr(wanted.get(row["image_id"])) for row in found)  # repr: nan equals nan
    return lost, double, different
