"""Figures of images: galleries of right and wrong decisions, and reconstructions.

Every heat map of a run has the same colours, in every figure: the squared error of a pixel, from 0
to SCALE times the threshold, which is the largest mean of that error over a tile called normal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from crackvae.dataset.decoder import Decoder
from crackvae.model.artifact import Artifact
from crackvae.model.scorer import TileScorer
from crackvae.schema import Label, Status

SCALE = 20  # at METU's threshold of .012, a pixel that is 62 gray levels off is at its end

_MOST = 16  # images in a gallery
_COLUMNS = 4
_PERCENTILES = (10, 50, 90)
_COLOURS = "inferno"  # its lightness only grows: it reads without colour vision, and in print
_GAP = 0.04  # between the pictures of a cell, in widths of a picture, as are these:
_STEP = 1 + _GAP
_MARGIN = 0.1  # between cells
_WIDTH_IN, _SIDE_IN, _CAPTION_IN, _TITLE_IN, _SCALE_IN = 12, 0.1, 0.42, 0.6, 0.75
_ID_LETTERS = 30

Rows = NDArray[np.intp]


class _Gallery(NamedTuple):
    title: str
    label: Label | None
    prediction: Label | None  # None for any
    highest_first: bool = True


_GALLERIES = {
    "true_positives": _Gallery("True positives: cracks called crack", Label.CRACK, Label.CRACK),
    "false_positives": _Gallery("False positives: normals called crack", Label.NORMAL, Label.CRACK),
    "false_negatives": _Gallery(
        "False negatives: cracks called normal", Label.CRACK, Label.NORMAL, highest_first=False
    ),
    "true_negatives": _Gallery("True negatives: normals called normal", Label.NORMAL, Label.NORMAL),
    "findings": _Gallery("Findings: images without a label", None, None),
}


class _View(NamedTuple):
    """An image that could be read: the network's input and output, in [-1, 1]."""

    x_SS: NDArray[np.float32]
    x_hat_SS: NDArray[np.float32]


class _Cell(NamedTuple):
    caption: str
    view: _View | None


def draw(scored: pa.Table, model: Artifact, threshold: float) -> dict[str, Figure]:
    """Draws the four galleries of what is labelled, findings of what is not, reconstructions.

    Args:
        scored: Rows of the results that have a score, at least one.
        model: What scored them.
        threshold: A score above it is a crack.

    Returns:
        By name. An image that can no longer be read has a cell that says so.
    """
    label_N, prediction_N = _words(scored, "label"), _words(scored, "prediction")
    score_N = scored["score"].to_numpy().astype(np.float64)
    has_label_N = pc.is_valid(scored["label"]).to_numpy()
    members = {
        name: _ranked(_matches(label_N, prediction_N, gallery), score_N, gallery.highest_first)
        for name, gallery in _GALLERIES.items()
        if np.any(has_label_N == (gallery.label is not None))
    }
    kind_N = label_N if has_label_N.any() else prediction_N
    examples = {label: _at_percentiles(np.flatnonzero(kind_N == label), score_N) for label in Label}
    needed = [rows[:_MOST] for rows in members.values()] + list(examples.values())
    cells = _cells(scored, np.unique(np.concatenate(needed)), model)
    figures = {
        name: _gallery(_GALLERIES[name], len(rows), [cells[row] for row in rows[:_MOST]], threshold)
        for name, rows in members.items()
    }
    shown = {label: [cells[row] for row in rows] for label, rows in examples.items()}
    kind = "Labelled" if has_label_N.any() else "Called"
    return figures | {"reconstructions": _reconstructions(shown, kind, threshold)}


def _words(scored: pa.Table, column: str) -> NDArray[np.object_]:
    return np.asarray(scored[column].to_pylist(), object)


def _matches(label_N: NDArray[np.object_], prediction_N: NDArray[np.object_], gallery: _Gallery) -> Rows:
    chosen_N = label_N == gallery.label
    if gallery.prediction is not None:
        chosen_N &= prediction_N == gallery.prediction
    return np.flatnonzero(chosen_N)


def _ranked(rows: Rows, score_N: NDArray[np.float64], highest_first: bool) -> Rows:
    """By score; equal scores stay in manifest order."""
    key = -score_N[rows] if highest_first else score_N[rows]
    return rows[np.argsort(key, kind="stable")]


def _at_percentiles(rows: Rows, score_N: NDArray[np.float64]) -> Rows:
    """The rows whose scores are at _PERCENTILES, all of the rows where they are few."""
    if len(rows) <= len(_PERCENTILES):
        return _ranked(rows, score_N, highest_first=False)
    place = np.rint(np.array(_PERCENTILES) / 100 * (len(rows) - 1)).astype(np.intp)
    return _ranked(rows, score_N, highest_first=False)[place]


