"""Two surveys of the same structures side by side: where to look again, not what has grown."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from crackvae import storage
from crackvae.errors import InputError, RefusedError
from crackvae.report import nearest, tables
from crackvae.report.nearest import POSITION, Indices, Places
from crackvae.run import directory, finalize, judge
from crackvae.run.directory import Run
from crackvae.schema import RESULTS, Label

PARQUET, CSV = "compare.parquet", "compare.csv"


class Change(StrEnum):
    """What became of a photograph between two runs, in the order of the rows."""

    RISEN = "risen"  # normal in the old run, crack in the new one
    NEW = "new"  # the old run has none that matches
    NOT_COMPARABLE = "not_comparable"  # one of both has no prediction, or it has no position to match by
    GONE = "gone"  # the new run has none that matches
    FALLEN = "fallen"  # crack in the old run, normal in the new one
    SAME = "same"  # the same prediction in both


_SIDES = ("image_id", "status", "score", "p_value", "prediction")
COMPARISON = pa.schema(
    [
        *(pa.field(f"{name}_{side}", RESULTS.field(name).type) for name in _SIDES[:1] for side in ("old", "new")),
        pa.field("distance_m", pa.float64()),  # great-circle, where both have a position
        *(pa.field(f"{name}_{side}", RESULTS.field(name).type) for name in _SIDES[1:] for side in ("old", "new")),
        pa.field("score_change", pa.float32()),  # new - old, null where the scores are of different scales
        pa.field("change", pa.string(), nullable=False),  # Change
    ]
)
"""One row per pair of photographs, or photograph without a partner."""

_CSV_ROWS = 2**18  # written at a time
_TOP = 10


@dataclass(frozen=True)
class Comparison:
    """What was found.

    Attributes:
        counts: Rows by `Change`.
        risen: The first rows of what has risen, as dicts of `COMPARISON`.
        unplaced: Photographs of the old and of the new run without a position; 0 when matched by name.
        sharing: Photographs of each that share their position with others of their run, which are
            paired in the order of their names; 0 when matched by name.
    """

    counts: Mapping[str, int]
    risen: Sequence[Mapping[str, Any]]
    unplaced: tuple[int, int] = (0, 0)
    sharing: tuple[int, int] = (0, 0)

    def text(self) -> str:
        """Markdown tables for the terminal, and what is to be known about the matching."""
        parts = [tables.markdown(["change", "photographs"], [[name, f"{n:,}"] for name, n in self.counts.items()])]
        if self.risen:
            header = ["risen", "was", "metres", "score", "was", "p", "was"]
            parts.append(tables.markdown(header, [_cells(row) for row in self.risen]))
        if any(self.unplaced):
            old, new = self.unplaced
            parts.append(f"warning: {old:,} old and {new:,} new photographs have no position; none was matched")
        if any(self.sharing):
            old, new = self.sharing
            parts.append(
                f"warning: {old:,} old and {new:,} new photographs share a position with others of their run; "
                "which of them are pairs follows the order of their names"
            )
        return "\n\n".join(parts)


def compare(old: str, new: str, out: str, *, radius: float | None, other_model: bool) -> Comparison:
    """Compares two finished runs photograph by photograph; writes compare.parquet and compare.csv.

    Photographs are matched by image_id, or by position: each at most once, nearest first, by the
    great-circle distance. Height is not looked at, nor is where the camera pointed.

    `risen` and `fallen` say that the prediction changed. That says where to look, not that a crack
    grew: light, distance and direction change a score as well, and a score near the threshold
    crosses it by chance. Rows are ordered by `Change`, then by how much the score rose.

    Both runs are held in memory: measured with 10^6 photographs in each, 0.9 GB by name, 1.8 GB by position.

    Args:
        old: The earlier run.
        new: The later one.
        out: Directory of the result, empty or of an earlier comparison.
        radius: Metres within which photographs are matched by position; None matches by image_id.
        other_model: Also compares runs of different models or thresholds; their scores are not subtracted.

    Raises:
        InputError: The radius is no positive number, or so large that too many photographs are within
            it; a run is not finished, or has no position at all.
        RefusedError: The runs are of different models or thresholds; the directory holds something else.
    """
    if radius is not None and not 0 < radius < math.inf:
        raise InputError(f"--radius {radius:g}: must be a positive number of metres")
    if not {*storage.list_files(out)} <= {PARQUET, CSV}:
        raise RefusedError(f"{out}: holds something that is no comparison; give an empty directory")
    old_run, new_run = _open(old), _open(new)
    differs = directory.differences(_scale(old_run), _scale(new_run))
    if differs and not other_model:
        raise RefusedError(
            f"{old} and {new}: their scores are not of one scale: {'; '.join(differs)}; score both with one model and "
            "threshold, or give --other-model to compare p-values and predictions alone"
        )
    was, now = _read(old_run), _read(new_run)
    unplaced = sharing = (0, 0)
    if radius is None:
        pairs = _by_name(was, now)
    else:
        places = Places(old, was), Places(new, now)
        pairs = nearest.pairs(*places, radius)
        unplaced, sharing = (places[0].unplaced, places[1].unplaced), (places[0].sharing, places[1].sharing)
    table = _table(was, now, *pairs, by_position=radius is not None, subtract=not differs)
    facts = {"old": old_run.identity, "new": new_run.identity, "radius": radius, "differs": differs}
    _write(table.replace_schema_metadata({"crackvae.compare": json.dumps(facts)}), out)
    return Comparison(_counts(table), _risen(table), unplaced, sharing)


def _open(location: str) -> Run:
    run = directory.open_run(location)
    if not run.finished:
        raise InputError(f"{location}: is not finished; run the same command again")
    return run


def _scale(run: Run) -> dict[str, Any]:
    """What scores and predictions of two runs must have in common to be compared."""
    return {
        "model": run.facts.get("model"),
        "scoring": run.facts.get("scoring"),
        "threshold": judge.load(run).as_dict(),
    }


def _read(run: Run) -> pa.Table:
    """The columns that are compared and the position, in order of image_id; a wrong position is none."""
    table = finalize.read_results(run.location, [*_SIDES, *POSITION]).replace_schema_metadata(None)
    right = pc.and_(pc.less_equal(pc.abs(table["latitude"]), 90), pc.less_equal(pc.abs(table["longitude"]), 180))
    for name in POSITION:
        position = pc.if_else(right.fill_null(False), table[name], None)
        table = table.set_column(table.schema.get_field_index(name), name, position)
    return table.sort_by("image_id").combine_chunks()


def _by_name(old: pa.Table, new: pa.Table) -> tuple[Indices, Indices]:
    row_N = pc.index_in(new["image_id"], value_set=old["image_id"])
    found_N = row_N.is_valid().to_numpy()
    return row_N.drop_null().to_numpy().astype(np.int64), np.flatnonzero(found_N)


def _table(
    old: pa.Table, new: pa.Table, old_M: Indices, new_M: Indices, *, by_position: bool, subtract: bool
) -> pa.Table:
    """`COMPARISON` of the pairs old_M, new_M and of all that is left of both."""
    alone_old, alone_new = np.setdiff1d(np.arange(len(old)), old_M), np.setdiff1d(np.arange(len(new)), new_M)
    old_N = np.concatenate([old_M, alone_old, np.full(len(alone_new), -1)])
    new_N = np.concatenate([new_M, np.full(len(alone_old), -1), alone_new])
    old, new = (table.take(pa.array(row_N, mask=row_N < 0)) for table, row_N in ((old, old_N), (new, new_N)))
    order_N = _changes(old, new, by_position)
    columns = {f"{name}_{side}": table[name] for name in _SIDES for side, table in (("old", old), ("new", new))}
    columns["distance_m"] = nearest.distance(old, new)
    columns["change"] = pa.array(map(str, Change)).take(pa.array(order_N))
    columns["score_change"] = pc.if_else(_both_judged(old, new), pc.subtract(new["score"], old["score"]), None)
    if not subtract:
        columns["score_change"] = pa.nulls(len(order_N), pa.float32())
    table = pa.table([columns[name] for name in COMPARISON.names], schema=COMPARISON)
    keys = [("order", "ascending"), ("score_change", "descending")]
    keys += [(name, "ascending") for name in ("p_value_new", "p_value_old", "image_id_new", "image_id_old")]
    return table.take(pc.sort_indices(table.append_column("order", pa.array(order_N)), keys))


def _both_judged(old: pa.Table, new: pa.Table) -> pa.ChunkedArray:
    return pc.and_(pc.is_valid(old["prediction"]), pc.is_valid(new["prediction"]))


def _changes(old: pa.Table, new: pa.Table, by_position: bool) -> NDArray[np.int64]:
    """The number of each row's `Change`, of aligned tables in which a missing photograph is a row of nulls."""

    def only_in(one: pa.Table, other: pa.Table) -> pa.ChunkedArray:
        # One without a position may have a partner all the same: it is not comparable.
        placed = pc.or_(pc.is_valid(one["latitude"]), not by_position)
        return pc.and_(pc.is_null(other["image_id"]), placed)

    was, now = (pc.fill_null(pc.equal(table["prediction"], str(Label.CRACK)), False) for table in (old, new))
    cases = {
        Change.NEW: only_in(new, old),
        Change.GONE: only_in(old, new),
        Change.NOT_COMPARABLE: pc.invert(_both_judged(old, new)),
        Change.RISEN: pc.and_not(now, was),
        Change.FALLEN: pc.and_not(was, now),
    }
    number = list(Change).index
    return np.select([case.to_numpy() for case in cases.values()], [*map(number, cases)], number(Change.SAME))


