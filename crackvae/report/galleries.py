"""Figures of images: galleries of right and wrong decisions, and reconstructions.

Every heat map of a run has the same colours, in every figure: the squared error of a pixel, from 0
to SCALE times the threshold, which is the largest mean of that error over a tile called normal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from crackvae.dataset.decoder import Decoder
from crackvae.model.artifact import Artifact
from crackvae.model.scorer import TileScorer
from crackvae.report.excerpt import Excerpt
from crackvae.report.overlay import SCALE
from crackvae.schema import Label, Status

_MOST = 16  # images in a gallery
_COLUMNS = 4
_PERCENTILES = (10, 50, 90)
_COLOURS = "inferno"  # its lightness only grows: it reads without colour vision, and in print
_PICTURE = 0.96  # a side, where the next one of a cell begins at 1
_WIDTH_IN, _CAPTION_IN, _TITLE_IN, _SCALE_IN = 12, 0.42, 0.6, 0.75
_ID_LETTERS = 30

# Title, and the label and prediction of what is in it.
_GALLERIES = {
    "true_positives": ("True positives: cracks called crack", Label.CRACK, Label.CRACK),
    "false_positives": ("False positives: normals called crack", Label.NORMAL, Label.CRACK),
    "false_negatives": ("False negatives: cracks called normal", Label.CRACK, Label.NORMAL),
    "true_negatives": ("True negatives: normals called normal", Label.NORMAL, Label.NORMAL),
}


class _Cell(NamedTuple):
    caption: str
    view: tuple[NDArray[np.float32], NDArray[np.float32]] | None
    """The network's input and output in [-1, 1]; None where the image can no longer be read."""


def candidates(scored: pd.DataFrame) -> pd.Index[int]:
    """Those that a gallery may hold, whatever others there are."""
    return pd.concat([rows[:_MOST] for rows in _members(scored).values()]).index


def draw(
    excerpt: Excerpt, kinds: Mapping[tuple[Any, Any], int], model: Artifact, threshold: float
) -> dict[str, Figure]:
    """Draws the four galleries of what is labelled, findings of what is not, reconstructions.

    Args:
        excerpt: Of the rows that have a score, at least one; by `candidates`.
        kinds: How many there are by label and prediction.
        model: What scored them.
        threshold: A score above it is a crack.

    Returns:
        By name. An image that can no longer be read has a cell that says so.
    """
    unlabelled = sum(n for (label, _), n in kinds.items() if label is None)
    is_labelled = unlabelled < sum(kinds.values())
    totals = {name: kinds.get((label, prediction), 0) for name, (_, label, prediction) in _GALLERIES.items()}
    totals = totals if is_labelled else {}
    totals |= {"findings": unlabelled} if unlabelled else {}
    members = {name: rows[:_MOST] for name, rows in _members(excerpt.chosen).items() if name in totals}
    kind, column = ("Labelled", "label") if is_labelled else ("Called", "prediction")
    examples = [_at_percentiles(excerpt.sample[excerpt.sample[column] == label]) for label in Label]
    shown = pd.concat([*members.values(), *examples])
    cells = _cells(shown[~shown.index.duplicated()].sort_index(), model)
    figures = {
        name: _gallery(name, totals[name], [cells[row] for row in rows.index], threshold)
        for name, rows in members.items()
    }
    columns = [[cells[row] for row in rows.index] for rows in examples]
    return figures | {"reconstructions": _reconstructions(columns, kind, threshold)}


