"""Figures with axes: score histogram, ROC, training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
    PercentFormatter,
    StrMethodFormatter,
)

from crackvae.report import tables
from crackvae.schema import BASELINES, EvaluationSet, Label
from crackvae.statistics import metrics as statistics

# Okabe & Ito (2008), "Color universal design": distinct for every kind of colour vision.
BLUE, VERMILLION, GREEN, GRAY = "#0072B2", "#D55E00", "#009E73", "#666666"

_BINS = 80
_COLOURS = {Label.NORMAL: BLUE, Label.CRACK: VERMILLION, None: GRAY}
_MEANING = {"mse": "mean squared error of the reconstruction", "lines": "evidence for dark lines in the worst tile"}


def scores(scored: pa.Table, threshold: Mapping[str, Any]) -> Figure:
    """Histogram of the scores by label, with the threshold.

    Args:
        scored: Rows of the results that have a score.
        threshold: As in metrics.json.
    """
    score_N = scored["score"].to_numpy().astype(np.float64)
    label_N = np.asarray(scored["label"].to_pylist(), object)
    value, alpha = threshold["value"], threshold["alpha"]
    # Logarithmic bins show every score: the cracks' are spread over many times the normals' range.
    score_N = score_N.clip(min=max(value, 1e-9) / 1000)
    ends = [max(value, 1e-9), *score_N[[score_N.argmin(), score_N.argmax()]]]
    edges = np.geomspace(0.95 * min(ends), 1.05 * max(ends), _BINS + 1)

    figure = Figure(figsize=(9, 4.6), layout="constrained")
    axes = figure.subplots()
    most = 0.0
    for label, colour in _COLOURS.items():
        chosen_N = score_N[label_N == label]
        if chosen_N.size:
            name = f"{label or 'not labelled'} ({chosen_N.size:,})"
            counts, *_ = axes.hist(
                chosen_N, edges.tolist(), histtype="stepfilled", label=name,
                facecolor=(colour, 0.35), edgecolor=colour, linewidth=1.2,
            )  # fmt: skip
            most = max(most, float(np.max(counts)))
    axes.axvline(value, color="black", linestyle="--",
                 label=f"threshold {value:.4g} (alpha {alpha:g}), above it: crack")  # fmt: skip
    if most >= 200:  # single images would not be seen beside it
        axes.set_yscale("log")
        axes.set_ylim(bottom=0.7)
    else:
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set(
        xscale="log", xlim=(edges[0], edges[-1]), ylabel="images per bin",
        xlabel=f"score: {_MEANING[threshold['score']]} (logarithmic)",
    )  # fmt: skip
    _label_plainly(axes.xaxis, (1, 2, 5))
    axes.set_title("Scores of the images, and the threshold that calls them crack")
    figure.legend(loc="outside lower center", ncols=4)
    return figure


def roc(scored: pa.Table, metrics: Mapping[str, Any]) -> Figure:
    """ROC of each set that holds both labels, of the score and of the baselines.

    Args:
        scored: Rows of the results that have a score.
        metrics: What metrics.json holds.
    """
    figure = Figure(figsize=(11.5, 6), layout="constrained")
    whole, zoom = figure.subplots(1, 2)
    labelled = scored.to_pandas().dropna(subset="label")
    smallest, points = 1.0, []
    for name, style in zip(tables.reported_sets(metrics), ("-", ":"), strict=False):
        rows = labelled if name == EvaluationSet.ALL else labelled[labelled["set"] == name]
        is_crack_N = (rows["label"] == str(Label.CRACK)).to_numpy()
        shown = zip(
            tables.scorecards(metrics, name).items(), ("score", *BASELINES), (BLUE, VERMILLION, GREEN), strict=True
        )
        for (score, card), column, colour in shown:
            if card["roc_auc"]["value"] is None:
                continue
            label = f"{name} {score}: AUC {tables.interval(card['roc_auc'])}"
            fpr_V, recall_V, _ = statistics.curve(rows[column].to_numpy(), is_crack_N)
            whole.plot(fpr_V, recall_V, style, color=colour, label=label)
            # In steps: between two thresholds there is nothing, and a logarithmic axis would bend
            # the straight line that stands for ties.
            zoom.plot(fpr_V, recall_V, style, color=colour, drawstyle="steps-post")
            points.append((*_operating_point(card), colour))
            smallest = min(smallest, 1 / np.count_nonzero(~is_crack_N))
    for fpr, recall, colour in points:
        for axes, left in ((whole, 0.0), (zoom, smallest / 2)):
            # A logarithmic axis has no place for no false alarms: its left edge stands for them.
            axes.plot(max(fpr, left), recall, "o", color=colour, markeredgecolor="black", ms=7,
                      clip_on=False, zorder=3)  # fmt: skip
    whole.plot([], [], "o", color="white", markeredgecolor="black", ms=7,
               label=f"at the threshold of alpha {metrics['threshold']['alpha']:g}")  # fmt: skip
    whole.plot([0, 1], [0, 1], color=GRAY, linewidth=0.8, label="chance")
    whole.set(xlim=(-0.01, 1.01), title="Cracks found against false alarms")
    zoom.set(xscale="log", xlim=(smallest / 2, 1), title="The same, few false alarms in detail")
    zoom.xaxis.set_minor_formatter(NullFormatter())
    for axes in (whole, zoom):
        axes.set(ylim=(-0.02, 1.02), xlabel="false alarms: share of normals called crack",
                 ylabel="recall: share of cracks called crack")  # fmt: skip
        axes.grid(alpha=0.3)
        axes.yaxis.set_major_formatter(PercentFormatter(1))
    whole.xaxis.set_major_formatter(PercentFormatter(1))
    zoom.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{share * 100:g}%"))
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def training(history: Sequence[Mapping[str, float]]) -> Figure:
    """Errors and KL divergence by epoch.

    Args:
        history: As in the model artifact.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    errors, divergence = figure.subplots(1, 2)
    records = pd.DataFrame(history)
    errors.plot(records["epoch"], records["mse"], "o-", ms=4, color=BLUE, label="training")
    errors.plot(records["epoch"], records["val_mse"], "o-", ms=4, color=VERMILLION, label="validation normals")
    divergence.plot(records["epoch"], records["kl"], "o-", ms=4, color=GREEN)
    errors.set(yscale="log", ylabel="mean squared error per pixel", title="Reconstruction error")
    _label_plainly(errors.yaxis, (1, 1.5, 2, 3, 4, 5, 6, 8))
    errors.legend()
    divergence.set(ylabel="nats per tile", title="KL divergence of the latent code")
    divergence.set_ylim(bottom=0)
    for axes in (errors, divergence):
        axes.set_xlabel("epoch")
        axes.set_xlim(0.5, len(history) + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
    return figure


def _label_plainly(axis: Axis, steps: Sequence[float]) -> None:
    """Labels a logarithmic axis that may span less than a decade, at these steps of each."""
    axis.set_major_locator(LogLocator(subs=steps))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_locator(NullLocator())


def _operating_point(card: Mapping[str, Any]) -> tuple[float, float]:
    """False alarm rate and recall at the threshold."""
    cell = card["confusion"]
    return cell["fp"] / (cell["fp"] + cell["tn"]), cell["tp"] / (cell["tp"] + cell["fn"])
