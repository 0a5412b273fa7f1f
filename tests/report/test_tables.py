import pytest

from crackvae.report.tables import counts_lines, markdown, metrics_table
from crackvae.schema import BASELINES
from crackvae.statistics.metrics import METRICS


def interval(value, low=None, high=None):
    return {"value": value, "low": low, "high": high}


def scorecard(first, threshold):
    return {
        **{name: interval(0.5, 0.25, 0.75) for name in METRICS},
        "roc_auc": first,
        "confusion": {"tn": 1234, "fp": 2, "fn": 3, "tp": 4},
        "threshold": threshold,
    }


def one_set():
    ahead = {"model_is_ahead_by": {name: interval(-0.001, -0.002, 0.0005) for name in METRICS}}
    baselines = {name: scorecard(interval(None), 46.0) | ahead for name in BASELINES}
    return scorecard(interval(0.99334, 0.99211, 0.99438), 0.0123) | {"baselines": baselines}


def metrics(sets=("internal", "external", "all"), **status):
    status = {"ok": 1000, **status}
    files = sum(status.values())
    return {
        "counts": {
            "files": files,
            "scored": status["ok"],
            "status": status,
            "predicted": {"normal": status["ok"] - 35, "crack": 35},
        },
        "failures": [],
        "drift": {"tested": True, "drifted": False},
        "threshold": {
            "score": "mse",
            "value": 0.012345,
            "alpha": 0.05,
            "calibration_normals": 1500,
            "false_alarm_rate": {"expected": 0.05, "low": 0.0396, "high": 0.0615},
        },
        "flagged_fraction": 0.035,
        "sets": {name: one_set() for name in sets},
    }


def test_markdown_is_aligned_and_escapes_bars():
    assert markdown(["split", "normal"], [["train", "12,000"], ["a|b", "7"]]).split("\n") == [
        "| split | normal |",
        "| ----- | -----: |",
        "| train | 12,000 |",
        r"| a\|b  |      7 |",
    ]


def test_markdown_of_no_rows_is_a_header():
    assert markdown(["twins across", "exact"], []).count("\n") == 1


def test_each_metric_has_a_row_with_interval_or_dash():
    internal, external, by_card = metrics_table(metrics()).split("\n\n")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in internal.split("\n")]
    assert rows[0] == ["internal [95% interval]", "mse", "darkness line", "ahead by", "line filter", "ahead by"]
    assert rows[2] == ["ROC-AUC", "0.9933 [0.9921, 0.9944]", *["-", "-0.0010 [-0.0020, +0.0005]"] * 2]
    assert len(rows) == 2 + len(METRICS)
    for table in (internal, external, by_card):
        assert len({len(line) for line in table.split("\n")}) == 1


def test_cells_of_the_confusion_matrix_are_named():
    by_card = metrics_table(metrics()).split("\n\n")[-1].split("\n")
    header, _, first, *_ = ([cell.strip() for cell in line.split("|")] for line in by_card)
    row = dict(zip(header, first, strict=True))
    assert (row["TN"], row["FP"], row["FN"], row["TP"]) == ("1,234", "2", "3", "4")
    assert row["images"] == "1,243"


@pytest.mark.parametrize(("sets", "shown"), [(("internal", "all"), "internal"), (("all",), "all")])
def test_all_is_shown_only_where_nothing_else_is(sets, shown):
    header = metrics_table(metrics(sets)).split("\n")[0]
    assert shown in header
    assert ("all [" in header) == (shown == "all")


def test_counts_begin_with_what_was_not_scored():
    lines = counts_lines(metrics(undecodable=12, unreadable=8))
    assert lines[0].startswith("20 of 1,020 files not scored: 12 undecodable, 8 unreadable")
    assert lines[1:] == [
        "1,000 of 1,020 files scored",
        "35 flagged as crack (3.5%) at alpha 0.05",
        "threshold 0.01235, from 1,500 calibration normals: 5.0% of images like them are above it (4.0% to 6.2%)",
    ]


def test_nothing_is_said_of_failures_where_there_are_none():
    assert counts_lines(metrics())[0] == "1,000 of 1,000 files scored"


def test_a_run_that_scored_nothing_has_counts():
    lines = counts_lines(metrics((), ok=0, unreadable=3))
    assert lines[1] == "0 of 3 files scored"
    assert len(lines) == 3


def test_a_survey_of_few_images_is_said_not_to_be_compared():
    assert counts_lines(metrics() | {"drift": {"tested": False, "drifted": False}})[-1].startswith(
        "too few images to compare"
    )


def test_a_drifted_survey_is_said_to_be_so_first_with_the_cure():
    feature = {"statistic": 0.5, "p_value": 1e-9, "direction": "lower"}
    features = {
        "brightness": feature,
        "texture": feature | {"p_value": 0.3},
        "latent": feature | {"direction": "higher"},
    }
    drifted = metrics(undecodable=3) | {"drift": {"tested": True, "drifted": True, "size": 0.01, "features": features}}
    first, second, *_ = counts_lines(drifted)
    assert first.startswith("WARNING: the images are unlike those of the calibration: higher latent, lower brightness.")
    assert first.endswith("crackvae calibrate MODEL NORMALS --out NEW_MODEL")
    assert "not scored" in second


def test_what_nothing_can_be_said_of_comes_before_what_was_scored():
    undecided = metrics()
    undecided["counts"]["predicted"]["normal"] -= 100
    lines = counts_lines(undecided)
    assert lines[0] == (
        "nothing can be said of 100 of 1,000 scored files: the calibration is too small for photographs of their size "
        "(no crack is ruled out in them)"
    )
    assert lines[1] == "1,000 of 1,000 files scored"
    undecided["counts"]["predicted"] = {"normal": 0, "crack": 0}
    assert not any("flagged" in line for line in counts_lines(undecided))


def test_a_name_cannot_begin_a_line_of_its_own():
    failed = metrics(unreadable=1)
    reason = {"status": "unreadable", "message": "gone", "count": 1, "examples": ["a\x1b[31m\n0 of 9 files not scored"]}
    lines = counts_lines(failed | {"failures": [reason]})
    assert r"  1 unreadable: gone (such as a\x1b[31m\n0 of 9 files not scored)" in lines