def _write(table: pa.Table, out: str) -> None:
    with storage.writing(storage.join(out, PARQUET)) as stream:
        pq.write_table(table, stream, compression="zstd")
    with storage.writing(storage.join(out, CSV)) as stream:
        stream.write(finalize.csv_bytes(table.slice(0, 0), header=True))
        for start in range(0, len(table), _CSV_ROWS):
            stream.write(finalize.csv_bytes(table.slice(start, _CSV_ROWS)))


def _counts(table: pa.Table) -> dict[str, int]:
    found = {row["values"]: row["counts"] for row in pc.value_counts(table["change"]).to_pylist()}
    return {str(change): found.get(str(change), 0) for change in Change}


def _risen(table: pa.Table) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = table.slice(0, _TOP).to_pylist()  # they come first
    return [row for row in rows if row["change"] == Change.RISEN]


def _cells(row: Mapping[str, Any]) -> list[str]:
    distance = "-" if row["distance_m"] is None else f"{row['distance_m']:.1f}"
    scores = [f"{row[name]:.4g}" for name in ("score_new", "score_old")]
    return [
        row["image_id_new"], row["image_id_old"], distance,
        *scores, *(f"{row[name]:.4f}" for name in ("p_value_new", "p_value_old")),
    ]  # fmt: skip