def _cells(scored: pa.Table, rows: Rows, model: Artifact) -> dict[int, _Cell]:
    """Reads and reconstructs each image once, in manifest order, which is quick in an archive."""
    shown = scored.take(pa.array(rows))
    with Decoder(model.config.image) as decoder:
        tile_NSS, read = decoder.read(shown)
    x_NSS = tile_NSS.astype(np.float32) / 127.5 - 1
    x_hat_NSS = TileScorer(model, "cpu", "fp32").reconstruct(tile_NSS)
    cells = {}
    for index, (row, status) in enumerate(zip(shown.to_pylist(), read["status"].to_pylist(), strict=True)):
        view = _View(x_NSS[index], x_hat_NSS[index]) if status == Status.OK else None
        caption = f"{_short(row['image_id'])}\nscore {row['score']:.4f}, p {row['p_value']:#.2g}"
        cells[int(rows[index])] = _Cell(caption, view)
    return cells


def _short(image_id: str) -> str:
    """The end of an id, which tells images apart, on one line."""
    line = "".join(letter if letter.isprintable() else "?" for letter in image_id)
    return line if len(line) <= _ID_LETTERS else "…" + line[1 - _ID_LETTERS :]


def _gallery(gallery: _Gallery, total: int, cells: Sequence[_Cell], threshold: float) -> Figure:
    order = "highest" if gallery.highest_first else "lowest"
    count = f"{total:,}" if total <= _MOST else f"{len(cells)} of {total:,}"
    how = f"({count}, {order} score first)\nleft: image, right: error heat map"
    title = f"{gallery.title} {how if total else '(none)'}"
    return _sheet(title, cells, _COLUMNS, threshold, with_reconstruction=False)


def _reconstructions(examples: Mapping[Label, Sequence[_Cell]], kind: str, threshold: float) -> Figure:
    *others, last = (f"{percentile}th" for percentile in _PERCENTILES)
    title = (
        f"{kind} normal (left) and crack (right): scores at the {', '.join(others)} and {last} "
        "percentile of each\nimage, reconstruction, error heat map"
    )
    cells = [cell for line in zip_longest(*examples.values()) for cell in line]
    return _sheet(title, cells, len(examples), threshold, with_reconstruction=True)


def _sheet(
    title: str,
    cells: Sequence[_Cell | None],
    columns: int,
    threshold: float,
    *,
    with_reconstruction: bool,
) -> Figure:
    """Sets cells out line by line, above the one scale of the heat maps.

    One pair of axes holds them all, a picture being 1 wide and 1 high, and every size is known
    beforehand: with axes for each cell, finding a layout would take most of the time.
    """
    cell_width = (3 if with_reconstruction else 2) * _STEP - _GAP
    width = columns * (cell_width + _MARGIN) - _MARGIN
    picture_in = (_WIDTH_IN - 2 * _SIDE_IN) / width
    cell_height = 1 + _CAPTION_IN / picture_in
    lines = max(1, -(-len(cells) // columns))
    cells_in = lines * cell_height * picture_in
    height_in = _TITLE_IN + cells_in + _SCALE_IN

    figure = Figure(figsize=(_WIDTH_IN, height_in))
    figure.suptitle(title, y=1 - 0.1 / height_in)
    side, bottom = _SIDE_IN / _WIDTH_IN, _SCALE_IN / height_in
    axes = figure.add_axes((side, bottom, 1 - 2 * side, cells_in / height_in))
    axes.set_axis_off()
    for place, cell in enumerate(cells):
        line, column = divmod(place, columns)
        if cell is not None:
            corner = (column * (cell_width + _MARGIN), -line * cell_height)
            _show(axes, cell, corner, cell_width, threshold, with_reconstruction)
    axes.set(xlim=(0, width), ylim=(cell_height * (1 - lines), cell_height))
    _add_scale(figure, 0.48 / height_in, 0.14 / height_in, threshold)
    return figure


def _show(
    axes: Axes,
    cell: _Cell,
    corner: tuple[float, float],
    width: float,
    threshold: float,
    with_reconstruction: bool,
) -> None:
    left, bottom = corner
    middle = left + width / 2
    axes.text(middle, bottom + 1.03, cell.caption, ha="center", va="bottom", fontsize=9)
    if cell.view is None:
        axes.text(middle, bottom + 0.5, "image is gone", ha="center", va="center")
        return
    x_SS, x_hat_SS = cell.view
    gray = ("gray", Normalize(-1, 1))
    pictures = [(x_SS, *gray), (np.square(x_hat_SS - x_SS), _COLOURS, _scale(threshold))]
    if with_reconstruction:
        pictures.insert(1, (x_hat_SS, *gray))
    for place, (picture_SS, colours, scale) in enumerate(pictures):
        start = left + place * _STEP
        axes.imshow(picture_SS, colours, scale, extent=(start, start + 1, bottom, bottom + 1))


def _scale(threshold: float) -> Normalize:
    return Normalize(0, SCALE * threshold)


def _add_scale(figure: Figure, bottom: float, height: float, threshold: float) -> None:
    multiples = np.linspace(0, SCALE, 5)
    bar = figure.colorbar(
        ScalarMappable(_scale(threshold), _COLOURS),
        cax=figure.add_axes((0.2, bottom, 0.6, height)),
        orientation="horizontal",
        extend="max",
        ticks=multiples * threshold,
        label="error heat map: squared error of a pixel (gray levels from -1 to 1), "
        f"in multiples of the threshold {threshold:.4g}",
    )
    bar.set_ticklabels([f"{multiple:g}x" for multiple in multiples])
