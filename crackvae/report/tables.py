"""metrics.json in words: Markdown tables that also read well on a terminal.

metrics is what it holds, and threshold and drift are what stands there by these names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from crackvae.run import summary
from crackvae.schema import EvaluationSet, Label, Status
from crackvae.statistics.metrics import METRICS
from crackvae.terminal import printable

_NAMES = {
    "roc_auc": "ROC-AUC",
    "average_precision": "average precision",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "accuracy": "accuracy",
    "fpr_at_95_recall": "false alarms at 95% recall",
    "recall_at_1pct_fpr": "recall at 1% false alarms",
    "recall_at_5pct_fpr": "recall at 5% false alarms",
    "precision_at_1_in_10": "precision, 1 in 10 cracked",
    "precision_at_1_in_100": "precision, 1 in 100 cracked",
    "precision_at_1_in_1000": "precision, 1 in 1,000 cracked",
}
_BASELINES = {"darkness": "darkness line", "line_filter": "line filter"}
_LEVELS = {
    "flagged": "the share flagged",
    "not_judged": "the share not judged",
    "score_quantile_0.5": "the median score",
    "score_quantile_0.95": "the 95th percentile of scores",
}
_CELLS = ("tn", "fp", "fn", "tp")


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, padded so that its columns are straight where it is read as text.

    Args:
        header: A name per column; the first column is set flush left, all others flush right.
        rows: Cells, as many in each row as in the header.

    Returns:
        Lines without a final newline.
    """
    lines = [[cell.replace("|", r"\|") for cell in row] for row in (header, *rows)]
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first = cells[0].ljust(widths[0])
        rest = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        return f"| {' | '.join([first, *rest])} |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([line(lines[0]), line(rule), *map(line, lines[1:])])


def metrics_table(metrics: Mapping[str, Any]) -> str:
    """Every metric of each set of labels with its interval beside the baselines', then the confusion matrices."""
    made = [markdown(*set_table(metrics, name)) for name in reported_sets(metrics)]
    return "\n\n".join([*made, markdown(*decisions_table(metrics))])


def set_table(metrics: Mapping[str, Any], name: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows: every metric of a set with its interval, the baselines' beside it."""
    cards = scorecards(metrics, name)
    own, *baselines = cards
    columns = [f"{name} [95% interval]", own, *(text for baseline in baselines for text in (baseline, "ahead by"))]
    rows = []
    for metric in METRICS:
        rows.append([_NAMES[metric]])
        for card in cards.values():
            ahead = card.get("model_is_ahead_by")
            rows[-1] += [interval(card[metric]), *([interval(ahead[metric], "+.4f")] if ahead else [])]
    return columns, rows


def decisions_table(metrics: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: the confusion matrix of each set and score."""
    rows = [
        [f"{name} {score}", f"{sum(card['confusion'].values()):,}",
         *(f"{card['confusion'][cell]:,}" for cell in _CELLS), f"{card['threshold']:.4g}"]
        for name in reported_sets(metrics)
        for score, card in scorecards(metrics, name).items()
    ]  # fmt: skip
    return ["threshold's decisions", "images", *map(str.upper, _CELLS), "threshold"], rows


def counts_lines(metrics: Mapping[str, Any]) -> list[str]:
    """What became of the files of a run: first whether to believe it, then what was not scored, and why."""
    counts, threshold = metrics["counts"], metrics["threshold"]
    failed = {status: n for status, n in counts["status"].items() if status != Status.OK}
    of_drift = drift_lines(metrics["drift"]) if counts["scored"] else []
    lines = of_drift if metrics["drift"]["drifted"] else []
    if failed:
        reasons = ", ".join(f"{count:,} {status}" for status, count in failed.items())
        total = f"{sum(failed.values()):,} of {counts['files']:,} files not scored"
        lines.append(f"{total}: {reasons} (no crack is ruled out in them)")
        for reason in metrics["failures"]:
            first, *others = reason["examples"]
            told = f"  {reason['count']:,} {reason['status']}: "
            if reason.get("numbers_differ"):
                told += f"{first}: {reason['message']}; others have other numbers (such as {', '.join(others)})"
            else:
                told += f"{reason['message']} (such as {', '.join(reason['examples'])})"
            lines.append(told)
    decided = sum(counts["predicted"].values())
    too_high = " and a threshold this high" if threshold.get("set_by") == "value" else ""
    if decided < counts["scored"]:
        lines.append(
            f"nothing can be said of {counts['scored'] - decided:,} of {counts['scored']:,} scored files: the "
            f"calibration is too small for photographs of their size{too_high} (no crack is ruled out in them)"
        )
    lines.append(f"{counts['scored']:,} of {counts['files']:,} files scored")
    if decided:
        lines.append(
            f"{counts['predicted'][Label.CRACK]:,} flagged as crack "
            f"({metrics['flagged_fraction']:.1%}) at alpha {threshold['alpha']:g}"
        )
    bounds = metrics.get("p_values_that_are_bounds")
    if bounds:
        lines.append(f"{bounds:,} p-values are upper bounds: too few calibration images are as large")
    lines.append(threshold_line(threshold))
    return [printable(line) for line in (lines if metrics["drift"]["drifted"] else [*lines, *of_drift])]


def threshold_line(threshold: Mapping[str, Any]) -> str:
    """A threshold and what it promises."""
    source = "set by hand, beside" if threshold.get("set_by") == "value" else "from"
    normals = f"{threshold['calibration_normals']:,} calibration normals"
    rate = threshold["false_alarm_rate"]
    promised = f"{rate['expected']:.1%} of images like them are above it ({rate['low']:.1%} to {rate['high']:.1%})"
    return f"threshold {threshold['value']:.4g}, {source} {normals}: {promised}"


def drift_lines(drift: Mapping[str, Any]) -> list[str]:
    """A warning where the images are unlike those of the calibration, or too few for that to be known."""
    if not drift["tested"]:
        return ["too few images to compare with those of the calibration: whether its p-values hold here is not known"]
    return [f"WARNING: {text}" for text in summary.warnings(drift)]


def alarm_lines(drift: Mapping[str, Any]) -> list[str]:
    """What has moved to another level in a nightly survey, by the drift of latest.json."""
    return [
        f"DRIFT ALARM: {_LEVELS[name]} is lastingly {chart['alarm']}: {chart['value']:.4g}, in the nights before "
        f"{chart['mean']:.4g} (standard deviation {chart['spread']:.2g}), of the calibration {chart['calibration']:.4g}"
        for name, chart in drift.items()
        if chart["alarm"]
    ]


def reported_sets(metrics: Mapping[str, Any]) -> list[str]:
    """The sets to show: `all` only where the run tells no internal from external ones."""
    sets = list(metrics["sets"])
    return [name for name in sets if name != EvaluationSet.ALL] or sets


def scorecards(metrics: Mapping[str, Any], name: str) -> dict[str, Mapping[str, Any]]:
    """The metrics of a set, by the name of the score: the model's, then those of the baselines."""
    card = metrics["sets"][name]
    baselines = {_BASELINES[name]: other for name, other in card["baselines"].items()}
    return {metrics["threshold"]["score"]: card, **baselines}


def interval(metric: Mapping[str, float | None], form: str = ".4f") -> str:
    """A metric with its interval, `-` where it is undefined; each number in a form as of `format`."""
    value, low, high = metric["value"], metric["low"], metric["high"]
    if value is None:
        return "-"
    if low is None or high is None:
        return f"{value:{form}}"
    return f"{value:{form}} [{low:{form}}, {high:{form}}]"
