"""What a run found, added up per structure and element by patterns on the photographs' names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from wcmatch import glob

from crackvae import storage
from crackvae.dataset import table_files
from crackvae.errors import InputError
from crackvae.report import tables
from crackvae.run import finalize
from crackvae.schema import Label, Status

UNMATCHED = "(matched by no pattern)"
NO_FOLDER = "(in no folder)"

TABLE = pa.schema([(name, pa.string()) for name in ("pattern", "structure", "element")])
"""A table of structures; element is empty where a structure is one piece."""

AGGREGATES = pa.schema(
    [
        pa.field("structure", pa.string(), nullable=False),
        pa.field("element", pa.string(), nullable=False),
        pa.field("photographs", pa.int64()),
        pa.field("judged", pa.int64()),  # have a prediction
        pa.field("cannot_judge", pa.int64()),
        pa.field("failed", pa.int64()),  # every other status: photographs = judged + cannot_judge + failed
        pa.field("not_judged_share", pa.float64()),  # of the photographs; 1 where there is none
        pa.field("flagged", pa.int64()),
        pa.field("flagged_share", pa.float64()),  # of those judged
        pa.field("worst_score", pa.float32()),
        pa.field("worst_image_id", pa.string()),
        pa.field("smallest_p_value", pa.float64()),
        pa.field("coverage", pa.float64()),  # mean judged_fraction of all photographs, 0 for those without
    ]
)
"""One row per structure and element."""

COLUMNS = ["image_id", "status", "score", "p_value", "prediction", "judged_fraction"]
"""Of `schema.RESULTS`, what is added up."""

_GLOB = glob.GLOBSTAR | glob.DOTGLOB | glob.CASE | glob.FORCEUNIX
_PLACE = ["structure", "element"]
_NOWHERE = pd.DataFrame({"structure": [UNMATCHED], "element": [""]})
_COUNTS = ["photographs", "judged", "cannot_judge", "failed", "flagged"]


@dataclass(frozen=True)
class Aggregates:
    """What a run found.

    Attributes:
        table: `AGGREGATES`, ordered so that what was judged least comes first: by the share that was
            not judged, then by the share flagged, both falling; then by name.
        idle: Patterns that no photograph went to: nothing has such a name, or earlier patterns took it.
    """

    table: pa.Table
    idle: tuple[str, ...]

    def write_csv(self, location: str) -> None:
        """Writes the table as CSV; text that a spreadsheet would run gets an apostrophe in front."""
        storage.write_bytes(location, finalize.csv_bytes(self.table, header=True))

    def text(self) -> str:
        """A Markdown table for the terminal, and a line for each idle pattern."""
        header = ["structure", "photographs", "judged", "cannot judge", "failed", "flagged", "of judged"]
        header += ["worst score", "in", "smallest p", "coverage"]
        lines = [tables.markdown(header, [_cells(**row) for row in self.table.to_pylist()])]
        lines += [f"warning: no photograph went to the pattern {pattern}" for pattern in self.idle]
        return "\n".join(lines)


def read(location: str) -> pa.Table:
    """Reads a CSV with the columns pattern, structure and element (which may be empty); others are ignored.

    A pattern is a glob on image_id, such as bridge-17/**. Of those that match a photograph,
    the first in the table counts.

    Returns:
        `TABLE`, in the file's order.

    Raises:
        InputError: The file cannot be read, lacks a column or a value, or has a pattern twice.
    """
    found = table_files.read_csv(location, TABLE.names)
    table_files.check_columns(found, TABLE.names, location)
    table = pa.table([found[name].fill_null("") for name in TABLE.names], schema=TABLE)
    if not table.num_rows:
        raise InputError(f"{location}: has no row; give each structure at least one pattern")
    first: dict[str, int] = {}
    for row, (pattern, structure, _) in enumerate(zip(*table.to_pydict().values(), strict=True), 1):
        for name, value in (("pattern", pattern), ("structure", structure)):
            if not value.strip():
                raise InputError(f"{location}: row {row} has no {name}; fill or remove it")
        if first.setdefault(pattern, row) != row:
            raise InputError(f"{location}: row {row}: pattern {pattern!r} is in row {first[pattern]} already; keep one")
    return table


def _matches(pattern: str) -> Callable[[str], re.Match[str] | None]:
    """Whether a name matches a glob: * ? [abc] [!abc] within a folder, ** for any number of folders."""
    (regex,), _ = glob.translate(pattern, flags=_GLOB)
    return re.compile(regex).match


def aggregate(results: Iterable[pa.Table], structures: pa.Table | None) -> Aggregates:
    """Adds results up per structure and element.

    Every photograph counts once. Those that no pattern matches are a row of their own, `UNMATCHED`;
    a structure without any photograph is a row as well.

    Args:
        results: Blocks of rows of results, at least `COLUMNS`; one is held in memory at a time.
        structures: What `read` returns; None takes folders for structures.
    """
    total, idle = pd.DataFrame(), () if structures is None else tuple(structures["pattern"].to_pylist())
    for block in results:
        photographs = block.select(COLUMNS).to_pandas()
        photographs[_PLACE], unused = assign(photographs["image_id"].tolist(), structures)
        idle = tuple(pattern for pattern in idle if pattern in unused)
        total = _added_up(pd.concat([total, _each(photographs)]))
    total = total.set_index(_PLACE)
    total["coverage"] /= total["photographs"]
    if structures is not None:
        known = structures.select(_PLACE).to_pandas()
        total = total.reindex(total.index.union(pd.MultiIndex.from_frame(known.drop_duplicates())))
        total[_COUNTS] = total[_COUNTS].fillna(0)
    total["not_judged_share"] = (1 - total["judged"] / total["photographs"]).fillna(1.0)
    total["flagged_share"] = total["flagged"] / total["judged"]
    total = total.reset_index().sort_values(
        ["not_judged_share", "flagged_share", *_PLACE], ascending=[False, False, True, True]
    )
    return Aggregates(pa.Table.from_pandas(total, AGGREGATES, preserve_index=False), idle)


def assign(image_ids: Sequence[str], structures: pa.Table | None) -> tuple[NDArray[np.object_], tuple[str, ...]]:
    """Where each photograph belongs.

    Args:
        image_ids: Of the photographs.
        structures: As for `aggregate`.

    Returns:
        place_N2, structure and element of each; and the patterns that no photograph went to.
    """
    if structures is None:
        place_N2 = np.full((len(image_ids), 2), "", object)
        place_N2[:, 0] = [name.rpartition("/")[0] or NO_FOLDER for name in image_ids]
        return place_N2, ()
    patterns = structures["pattern"].to_pylist()
    matches = [_matches(pattern) for pattern in patterns]

    def first(name: str) -> int:
        return next((index for index, match in enumerate(matches) if match(name)), len(patterns))

    pattern_N = np.array([first(name) for name in image_ids], np.int64)
    busy = set(pattern_N.tolist())
    idle = tuple(pattern for index, pattern in enumerate(patterns) if index not in busy)
    return pd.concat([structures.select(_PLACE).to_pandas(), _NOWHERE]).to_numpy(object)[pattern_N], idle


def _each(photographs: pd.DataFrame) -> pd.DataFrame:
    """What each adds to the row of its place."""
    judged = photographs["prediction"].notna()
    cannot_judge = ~judged & photographs["status"].isin([str(Status.OK), str(Status.CANNOT_JUDGE)])
    failed = ~judged & ~cannot_judge
    scored = photographs["score"].where(judged)
    return photographs[_PLACE].assign(
        photographs=1,
        judged=judged,
        cannot_judge=cannot_judge,
        failed=failed,
        flagged=photographs["prediction"] == str(Label.CRACK),
        coverage=photographs["judged_fraction"].astype(float).fillna(judged.astype(float)).mask(failed, 0.0),
        worst_score=scored,
        worst_image_id=photographs["image_id"].where(scored.notna()),
        smallest_p_value=photographs["p_value"].where(judged),
    )


def _added_up(rows: pd.DataFrame) -> pd.DataFrame:
    """One row for each place; `coverage` is a sum."""
    places = rows.sort_values("worst_score", ascending=False, kind="stable").groupby(_PLACE)
    how = dict.fromkeys([*_COUNTS, "coverage"], "sum") | dict.fromkeys(["worst_score", "worst_image_id"], "first")
    return places.agg(how | {"smallest_p_value": "min"}).reset_index()  # the first that is not null


def _cells(structure: str, element: str, **row: float | str | None) -> list[str]:
    def number(name: str, form: str) -> str:
        return "-" if row[name] is None else format(row[name], form)

    counts = [number(name, ",") for name in _COUNTS]
    worst = [number("worst_score", ".4g"), number("worst_image_id", ""), number("smallest_p_value", ".4f")]
    place = f"{structure} {element}".rstrip()
    return [place, *counts, number("flagged_share", ".1%"), *worst, number("coverage", ".1%")]
