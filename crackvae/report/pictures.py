"""The pictures of a finished run, in its figures/.

::

    scores.png                                        histogram with the threshold
    roc.png                                           against the baselines; needs labels
    training.png                                      of the model
    {true,false}_{positives,negatives}.png            galleries of what is labelled
    findings.png                                      gallery of what is not labelled
    reconstructions.png                               original, reconstruction, error
    photographs/*.jpg                                 instead of galleries, where images are photographs
"""

from __future__ import annotations

import io
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow.compute as pc

from crackvae import storage
from crackvae.errors import ArtifactError, InputError
from crackvae.model import artifact
from crackvae.model.artifact import Artifact
from crackvae.report import excerpt as excerpts
from crackvae.report import tables
from crackvae.report.excerpt import Excerpt
from crackvae.run import directory, finalize, maps, summary
from crackvae.run.directory import Run
from crackvae.schema import BASELINES
from crackvae.terminal import log

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.typing import RcKeyType

LAST = "training.png"  # written last: with it the pictures are complete

_COLUMNS = ["image_id", "uri", "label", "set", "score", "p_value", "prediction", "width", "height", *BASELINES]
_OF_PHOTOGRAPHS = ["mm_per_pixel", "mm_per_pixel_error", "p_value_is_bound"]
STYLE: dict[RcKeyType, Any] = {
    "font.size": 10,
    "figure.titlesize": 12,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "text.parse_math": False,  # image ids may hold dollar signs
}


def model_of(run: Run, location: str | None) -> Artifact | None:
    """The model that scored a run: the one given, or the one that lies where it lay then."""
    if location is not None:
        given = artifact.load(location)
        if given.fingerprint != run.facts.get("model"):
            raise InputError(f"{location}: is not the model that scored {run.location}")
        return given
    for place in filter(None, (run.model, artifact.PRETRAINED)):
        try:
            found = artifact.load(place)
        except (ArtifactError, OSError):
            continue
        if found.fingerprint == run.facts.get("model"):
            return found
    return None


def draw(run_location: str, model_location: str | None = None) -> list[str]:
    """Draws every picture that the run has data for.

    Args:
        run_location: A finished run.
        model_location: The model artifact that scored it; None looks where it lay then.

    Returns:
        Locations of the files; of none where there is no model.

    Raises:
        InputError: The run is not finished, or another model scored it.
        ArtifactError: There is no usable model.
    """
    run = directory.open_finished(run_location)
    model = model_of(run, model_location)
    if model is None:
        log.warning("%s: has no pictures, as the model that scored it does not lie where it lay", run_location)
        return []

    import matplotlib as mpl  # takes a second, which only pictures are worth

    from crackvae.report import curves, galleries, photographs

    metrics = summary.read(run_location)
    excerpt, kinds = read(run_location, model)
    with mpl.rc_context(STYLE):
        figures = {}
        if kinds:
            figures["scores"] = curves.scores(excerpt.sample, metrics["threshold"], one_in=excerpt.one_in)
            if model.photographs is None:
                figures |= galleries.draw(excerpt, kinds, model, metrics["threshold"]["value"])
        sets = [metrics["sets"][name] for name in tables.reported_sets(metrics)]
        if any(card["roc_auc"]["value"] is not None for card in sets):
            figures["roc"] = curves.roc(excerpt.sample, metrics)
        figures["training"] = curves.training(model.history)
        images = {f"{name}.png": _png(figure) for name, figure in figures.items()}
    if model.photographs is not None and kinds:
        drawn = photographs.draw(run_location, excerpt.all(), model, seed=int(run.identity[:8], 16))
        images = {f"photographs/{name}": data for name, data in drawn} | images
    folder = run.path(directory.FIGURES)
    maps.remove(run.location)  # before the last picture, after which nobody comes here again
    for name, data in images.items():
        storage.write_bytes(storage.join(folder, name), data)
    return [storage.join(folder, name) for name in images]


def read(run_location: str, model: Artifact) -> tuple[Excerpt, Counter[tuple[Any, Any]]]:
    """Of the rows that have a score, what is drawn; and how many there are by label and prediction."""
    from crackvae.report import galleries, photographs

    columns = _COLUMNS + (_OF_PHOTOGRAPHS if model.photographs else [])
    kinds: Counter[tuple[Any, Any]] = Counter()

    def scored() -> Iterator[pd.DataFrame]:
        for block in finalize.read_blocks(run_location, columns=columns):
            rows = block.filter(pc.is_valid(block["score"]))
            kinds.update(zip(rows["label"].to_pylist(), rows["prediction"].to_pylist(), strict=True))
            yield rows.to_pandas()

    return excerpts.take(scored(), photographs.highest if model.photographs else galleries.candidates), kinds


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # A file's name may hold letters that the font lacks: a box is drawn for each.
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        # Of two galleries, by level 6 in 0.5 s, by this in 0.2 s and a tenth more bytes.
        figure.savefig(buffer, format="png", dpi=110, pil_kwargs={"compress_level": 3})
    return buffer.getvalue()
