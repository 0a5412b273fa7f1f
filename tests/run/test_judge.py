"""Another threshold for a scored run."""

import json

import numpy as np
import pytest
from runs import SCORE_n, create, everything, finished, score

from crackvae import cli
from crackvae.errors import InputError, UsageError
from crackvae.run import directory, finalize, judge


def test_a_threshold_of_another_quantile_rewrites_predictions_and_nothing_else(tmp_path):
    run = finished(tmp_path / "run")
    before = finalize.read_results(run.location)
    decides = judge.set_threshold(run, quantile=0.9, value=None)
    metrics = finalize.finalize(directory.open_run(run.location))
    after = finalize.read_results(run.location)
    assert decides.threshold == metrics["threshold"]["value"] == np.sort(SCORE_n)[-10]
    assert metrics["threshold"]["alpha"] == 0.1
    assert before.drop_columns(["prediction"]).equals(after.drop_columns(["prediction"]))
    for row in after.to_pylist():
        if row["status"] == "ok":
            assert (row["prediction"] == "crack") == (row["score"] > decides.threshold) == (row["p_value"] <= 0.1)
        else:
            assert row["prediction"] is None


def test_a_threshold_by_value_keeps_the_baselines(tmp_path):
    run = finished(tmp_path / "run")
    before = json.loads((tmp_path / "run" / "metrics.json").read_text())
    judge.set_threshold(run, quantile=None, value=0.5)
    after = finalize.finalize(run)
    rate = after["threshold"].pop("false_alarm_rate")
    assert rate["low"] < rate["expected"] == 0.5 < rate["high"]
    assert after["threshold"] == {
        "score": "mse", "value": 0.5, "alpha": 0.5, "set_by": "value", "calibration_normals": 99
    }  # fmt: skip
    assert after["sets"]["all"]["roc_auc"] == before["sets"]["all"]["roc_auc"]
    assert after["sets"]["all"]["recall"]["value"] > before["sets"]["all"]["recall"]["value"]
    of_both = [metrics["sets"]["all"]["baselines"]["darkness"] for metrics in (before, after)]
    ahead = [baseline.pop("model_is_ahead_by") for baseline in of_both]
    assert of_both[0] == of_both[1]
    assert ahead[0]["roc_auc"] == ahead[1]["roc_auc"]
    assert ahead[0]["recall"]["value"] < ahead[1]["recall"]["value"]


def test_the_recipes_quantile_gives_back_the_very_bytes(tmp_path):
    run = finished(tmp_path / "run")
    before = everything(tmp_path / "run")
    for options in ({"quantile": None, "value": 0.1}, {"quantile": 0.95, "value": None}):
        judge.set_threshold(run, **options)
        finalize.finalize(run)
    after = everything(tmp_path / "run")
    del after["threshold.json"]
    assert after == before


@pytest.mark.parametrize(
    "options",
    [
        {"quantile": 1.0, "value": None},
        {"quantile": 0.0, "value": None},
        {"quantile": 0.9999999999999, "value": None},
        {"quantile": 0.999, "value": None},  # 99 normals are too few
        {"quantile": None, "value": float("nan")},
    ],
)
def test_a_threshold_that_cannot_be_is_refused_and_changes_nothing(tmp_path, options):
    run = finished(tmp_path / "run")
    before = everything(tmp_path / "run")
    with pytest.raises((InputError, UsageError)):
        judge.set_threshold(run, **options)
    assert everything(tmp_path / "run") == before


def test_the_pictures_of_the_threshold_before_are_gone(tmp_path):
    run = finished(tmp_path / "run")
    (tmp_path / "run" / "figures").mkdir()
    (tmp_path / "run" / "figures" / "training.png").touch()
    finalize.finalize(run)
    assert not (tmp_path / "run" / "figures").exists()


def test_an_unfinished_run_keeps_the_threshold_for_later(tmp_path):
    run = create(tmp_path / "run")
    score(run, [0, 1])
    judge.set_threshold(run, quantile=None, value=0.5)
    with pytest.raises(InputError, match="shard 2"):
        finalize.finalize(run)
    score(run, [2])
    assert finalize.finalize(run)["threshold"]["value"] == 0.5


def test_a_run_with_a_damaged_shard_keeps_its_results_and_says_how_to_mend_it(tmp_path, capsys):
    run = finished(tmp_path / "run")
    path = next((tmp_path / "run" / "parts").rglob("*.parquet"))
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    before = everything(tmp_path / "run")
    late = tmp_path / "late.csv"
    late.write_text("image_id,label\n0.jpg,crack\n")
    for command in (["threshold", run.location, "--value", "0.5"], ["evaluate", run.location, "--labels", str(late)]):
        assert cli.main(command) == 3
        error = capsys.readouterr().err
        assert "was altered" in error
        assert "remove _SUCCESS from the run and call the command that made it" in error
        assert everything(tmp_path / "run") == before


def test_results_stop_being_complete_before_what_they_follow_from_changes(tmp_path):
    """Killed in between, the command that made the run has to finish it anew."""
    run = finished(tmp_path / "run")
    with pytest.raises(UsageError):
        judge.set_threshold(run, quantile=2.0, value=None)
    assert directory.open_run(run.location).finished
    judge.set_threshold(run, quantile=None, value=0.5)
    assert not directory.open_run(run.location).finished


def test_a_damaged_threshold_names_a_cure_that_mends_it(tmp_path):
    run = finished(tmp_path / "run")
    (tmp_path / "run" / judge.THRESHOLD).write_text("{")
    with pytest.raises(InputError, match="delete it, and call `crackvae threshold` again"):
        judge.set_threshold(run, quantile=0.9, value=None)
    (tmp_path / "run" / judge.THRESHOLD).unlink()
    judge.set_threshold(run, quantile=0.9, value=None)
