"""What of a run a page shows image by image: its list, and its galleries."""

from __future__ import annotations

import base64
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from crackvae.model.artifact import Artifact
from crackvae.report import views
from crackvae.report.views import Triptych
from crackvae.run import finalize
from crackvae.schema import Label, ReviewPart, Status

MOST_ROWS = 5000
MOST_FAILED = 500  # of these rows

MOST_ANOMALOUS = "Most anomalous"
_TOP, _GALLERY = 12, 6
# So that a page is small enough even where every letter of every name takes six bytes in it.
_TRIPTYCH_BYTES, _NAME_LETTERS = 4_000_000, 120
# What is read for pictures, in pixels: a minute or two at most, however large the photographs.
_TRIPTYCH_PIXELS, _THUMBNAIL_PIXELS = 400e6, 4e9
_BOX = ["x", "y", "width", "height"]
_REGION = ["image_id", *_BOX, "peak", "length", "length_mm", "length_mm_error"]
_LABELLED = {
    "False positives": ("normals that were flagged", Label.NORMAL, Label.CRACK),
    "False negatives": ("cracks that were not flagged", Label.CRACK, Label.NORMAL),
    "True positives": ("cracks that were flagged", Label.CRACK, Label.CRACK),
    "True negatives": ("normals that were not flagged", Label.NORMAL, Label.NORMAL),
}

Row = list[Any]
"""Of the list: image_id, outcome, label, structure, score, p-value, whether that is a bound, place, note, thumbnail,
why there is none, part of the review, and whether the image_id is whole."""


class Gallery(NamedTuple):
    """Images side by side.

    Attributes:
        title: Of the gallery.
        note: What is in it.
        rows: Of the results, in order.
    """

    title: str
    note: str
    rows: pd.DataFrame


def listed(results: pd.DataFrame) -> pd.DataFrame:
    """What the list holds: files not scored, those to review, flagged ones by p-value, then others by falling score."""
    is_failed, is_crack = results["score"].isna(), results["prediction"] == str(Label.CRACK)
    part = results["review"]
    ranked = [
        is_failed,
        part == str(ReviewPart.LIST),
        part == str(ReviewPart.AUDIT),
        is_crack,
        results["prediction"].isna(),
    ]
    rank = np.select(ranked, range(5), 5)
    ordered = results.assign(rank=rank, p=results["p_value"].where(is_crack | (rank == 1))).sort_values(
        ["rank", "p", "score"], ascending=[True, True, False], kind="stable"
    )
    failed = int(is_failed.sum())
    held = pd.concat([ordered[: min(failed, MOST_FAILED)], ordered[failed:]])
    is_audit = held["review"] == str(ReviewPart.AUDIT)  # all of it is to be decided, however long the list
    return held[is_audit | ((~is_audit).cumsum() <= MOST_ROWS - is_audit.sum())][:MOST_ROWS]


def candidates(results: pd.DataFrame, threshold: float) -> pd.Index[int]:
    """Those that the list or a gallery may hold, whatever other results there are."""
    shown = [listed(results)]
    for labelled in (False, True):
        shown += [gallery.rows for gallery in galleries(results, threshold, labelled=labelled)]
    return pd.concat(shown).index.unique()


def left_out(total: Mapping[str, int], held: pd.DataFrame) -> list[str]:
    """What the list does not hold, in words; total is of `counts`."""
    found = counts(held)
    return [f"{n - found[kind]:,} of {n:,} {kind}" for kind, n in total.items() if n > found[kind]]


def counts(rows: pd.DataFrame) -> Counter[str]:
    """How many of them are of each kind."""
    is_failed, is_crack = rows["score"].isna(), rows["prediction"] == str(Label.CRACK)
    kinds = {"not scored": is_failed, "flagged": is_crack, "not flagged": ~is_failed & ~is_crack}
    return Counter({kind: int(is_kind.sum()) for kind, is_kind in kinds.items()})


def galleries(results: pd.DataFrame, threshold: float, *, labelled: bool) -> list[Gallery]:
    """The most anomalous; then right and wrong decisions, or where nothing is labelled what is near the threshold."""
    flagged = results[results["prediction"] == str(Label.CRACK)]
    flagged = flagged.sort_values(["p_value", "score"], ascending=[True, False], kind="stable")
    made = [Gallery(MOST_ANOMALOUS, "smallest p-value first, then highest score", flagged[:_TOP])]
    undecided = results[results["score"].notna() & results["prediction"].isna()]
    undecided = undecided.sort_values("score", ascending=False, kind="stable")
    made.append(Gallery("Undecided", "scored, but nothing can be said of them; highest score first", undecided[:_TOP]))
    if labelled:
        groups = {
            title: (note, results[(results["label"] == label) & (results["prediction"] == prediction)])
            for title, (note, label, prediction) in _LABELLED.items()
        }
    else:
        groups = {
            "Flagged, nearest to the threshold": ("", flagged),
            "Not flagged, nearest to the threshold": ("", results[results["prediction"] == str(Label.NORMAL)]),
        }
    for title, (note, rows) in groups.items():
        distance = (rows["score"] - threshold).abs().sort_values(kind="stable").index
        if note:
            made.append(Gallery(title, f"{note}; farthest from the threshold", rows.loc[distance[::-1][:_GALLERY]]))
        near = f"{note}; nearest to the threshold" if note else ""
        made.append(Gallery(title, near, rows.loc[distance[:_GALLERY]]))
    return [gallery for gallery in made if len(gallery.rows)]


class Regions(NamedTuple):
    """The anomalous regions of those images that have any, by image_id.

    Attributes:
        boxes: x, y, width and height of each, the strongest first.
        notes: How many there are, and how long the longest is.
    """

    boxes: dict[str, list[list[int]]]
    notes: dict[str, str]


