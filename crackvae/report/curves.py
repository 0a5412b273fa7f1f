"""Figures with axes: score histogram, ROC, precision and recall, calibration, training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, NullLocator, PercentFormatter
from numpy.typing import NDArray

from crackvae.report import tables
from crackvae.schema import BASELINES, EvaluationSet, Label
from crackvae.statistics import calibration
from crackvae.statistics import metrics as statistics
from crackvae.statistics.intervals import Bands

# Okabe & Ito (2008), "Color universal design": distinct for every kind of colour vision.
BLUE, VERMILLION, GREEN, GRAY = "#0072B2", "#D55E00", "#009E73", "#666666"

Size = tuple[float, float]

_POINT: dict[str, Any] = {"marker": "o", "linestyle": "", "markeredgecolor": "black", "markersize": 7}
_NARROW = 7  # inches
_BINS = 80
_COLOURS = {Label.NORMAL: BLUE, Label.CRACK: VERMILLION, None: GRAY}
_MEANING = {"mse": "mean squared error of the reconstruction", "lines": "evidence for dark lines in the worst tile"}


def scores(scored: pd.DataFrame, threshold: Mapping[str, Any], size: Size = (9, 4.6), one_in: int = 1) -> Figure:
    """Histogram of the scores by label, with the threshold.

    Args:
        scored: Rows of the results that have a score.
        threshold: As in metrics.json.
        size: Of the figure in inches.
        one_in: How many there are for one of the rows.
    """
    score_N = scored["score"].to_numpy(np.float64)
    label_N = scored["label"].astype(object).where(scored["label"].notna(), None).to_numpy()
    value, alpha = threshold["value"], threshold["alpha"]
    # Logarithmic bins show every score: the cracks' are spread over many times the normals' range.
    score_N = score_N.clip(min=max(value, 1e-9) / 1000)
    ends = [max(value, 1e-9), *score_N[[score_N.argmin(), score_N.argmax()]]]
    edges = np.geomspace(0.95 * min(ends), 1.05 * max(ends), _BINS + 1)

    figure = Figure(figsize=size, layout="constrained")
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
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.set(
        xscale="log", xlim=(edges[0], edges[-1]),
        ylabel=f"images per bin, of one in {one_in} at random" if one_in > 1 else "images per bin",
        xlabel=f"score: {_MEANING[threshold['score']]} (logarithmic)",
    )  # fmt: skip
    _label_plainly(axes.xaxis, (1, 2, 5))
    axes.set_title("Scores of the images, and the threshold that calls them crack")
    figure.legend(loc="outside lower center", ncols=4 if size[0] > _NARROW else 1)
    return figure


def roc(scored: pd.DataFrame, metrics: Mapping[str, Any]) -> Figure:
    """ROC of each set that holds both labels, of the score and of the baselines.

    Args:
        scored: Rows of the results that have a score.
        metrics: What metrics.json holds.
    """
    figure = Figure(figsize=(11.5, 6), layout="constrained")
    whole, zoom = figure.subplots(1, 2)
    labelled = scored.dropna(subset="label")
    if "p_value_is_bound" in labelled:  # of photographs; such scores are in no metric
        labelled = labelled[~labelled["p_value_is_bound"].astype(bool)]
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
            fpr_V, recall_V = statistics.curve(rows[column].to_numpy(), is_crack_N)
            whole.plot(fpr_V, recall_V, style, color=colour, label=label)
            # In steps: between two thresholds there is nothing, and a logarithmic axis would bend
            # the straight line that stands for ties.
            zoom.plot(fpr_V, recall_V, style, color=colour, drawstyle="steps-post")
            points.append((*_operating_point(card), colour))
            smallest = min(smallest, 1 / np.count_nonzero(~is_crack_N))
    for fpr, recall, colour in points:
        for axes, left in ((whole, 0.0), (zoom, smallest / 2)):
            # A logarithmic axis has no place for no false alarms: its left edge stands for them.
            axes.plot(max(fpr, left), recall, **_POINT, color=colour, clip_on=False, zorder=3)
    whole.plot([], [], **_POINT, color="white", label=f"at the threshold of alpha {metrics['threshold']['alpha']:g}")
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
    zoom.xaxis.set_major_formatter(_percent)
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def with_bands(curves: Mapping[str, tuple[Bands, Mapping[str, Any]]], size: Size) -> tuple[Figure, Figure]:
    """ROC, and precision against recall, each with pointwise bands and the point of the threshold.

    Args:
        curves: By the name of the set: what `intervals.bands` says, and its metrics.
        size: Of a figure in inches.
    """
    roc_figure, pr_figure = figures = [Figure(figsize=size, layout="constrained") for _ in range(2)]
    roc_axes, pr_axes = (figure.subplots() for figure in figures)
    post: Literal["post"] = "post"  # in steps: between two thresholds there is nothing
    pre: Literal["pre"] = "pre"
    for (name, (bands, card)), colour in zip(curves.items(), (BLUE, VERMILLION, GREEN), strict=False):
        fpr, recall = _operating_point(card)
        cell = card["confusion"]
        precision = cell["tp"] / max(1, cell["tp"] + cell["fp"])
        for axes, x_G, y_3G, steps, x, y in (
            (roc_axes, bands.fpr_G, bands.recall_3G, post, max(fpr, bands.fpr_G[0]), recall),
            (pr_axes, bands.recall_G, bands.precision_3G, pre, recall, precision),
        ):
            axes.fill_between(x_G, y_3G[1], y_3G[2], step=steps, color=colour, alpha=0.25, linewidth=0)
            axes.step(x_G, y_3G[0], where=steps, color=colour, label=name)
            axes.plot(x, y, **_POINT, color=colour, clip_on=False, zorder=3)
    roc_axes.set(xscale="log", xlabel="false alarms: share of normals called crack (logarithmic)",
                 ylabel="recall: share of cracks called crack", title="Cracks found against false alarms")  # fmt: skip
    pr_axes.set(xlabel="recall: share of cracks called crack", ylabel="precision: share of flags that are cracks",
                title="Precision against recall", xlim=(0, 1.01))  # fmt: skip
    roc_axes.xaxis.set_major_formatter(_percent)
    pr_axes.xaxis.set_major_formatter(PercentFormatter(1))
    for axes, figure in zip((roc_axes, pr_axes), figures, strict=True):
        axes.set_ylim(top=1.01)
        axes.grid(alpha=0.3)
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.plot([], [], **_POINT, color="white", label="at the threshold")
        axes.fill_between([], [], [], color=GRAY, alpha=0.25, label="95% band")
        figure.legend(loc="outside lower center", ncols=2)
    return roc_figure, pr_figure


def p_values(p_N: NDArray[np.float64], calibration_normals: int, alpha: float, size: Size) -> Figure:
    """How many of the normals have a p-value of at most p, beside what is promised.

    Args:
        p_N: p-values of normals.
        calibration_normals: What they were compared with.
        alpha: Where the threshold lies.
        size: Of the figure in inches.
    """
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    least = 1 / (calibration_normals + 1)
    p_G = np.geomspace(least, 1, 200)
    low_G, high_G = calibration.alarm_range(p_G, calibration_normals, len(p_N))
    share_G = np.searchsorted(np.sort(p_N), p_G * (1 + 1e-9), side="right") / len(p_N)
    bottom = min(least, 1 / len(p_N)) / 2
    axes.fill_between(p_G, low_G.clip(bottom), high_G.clip(bottom), color=GRAY, alpha=0.25, linewidth=0,
                      label="95% of what to expect")  # fmt: skip
    axes.plot(p_G, p_G, color=GRAY, linewidth=0.8, label="promised")
    axes.step(p_G, share_G.clip(bottom), where="post", color=BLUE, label=f"{len(p_N):,} normals")
    axes.axvline(alpha, color="black", linestyle="--", label=f"alpha {alpha:g}")
    axes.set(xscale="log", yscale="log", xlim=(least, 1), ylim=(bottom, 1.1), xlabel="p",
             ylabel="share of normals with at most this p", title="Are the p-values what they say?")  # fmt: skip
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(_percent)
        axis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def training(history: Sequence[Mapping[str, float]], size: Size = (10, 4)) -> Figure:
    """Errors and KL divergence by epoch.

    Args:
        history: As in the model artifact.
        size: Of the figure in inches.
    """
    figure = Figure(figsize=size, layout="constrained")
    errors, divergence = figure.subplots(1, 2) if size[0] > _NARROW else figure.subplots(2, 1)
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


def _percent(share: float, _: float) -> str:
    return f"{share * 100:g}%"


def _label_plainly(axis: Axis, steps: Sequence[float]) -> None:
    """Labels a logarithmic axis that may span less than a decade, at these steps of each."""
    axis.set_major_locator(LogLocator(subs=steps))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())


def _operating_point(card: Mapping[str, Any]) -> tuple[float, float]:
    """False alarm rate and recall at the threshold."""
    cell = card["confusion"]
    return cell["fp"] / (cell["fp"] + cell["tn"]), cell["tp"] / (cell["tp"] + cell["fn"])
