"""Charts from the metrics.json of nights."""

import json
import shutil

import numpy as np
import pytest
import runs

from crackvae.run import charts


def test_the_statistics_are_those_of_the_nights_beside_the_calibration(tmp_path):
    run = runs.finished(tmp_path / "run", labelled=False)
    told = charts.follow({run.location: None})
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_bytes())
    assert told["flagged"]["value"] == metrics["flagged_fraction"]
    assert told["flagged"]["calibration"] == metrics["threshold"]["false_alarm_rate"]["expected"]
    assert told["not_judged"]["value"] == pytest.approx(1 - metrics["counts"]["scored"] / metrics["counts"]["files"])
    for level in ("0.5", "0.95"):
        assert told[f"score_quantile_{level}"]["value"] == metrics["score_quantiles"][level]
        expected = np.quantile(runs.SCORE_n, float(level))
        assert told[f"score_quantile_{level}"]["calibration"] == pytest.approx(expected, abs=1e-6)


def test_a_night_whose_directory_is_gone_is_left_out_and_one_where_nothing_could_be_scored_is_not(tmp_path, caplog):
    nights = [runs.finished(tmp_path / name, labelled=False).location for name in "abc"]
    runs_of = runs.create(tmp_path / "d", labelled=False)
    for number in range(runs_of.plan.shards):
        failed = runs.part(runs_of, number, failed=1)
        runs.shards.write_part(runs_of.location, runs_of.identity, runs.Work(number, 0), failed)
    runs.finalize.finalize(runs_of)
    shutil.rmtree(nights[1])
    (tmp_path / "c" / "metrics.json").write_text('{"counts"')
    told = charts.follow(dict.fromkeys([*nights, runs_of.location]))
    assert (told["not_judged"]["nights"], told["not_judged"]["value"]) == (2, 1.0)
    assert told["flagged"]["nights"] == 1
    for night in "bc":
        assert f"{night}: is gone or damaged; the drift charts leave this night out" in caplog.text
    assert charts.follow({nights[1]: None}) == {}


def test_what_could_not_be_read_the_night_before_is_not_judged_anew(tmp_path):
    """Dangling links are tried every night: a night without anything else must not count as not judged."""
    run = runs.finished(tmp_path / "run", labelled=False).location
    usual = charts.follow({run: None})["not_judged"]
    fresh = charts.follow({run: {"files": 400, "decided": 300}})["not_judged"]
    assert fresh["value"] == 0.25 != usual["value"]
    assert charts.follow({run: {"files": 0, "decided": 0}})["not_judged"]["nights"] == 0