def read_regions(location: str, names: Sequence[str]) -> Regions:
    """Reads the regions of some images of a run."""
    wanted = pa.array(names, pa.string())
    blocks = finalize.read_blocks(location, finalize.REGIONS_DIRECTORY, _REGION)
    found = [block.filter(pc.is_in(block["image_id"], wanted)).to_pandas() for block in blocks]
    regions = defaultdict(list)
    if found:
        for row in pd.concat(found).sort_values("peak", ascending=False, kind="stable").to_dict("records"):
            regions[row["image_id"]].append(row)
    boxes = {name: [[row[side] for side in _BOX] for row in own] for name, own in regions.items()}
    return Regions(boxes, {name: _note(own) for name, own in regions.items()})


def _note(regions: Sequence[Mapping[Any, Any]]) -> str:
    text = f"{len(regions)} region{'s' if len(regions) > 1 else ''}"
    longest = max((row for row in regions if pd.notna(row["length"])), key=lambda row: row["length"], default=None)
    if longest is None:
        return text
    if pd.notna(longest["length_mm"]):
        return f"{text}, longest {longest['length_mm']:.0f} ± {longest['length_mm_error']:.0f} mm"
    return f"{text}, longest {longest['length']:.0f} px"


def triptychs(
    shown: Sequence[Gallery], regions: Regions, model: Artifact | None, threshold: float
) -> dict[int, Triptych]:
    """Pictures by row of the results; an image that is gone has one that says so.

    Galleries take turns, so that where pictures are few each has some.
    """
    if model is None or not shown:
        return {}
    rows = pd.concat([gallery.rows[place : place + 1] for place in range(_TOP) for gallery in shown])
    rows = rows[~rows.index.duplicated()]
    pixels_N = (rows["width"].astype(float) * rows["height"].astype(float)).fillna(0).cumsum()
    rows = rows[(pixels_N <= _TRIPTYCH_PIXELS) | (np.arange(len(rows)) == 0)].sort_index()
    made: dict[int, Triptych] = {}
    used = 0
    for row, picture in zip(rows.index, views.triptychs(rows, regions.boxes, model, threshold), strict=True):
        used += sum(map(len, picture.pictures))
        made[row] = picture if used < _TRIPTYCH_BYTES else Triptych(gone="left out, so that the page stays small")
    return made


def rows(held: pd.DataFrame, places: np.ndarray, regions: Regions, *, with_positions: bool) -> list[Row]:
    """The list, without thumbnails."""
    made = []
    for row, place in zip(held.to_dict("records"), places, strict=True):
        is_scored = pd.notna(row["score"])
        position = ""
        if with_positions and pd.notna(row["latitude"]) and pd.notna(row["longitude"]):
            position = f"{row['latitude']:.5f}, {row['longitude']:.5f}"
        made.append(
            [
                _short(row["image_id"]), outcome(row), _text(row["label"]), _short(" ".join(place).strip()),
                _rounded(row["score"], 4), _rounded(row["p_value"], 3),
                int(is_scored and bool(row["p_value_is_bound"])),
                position, _short(note(row, regions) if is_scored else _text(row["message"])), "", "",
                row["review"], int(len(row["image_id"]) <= _NAME_LETTERS),
            ]
        )  # fmt: skip
    return made


def outcome(row: Mapping[Any, Any]) -> str:
    """What became of a file, in the words that the list is filtered by."""
    if pd.isna(row["score"]):
        return str(row["status"]).replace("_", " ")
    return {str(Label.CRACK): "flagged", str(Label.NORMAL): "not flagged"}.get(_text(row["prediction"]), "undecided")


def note(row: Mapping[Any, Any], regions: Regions) -> str:
    """How much of an image was judged, and what was found in it."""
    parts = [regions.notes.get(row["image_id"], "")]
    if pd.notna(row["judged_fraction"]) and row["judged_fraction"] < 0.995:
        parts.append(f"{row['judged_fraction']:.0%} of it judged")
    if row["repeats"]:
        parts.append(f"{row['repeats']:.0f} more show the same at the same place")
    return "; ".join(filter(None, parts))


def add_thumbnails(made: list[Row], held: pd.DataFrame, regions: Regions, most_bytes: int) -> int:
    """Puts thumbnails into as many rows of the list as there is room for; says how many have none for want of it."""
    could = held["status"].isin([str(Status.OK), str(Status.CANNOT_JUDGE)]).to_numpy()
    pixels_N = (held["width"].astype(float) * held["height"].astype(float)).fillna(0).to_numpy()
    chosen = np.flatnonzero(could & (np.cumsum(pixels_N * could) <= _THUMBNAIL_PIXELS))
    # In the order of the manifest, which is quick in an archive; what there is no room for is known afterwards.
    in_order = chosen[np.argsort(held.index.to_numpy()[chosen])]
    drawn = dict(zip(in_order.tolist(), views.thumbnails(held.iloc[in_order], regions.boxes), strict=True))
    room, missing = most_bytes, int(could.sum()) - len(chosen)
    for index in chosen.tolist():
        data, why = drawn[index]
        text = base64.b64encode(data).decode()
        room -= len(text)
        if room < 0:
            missing += 1
            continue
        made[index][9:11] = [text, why]
    return missing


def _short(text: str) -> str:
    return text if len(text) <= _NAME_LETTERS else f"{text[:40]}…{text[41 - _NAME_LETTERS :]}"


def _text(value: Any) -> str:
    return "" if pd.isna(value) else str(value)


def _rounded(value: float, digits: int) -> float | None:
    return None if pd.isna(value) else float(f"{value:.{digits}g}")
