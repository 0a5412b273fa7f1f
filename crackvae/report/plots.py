"""The figures of a page: drawn for a telephone's width, as SVG images in data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from crackvae.model.artifact import Artifact
from crackvae.report import curves, pictures, tables
from crackvae.report.excerpt import Excerpt
from crackvae.schema import EvaluationSet, Label
from crackvae.statistics import intervals

_SIZE, _TALL = (5.2, 4.0), (5.2, 5.4)  # inches: at 390 pixels letters are as large as the text around


def draw(excerpt: Excerpt, metrics: Mapping[str, Any], model: Artifact | None) -> dict[str, tuple[str, str, str]]:
    """Every figure that the run has data for, by name: a data URI, what it shows in words, and a note below it."""
    with mpl.rc_context({**pictures.STYLE, "svg.hashsalt": "crackvae"}):
        return {name: (_uri(figure), alt, note) for name, figure, alt, note in _figures(excerpt, metrics, model)}


def _figures(
    excerpt: Excerpt, metrics: Mapping[str, Any], model: Artifact | None
) -> Iterator[tuple[str, Figure, str, str]]:
    scored, threshold = excerpt.sample[excerpt.sample["score"].notna()], metrics["threshold"]
    if len(scored):
        alt = f"Histogram of {len(scored):,} scores by label, with the threshold at {threshold['value']:.4g}"
        yield "scores", curves.scores(scored, threshold, _SIZE, excerpt.one_in), alt, ""
    shown = {}
    comparable = scored[scored["label"].notna() & ~scored["p_value_is_bound"].fillna(False).astype(bool)]
    for name in tables.reported_sets(metrics):
        rows = comparable if name == EvaluationSet.ALL else comparable[comparable["set"] == name]
        is_crack_N = (rows["label"] == str(Label.CRACK)).to_numpy()
        if metrics["sets"][name]["roc_auc"]["value"] is None:
            continue
        group_N = pd.factorize(rows["group"].fillna("\0" + rows["image_id"]))[0]
        bands = intervals.bands(rows["score"].to_numpy(), is_crack_N, group_N)
        shown[name] = (bands, metrics["sets"][name])
    if shown:
        told = "; ".join(f"{name} ROC-AUC {tables.interval(metrics['sets'][name]['roc_auc'])}" for name in shown)
        precision = "; ".join(
            f"{name} average precision {tables.interval(metrics['sets'][name]['average_precision'])}" for name in shown
        )
        roc, pr = curves.with_bands(shown, _SIZE)
        yield "roc", roc, f"ROC: {told}", told
        note = f"{precision}. Precision is that of as many cracks among the images as in this set."
        yield "precision", pr, f"Precision against recall: {precision}", note
    normals = comparable.loc[comparable["label"] == str(Label.NORMAL), "p_value"].to_numpy()
    if len(normals):
        n, alpha = threshold["calibration_normals"], threshold["alpha"]
        share = float((normals <= alpha).mean())
        alt = f"{share:.1%} of {len(normals):,} normals have a p-value of at most {alpha:g}"
        note = f"{alt}. The band is for independent images; twins among them widen it."
        yield "p_values", curves.p_values(normals, n, alpha, _SIZE), alt, note
    if model is not None and model.history:
        alt = f"Reconstruction error and KL divergence over {len(model.history)} epochs"
        yield "training", curves.training(model.history, _TALL), alt, ""


def _uri(figure: Figure) -> str:
    file = io.BytesIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode()
