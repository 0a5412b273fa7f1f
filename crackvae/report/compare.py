"""Two surveys of the same structures side by side: where to look again, not what has grown."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from crackvae import storage
from crackvae.errors import InputError, RefusedError
from crackvae.report import nearest, positions, tables
from crackvae.report.nearest import POSITION
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


_COMPARED = ["image_id", "status", "score", "p_value", "prediction"]
COMPARISON = pa.schema(
    [
        *(pa.field(f"{name}_{side}", RESULTS.field(name).type) for name in _COMPARED[:1] for side in ("old", "new")),
        pa.field("distance_m", pa.float64()),  # great-circle, where both have a position
        *(pa.field(f"{name}_{side}", RESULTS.field(name).type) for name in _COMPARED[1:] for side in ("old", "new")),
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
        warnings: What is to be known about the matching.
    """

    counts: Mapping[str, int]
    risen: Sequence[Mapping[str, Any]]
    warnings: Sequence[str]

    def text(self) -> str:
        """Markdown tables and warnings for the terminal."""
        parts = [tables.markdown(["change", "photographs"], [[name, f"{n:,}"] for name, n in self.counts.items()])]
        if self.risen:
            header = ["risen", "was", "metres", "score", "was", "p", "was"]
            parts.append(tables.markdown(header, [_cells(row) for row in self.risen]))
        return "\n\n".join([*parts, *(f"warning: {warning}" for warning in self.warnings)])


def compare(old: str, new: str, out: str, *, radius: float | None, other_model: bool) -> Comparison:
    """Compares two finished runs photograph by photograph; writes compare.parquet and compare.csv.

    Photographs are matched by image_id, or by position: two are a pair where each is the other's
    nearest by the great-circle distance. Height is not looked at, nor is where the camera pointed.

    `risen` and `fallen` say that the prediction changed. That says where to look, not that a crack
    grew: light, distance and direction change a score as well, and a score near the threshold
    crosses it by chance. Rows are ordered by `Change`, then by how much the score rose.

    Both runs are held in memory: measured with 10^6 photographs in each, 0.8 GB by name, 1.2 GB by position.

    Args:
        old: The earlier run.
        new: The later one.
        out: Directory of the result, empty or of an earlier comparison.
        radius: Metres within which photographs are matched by position; None matches by image_id.
        other_model: Also compares runs of different models or thresholds; their scores are not subtracted.

    Raises:
        InputError: The radius is no positive number; a run is not finished, or has no position at all.
        RefusedError: The runs are of different models or thresholds; the directory holds something else.
    """
    if radius is not None and not 0 < radius < math.inf:
        raise InputError(f"--radius {radius:g}: must be a positive number of metres")
    if not {*storage.list_files(out)} <= {PARQUET, CSV}:
        raise RefusedError(f"{out}: holds something that is no comparison; give an empty directory")
    old_run, new_run = directory.open_finished(old), directory.open_finished(new)
    differs = directory.differences(_scale(old_run), _scale(new_run))
    if differs and not other_model:
        raise RefusedError(
            f"{old} and {new}: their scores are not of one scale: {'; '.join(differs)}; score both with one model and "
            "threshold, or give --other-model to compare p-values and predictions alone"
        )
    was, now = _read(old_run), _read(new_run)
    if radius is None:
        partner_N, warnings = pd.Index(was["image_id"]).get_indexer(pd.Index(now["image_id"])), _shared(was, now)
    else:
        for location, survey in ((old, was), (new, now)):
            if survey["latitude"].isna().all():
                raise InputError(f"{location}: no photograph has a position; leave out --radius to match by name")
        partner_N, warnings = nearest.partners(was, now, radius), _warnings(was, now)
    # A row of the old run keeps its number, one of the new has that of its partner or one of its own below 0.
    number_N = np.where(partner_N < 0, -1 - np.arange(len(now)), partner_N)
    rows = was.add_suffix("_old").join(now.add_suffix("_new").set_axis(number_N), how="outer")
    table = _table(rows, by_position=radius is not None, subtract=not differs)
    facts = {"old": old_run.identity, "new": new_run.identity, "radius": radius, "differs": differs}
    _write(table.replace_schema_metadata({"crackvae.compare": json.dumps(facts)}), out)
    found = Counter(table["change"].to_pylist())
    risen = [row for row in table.slice(0, _TOP).to_pylist() if row["change"] == Change.RISEN]  # they come first
    return Comparison({str(change): found[change] for change in Change}, risen, warnings)


