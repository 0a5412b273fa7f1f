"""What a run found, added up per structure and element by patterns on the photographs' names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
from wcmatch import glob

from crackvae import storage
from crackvae.errors import InputError
from crackvae.report import tables
from crackvae.run import finalize
from crackvae.schema import Label, Status

UNMATCHED = "(matched by no pattern)"

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

_GLOB = glob.GLOBSTAR | glob.DOTGLOB | glob.CASE | glob.FORCEUNIX
_COLUMNS = ["image_id", "status", "score", "p_value", "prediction", "judged_fraction"]
_SUMS = ("photographs", "judged", "cannot_judge", "failed", "flagged", "coverage")
_COMBINE = dict.fromkeys(_SUMS, "sum") | {
    "worst_score": "first",  # of rows in falling order; `first` skips nulls
    "worst_image_id": "first",
    "smallest_p_value": "min",
}


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
    text = {name: pa.string() for name in TABLE.names}
    try:
        with storage.open_input(location) as stream:
            found = pyarrow.csv.read_csv(
                stream,
                parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
                convert_options=pyarrow.csv.ConvertOptions(column_types=text),
            )
            found.validate(full=True)
    except (OSError, ValueError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{location}: cannot be read as CSV: {reason}") from error
    for name in TABLE.names:
        if found.schema.names.count(name) != 1:
            columns = ", ".join(map(repr, found.schema.names))
            raise InputError(f"{location}: needs one column {name!r}; found {columns}")
    table = found.select(TABLE.names).combine_chunks()
    if not table.num_rows:
        raise InputError(f"{location}: has no row; give each structure at least one pattern")
    _check(location, table)
    return table


def _check(location: str, table: pa.Table) -> None:
    first: dict[str, int] = {}
    for row, (pattern, structure, _) in enumerate(zip(*table.to_pydict().values(), strict=True), 1):
        for name, value in (("pattern", pattern), ("structure", structure)):
            if not value.strip():
                raise InputError(f"{location}: row {row} has no {name}; fill or remove it")
        if first.setdefault(pattern, row) != row:
            raise InputError(f"{location}: row {row}: pattern {pattern!r} is in row {first[pattern]} already; keep one")


def _matches(pattern: str) -> Callable[[str], re.Match[str] | None]:
    """Whether a name matches a glob: * ? [abc] [!abc] within a folder, ** for any number of folders."""
    (regex,), _ = glob.translate(pattern, flags=_GLOB)
    return re.compile(regex).match


def aggregate(results: Iterable[pa.Table], structures: pa.Table) -> Aggregates:
    """Adds results up per structure and element, in memory that grows with these alone.

    Every photograph counts once. Those that no pattern matches are a row of their own, `UNMATCHED`;
    a structure without any photograph is a row as well.

    Args:
        results: Blocks of rows of `schema.RESULTS`.
        structures: What `read` returns.
    """
    patterns = structures["pattern"].to_pylist()
    matches = [_matches(pattern) for pattern in patterns]

    def first(name: str) -> int:
        return next((index for index, match in enumerate(matches) if match(name)), len(patterns))

    named = list(zip(structures["structure"].to_pylist(), structures["element"].to_pylist(), strict=True))
    places = list(dict.fromkeys([*named, (UNMATCHED, "")]))
    number = {place: index for index, place in enumerate(places)}
    place_P1 = np.array([number[place] for place in [*named, (UNMATCHED, "")]])
    total = _nothing(len(places) - 1)
    busy: set[int] = set()
    for block in results:
        pattern_N = np.fromiter(map(first, block["image_id"].to_pylist()), np.int64, len(block))
        busy |= set(np.unique(pattern_N).tolist())
        total = _add_up(pd.concat([total, _each(block).assign(place=place_P1[pattern_N])]))
    idle = tuple(pattern for index, pattern in enumerate(patterns) if index not in busy)
    return Aggregates(_as_table(total, places), idle)


def _nothing(places: int) -> pd.DataFrame:
    """The row of each structure before the first photograph."""
    empty = {"worst_score": np.float32("nan"), "smallest_p_value": np.nan}
    rows = pd.DataFrame({"place": np.arange(places), **dict.fromkeys(_SUMS, 0), **empty})
    return rows.assign(worst_image_id=pd.Series([None] * places, dtype="str"))


def _each(block: pa.Table) -> pd.DataFrame:
    """The row that a structure with one photograph would have, for each photograph."""
    frame = block.select(_COLUMNS).to_pandas()
    judged = frame["prediction"].notna()
    cannot_judge = ~judged & frame["status"].isin([str(Status.OK), str(Status.CANNOT_JUDGE)])
    failed = ~judged & ~cannot_judge
    return pd.DataFrame(
        {
            "photographs": 1,
            "judged": judged.astype(int),
            "cannot_judge": cannot_judge.astype(int),
            "failed": failed.astype(int),
            "flagged": (frame["prediction"] == str(Label.CRACK)).astype(int),
            "coverage": frame["judged_fraction"].astype(float).fillna(judged.astype(float)).mask(failed, 0.0),
            "worst_score": frame["score"].where(judged),
            "worst_image_id": frame["image_id"].where(judged & frame["score"].notna()),
            "smallest_p_value": frame["p_value"].where(judged),
        }
    )


def _add_up(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per place; of equal scores the earlier counts."""
    falling = rows.sort_values("worst_score", ascending=False, kind="stable")
    return falling.groupby("place", as_index=False).agg(_COMBINE)


def _as_table(total: pd.DataFrame, places: Sequence[tuple[str, str]]) -> pa.Table:
    photographs = total["photographs"].where(total["photographs"] > 0)  # a share of none is null
    total["coverage"] = total["coverage"] / photographs
    total["not_judged_share"] = (1 - total["judged"] / photographs).fillna(1.0)
    total["flagged_share"] = total["flagged"] / total["judged"].where(total["judged"] > 0)
    total["structure"], total["element"] = zip(*(places[place] for place in total["place"]), strict=True)
    total = total.sort_values(
        ["not_judged_share", "flagged_share", "structure", "element"], ascending=[False, False, True, True]
    )
    return pa.Table.from_pandas(total, AGGREGATES, preserve_index=False)


def _cells(structure: str, element: str, **row: float | str | None) -> list[str]:
    def number(name: str, form: str) -> str:
        return "-" if row[name] is None else format(row[name], form)

    counts = [number(name, ",") for name in ("photographs", "judged", "cannot_judge", "failed", "flagged")]
    worst = [number("worst_score", ".4g"), number("worst_image_id", ""), number("smallest_p_value", ".4f")]
    place = f"{structure} {element}".rstrip()
    return [place, *counts, number("flagged_share", ".1%"), *worst, number("coverage", ".1%")]