def _members(scored: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows of each gallery, in its order."""
    results = scored.sort_values("score", ascending=False, kind="stable")
    members = {
        name: results[(results["label"] == label) & (results["prediction"] == prediction)]
        for name, (_, label, prediction) in _GALLERIES.items()
    }
    members["false_negatives"] = members["false_negatives"].sort_values("score", kind="stable")
    return members | {"findings": results[results["label"].isna()]}


def _at_percentiles(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows whose scores are at _PERCENTILES, all of the rows where they are few."""
    place = np.rint(np.array(_PERCENTILES) / 100 * (len(rows) - 1)).astype(int).clip(0)
    return rows.sort_values("score", kind="stable").iloc[np.unique(place)[: len(rows)]]


def _cells(rows: pd.DataFrame, model: Artifact) -> dict[int, _Cell]:
    """Reads and reconstructs images, in manifest order, which is quick in an archive."""
    with Decoder(model.config.image) as decoder:
        tile_NSS, read = decoder.read(pa.table({"uri": pa.array(rows["uri"])}))
    x_NSS = tile_NSS.astype(np.float32) / 127.5 - 1
    x_hat_NSS = TileScorer(model, "cpu", "fp32").reconstruct(tile_NSS)
    cells = {}
    now = read.select(["status", "width", "height"]).to_pylist()
    for place, (index, row) in enumerate(zip(rows.index, rows.to_dict("records"), strict=True)):
        is_same = now[place] == {"status": Status.OK, "width": row["width"], "height": row["height"]}
        view = (x_NSS[place], x_hat_NSS[place]) if is_same else None
        cells[index] = _Cell(f"{_short(row['image_id'])}\nscore {row['score']:.4f}, p {row['p_value']:#.2g}", view)
    return cells


def _short(image_id: str) -> str:
    """The end of an id, which tells images apart, on one line."""
    line = "".join(letter if letter.isprintable() else "?" for letter in image_id)
    return line if len(line) <= _ID_LETTERS else "…" + line[1 - _ID_LETTERS :]


def _gallery(name: str, total: int, cells: Sequence[_Cell], threshold: float) -> Figure:
    title = _GALLERIES[name][0] if name in _GALLERIES else "Findings: images without a label"
    order = "lowest" if name == "false_negatives" else "highest"
    count = f"{total:,}" if total <= _MOST else f"{len(cells)} of {total:,}"
    how = f"({count}, {order} score first)\nleft: image, right: error heat map"
    return _sheet(f"{title} {how if total else '(none)'}", cells, _COLUMNS, threshold, with_reconstruction=False)


def _reconstructions(examples: Sequence[Sequence[_Cell]], kind: str, threshold: float) -> Figure:
    *others, last = (f"{percentile}th" for percentile in _PERCENTILES)
    title = (
        f"{kind} normal (left) and crack (right): scores at the {', '.join(others)} and {last} "
        "percentile of each\nimage, reconstruction, error heat map"
    )
    cells = [cell for line in zip_longest(*examples) for cell in line]
    return _sheet(title, cells, len(examples), threshold, with_reconstruction=True)


def _sheet(
    title: str, cells: Sequence[_Cell | None], columns: int, threshold: float, *, with_reconstruction: bool
) -> Figure:
    """Sets cells out line by line, above the one scale of the heat maps.

    Every size is known beforehand: finding a layout would take most of the time.
    """
    lines = max(1, -(-len(cells) // columns))
    picture_in = _WIDTH_IN / columns / (3 if with_reconstruction else 2)
    height_in = _TITLE_IN + lines * (picture_in + _CAPTION_IN) + _SCALE_IN
    top, bottom = 1 - (_TITLE_IN + _CAPTION_IN) / height_in, _SCALE_IN / height_in
    figure = Figure(figsize=(_WIDTH_IN, height_in))
    figure.suptitle(title, y=1 - 0.1 / height_in)
    figure.subplots_adjust(0.01, bottom, 0.99, top, wspace=0.03, hspace=_CAPTION_IN / picture_in)
    scale = Normalize(0, SCALE * threshold)
    # Nobody sees ticks here, and still they would take a third of the time.
    empty = {"xticks": (), "yticks": ()}
    for axes, cell in zip_longest(figure.subplots(lines, columns, squeeze=False, subplot_kw=empty).flat, cells):
        axes.set_axis_off()
        if cell is not None:
            _show(axes, cell, scale, with_reconstruction)
    multiples = np.linspace(0, SCALE, 5)
    bar = figure.colorbar(
        ScalarMappable(scale, _COLOURS),
        cax=figure.add_axes((0.2, 0.48 / height_in, 0.6, 0.14 / height_in)),
        orientation="horizontal",
        extend="max",
        ticks=multiples * threshold,
        label="error heat map: squared error of a pixel (gray levels from -1 to 1), "
        f"in multiples of the threshold {threshold:.4g}",
    )
    bar.set_ticklabels([f"{multiple:g}x" for multiple in multiples])
    return figure


def _show(axes: Axes, cell: _Cell, scale: Normalize, with_reconstruction: bool) -> None:
    axes.set_title(cell.caption, fontsize=9, y=1)
    if cell.view is None:
        axes.text(0.5, 0.5, "gone or changed", ha="center", va="center")
        return
    x_SS, x_hat_SS = cell.view
    gray = ("gray", Normalize(-1, 1))
    pictures = [(x_SS, *gray), (np.square(x_hat_SS - x_SS), _COLOURS, scale)]
    if with_reconstruction:
        pictures.insert(1, (x_hat_SS, *gray))
    for place, (picture_SS, colours, norm) in enumerate(pictures):
        axes.imshow(picture_SS, colours, norm, extent=(place, place + _PICTURE, 0, _PICTURE))
    axes.set_xlim(0, place + _PICTURE)