def _scale(run: Run) -> dict[str, Any]:
    """What scores and predictions of two runs must have in common to be compared."""
    return {
        "model": run.facts.get("model"),
        "scoring": run.facts.get("scoring"),
        "threshold": judge.load(run).as_dict(),
    }


def _read(run: Run) -> pd.DataFrame:
    """The columns that are compared and the position, in order of image_id; a wrong position is none."""
    survey: pd.DataFrame = finalize.read_results(run.location, [*_COMPARED, *POSITION]).to_pandas()
    survey[POSITION] = positions.placed(survey[POSITION])
    return survey.sort_values("image_id", ignore_index=True)


def _shared(old: pd.DataFrame, new: pd.DataFrame) -> list[str]:
    numbered = sum(int(survey["image_id"].str.contains(r"\.\w+#\d+$").sum()) for survey in (old, new))
    if not numbered:
        return []
    return [
        f"{numbered:,} names are numbered (#2, ...), as sources shared them: where files have come or gone, others are "
        "meant than before; score such sources apart, or match by position (--radius)"
    ]


def _warnings(old: pd.DataFrame, new: pd.DataFrame) -> list[str]:
    unplaced = [int(survey["latitude"].isna().sum()) for survey in (old, new)]
    sharing = [int(survey[POSITION].dropna().duplicated(keep=False).sum()) for survey in (old, new)]
    texts = {
        "have no position; none was matched": unplaced,
        "share a position with others of their run; which of them are pairs follows the order of their names": sharing,
    }
    return [f"{was:,} old and {now:,} new photographs {text}" for text, (was, now) in texts.items() if was or now]


def _table(rows: pd.DataFrame, *, by_position: bool, subtract: bool) -> pa.Table:
    """`COMPARISON` of aligned rows, in which a missing photograph is null."""
    is_judged = rows["prediction_old"].notna() & rows["prediction_new"].notna()
    was, now = (rows[f"prediction_{side}"] == str(Label.CRACK) for side in ("old", "new"))
    # One without a position may have a partner all the same: it is not comparable.
    may_match = rows["latitude_old"].notna() | rows["latitude_new"].notna() | (not by_position)
    cases = {
        Change.NEW: rows["image_id_old"].isna() & may_match,
        Change.GONE: rows["image_id_new"].isna() & may_match,
        Change.NOT_COMPARABLE: ~is_judged,
        Change.RISEN: now & ~was,
        Change.FALLEN: was & ~now,
    }
    change = np.select([*cases.values()], [*map(str, cases)], str(Change.SAME))
    rows["change"] = pd.Categorical(change, [*map(str, Change)], ordered=True)
    rows["score_change"] = (rows["score_new"] - rows["score_old"]).where(is_judged & subtract)
    rows["distance_m"] = nearest.distance(rows)
    keys = ["change", "score_change", "p_value_new", "p_value_old", "image_id_new", "image_id_old"]
    rows = rows.sort_values(keys, ascending=[key != "score_change" for key in keys])
    return pa.Table.from_pandas(rows.astype({"change": "str"}), COMPARISON, preserve_index=False)


def _write(table: pa.Table, out: str) -> None:
    with storage.writing(storage.join(out, PARQUET)) as stream:
        pq.write_table(table, stream, compression="zstd")
    with storage.writing(storage.join(out, CSV)) as stream:
        stream.write(finalize.csv_bytes(table.slice(0, 0), header=True))
        for start in range(0, len(table), _CSV_ROWS):
            stream.write(finalize.csv_bytes(table.slice(start, _CSV_ROWS)))


def _cells(row: Mapping[str, Any]) -> list[str]:
    distance = "-" if row["distance_m"] is None else f"{row['distance_m']:.1f}"
    scores = [f"{row[name]:.4g}" for name in ("score_new", "score_old")]
    return [
        row["image_id_new"], row["image_id_old"], distance,
        *scores, *(f"{row[name]:.4f}" for name in ("p_value_new", "p_value_old")),
    ]  # fmt: skip
