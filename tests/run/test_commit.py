"""The commit protocol on real files, without Ray: shards in any order, twice, damaged, foreign."""

import csv
import io
import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from runs import FILES, create, everything, finished, missing, part, score

from crackvae.errors import CrackvaeError, InputError
from crackvae.report.tables import counts_lines
from crackvae.run import directory, finalize, judge, shards, summary
from crackvae.run.shards import Work
from crackvae.schema import PART, RESULTS


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    location = tmp_path_factory.mktemp("undisturbed")
    finished(location)
    return location


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(history=st.lists(st.integers(0, 2), max_size=6), early=st.booleans())
def test_any_history_of_shards_ends_in_the_same_bytes(undisturbed, tmp_path_factory, history, early):
    """Written in any order, again, and after a finalize that came too early."""
    location = tmp_path_factory.mktemp("disturbed")
    score(create(location), history)
    run = directory.open_run(str(location))
    assert missing(run) == [(n, 0) for n in sorted({0, 1, 2} - set(history))]
    if early and missing(run):
        with pytest.raises(InputError, match="run the same command again"):
            finalize.finalize(run)
        assert not run.finished
    score(run, [number for number, _ in missing(run)])
    finalize.finalize(run)
    assert everything(location) == everything(undisturbed)


def test_every_file_is_one_row_in_parquet_and_csv(undisturbed):
    run = directory.open_run(str(undisturbed))
    results = finalize.read_results(str(undisturbed))
    assert results.schema.names == RESULTS.names
    assert results["image_id"].to_pylist() == [i for n in range(3) for i in run.plan.shard(n)["image_id"].to_pylist()]
    with (undisturbed / "results.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["image_id"] for row in rows] == results["image_id"].to_pylist()
    assert list(rows[0]) == RESULTS.names
    for row, expected in zip(rows, results.to_pylist(), strict=True):
        assert row["message"] == (expected["message"] or "")
        assert row["prediction"] == (expected["prediction"] or "")
        if expected["score"] is None:
            assert row["score"] == row["p_value"] == ""
        else:
            assert np.float32(row["score"]) == np.float32(expected["score"])


def test_a_failed_file_has_no_score_and_no_prediction(undisturbed):
    failed = [r for r in finalize.read_results(str(undisturbed)).to_pylist() if r["status"] != "ok"]
    assert failed
    for row in failed:
        assert row["message"]
        assert row["score"] is row["p_value"] is row["prediction"] is None


def test_predictions_follow_from_p_values(undisturbed):
    decides = judge.load(directory.open_run(str(undisturbed)))
    for row in finalize.read_results(str(undisturbed)).to_pylist():
        if row["status"] == "ok":
            assert (row["prediction"] == "crack") == (row["p_value"] <= decides.alpha)
            assert (row["prediction"] == "crack") == (row["score"] > decides.threshold)


def test_metrics_add_up(undisturbed):
    metrics = json.loads((undisturbed / "metrics.json").read_text())
    counts = metrics["counts"]
    assert counts["files"] == FILES == sum(counts["status"].values())
    assert counts["scored"] == counts["status"]["ok"] == sum(counts["predicted"].values())
    assert summary.failed_fraction(metrics) == pytest.approx(1 - counts["scored"] / FILES)
    sets = metrics["sets"]
    cells = {name: sets[name]["confusion"] for name in ("internal", "external", "all")}
    for cell in ("tn", "fp", "fn", "tp"):
        assert cells["internal"][cell] + cells["external"][cell] == cells["all"][cell]
    assert sum(cells["all"].values()) == counts["scored"]
    auc = sets["all"]["roc_auc"]
    assert auc["low"] < auc["value"] < auc["high"]
    darkness = sets["all"]["baselines"]["darkness"]
    assert darkness["roc_auc"]["value"] == 0.5  # every image is as dark as any other
    assert metrics["threshold"]["value"] == judge.load(directory.open_run(str(undisturbed))).threshold


def test_without_labels_there_are_no_metrics_but_counts(tmp_path):
    run = create(tmp_path / "run", labelled=False)
    score(run, range(3))
    metrics = finalize.finalize(run)
    assert metrics["sets"] == {}
    assert metrics["counts"]["files"] == FILES


def test_a_run_in_which_nothing_could_be_read_still_finishes(tmp_path):
    run = create(tmp_path / "run", files=4)
    rows = [{"image_id": i, "status": "unreadable", "message": "gone"}
            for i in run.plan.shard(0)["image_id"].to_pylist()]  # fmt: skip
    shards.write_part(run.location, run.identity, Work(0, 0), pa.Table.from_pylist(rows, PART))
    metrics = finalize.finalize(run)
    assert metrics["counts"]["scored"] == 0
    assert summary.failed_fraction(metrics) == 1.0


def test_failures_are_summed_up_by_reason_with_examples(tmp_path):
    run = create(tmp_path / "run", files=20)
    rows = part(run, 0, failed=0).to_pylist()
    for index in range(10):
        rows[index] |= {"status": "too_small", "message": f"{index + 1}x9 pixels", "score": None}
    for index in (14, 15):
        rows[index] |= {"status": "undecodable", "message": "cut at 12", "score": None}
    rows[12] |= {"status": "unreadable", "message": "Permission denied", "score": None}
    shards.write_part(run.location, run.identity, Work(0, 0), pa.Table.from_pylist(rows, PART))
    metrics = finalize.finalize(run)
    failures = metrics["failures"]
    assert [(f["status"], f["message"], f["count"], f["numbers_differ"]) for f in failures] == [
        ("too_small", "1x9 pixels", 10, True),
        ("undecodable", "cut at 12", 2, False),
        ("unreadable", "Permission denied", 1, False),
    ]
    assert failures[0]["examples"] == ["0.jpg", "1.jpg", "2.jpg"]
    assert counts_lines(metrics)[1:4] == [
        "  10 too_small: 0.jpg: 1x9 pixels; others have other numbers (such as 1.jpg, 2.jpg)",
        "  2 undecodable: cut at 12 (such as 14.jpg, 15.jpg)",
        "  1 unreadable: Permission denied (such as 12.jpg)",
    ]


@pytest.mark.parametrize(
    "wrong",
    [{"status": "fine"}, {"score": None}, {"score": float("nan")}, {"status": "unreadable", "score": 0.5}],
)
def test_a_row_that_does_not_add_up_fails_finalize_and_says_where(tmp_path, wrong):
    run = create(tmp_path / "run", files=20)
    rows = part(run, 0, failed=0).to_pylist()
    rows[7] |= wrong
    shards.write_part(run.location, run.identity, Work(0, 0), pa.Table.from_pylist(rows, PART))
    with pytest.raises(CrackvaeError, match=r"part-00000000.parquet: row 8: status"):
        finalize.finalize(run)
    assert not run.finished


@given(st.text(max_size=8))
@example("\uff1d1+1")
def test_no_text_of_the_csv_is_a_formula_and_each_can_be_read_back(text):
    row = dict.fromkeys(RESULTS.names) | {"image_id": text, "uri": text, "status": "ok", "message": text}
    data = finalize.csv_bytes(pa.Table.from_pylist([row], RESULTS), header=True)
    (found,) = csv.DictReader(io.StringIO(data.decode(), newline=""))
    for name in ("image_id", "uri", "message"):
        assert not found[name].startswith(
            ("=", "+", "-", "@", "\t", "\r", "\n", "|", "%", "\uff1d", "\uff0b", "\uff0d", "\uff20")
        )
        assert found[name].removeprefix("'") == text


def test_memory_holds_blocks_of_shards_and_files_of_results_go_on(tmp_path, monkeypatch):
    whole = finished(tmp_path / "whole")
    monkeypatch.setattr(finalize, "_BLOCK_SHARDS", 1)
    run = finished(tmp_path / "run")
    assert len(list((tmp_path / "run" / "results").iterdir())) == 3
    assert finalize.read_results(run.location).equals(finalize.read_results(whole.location))
    for name in ("results.csv", "metrics.json"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_files_of_others_in_a_table_do_not_count_and_damage_is_an_error_that_names_it(tmp_path):
    run = finished(tmp_path / "run")
    before = finalize.read_results(run.location)
    (tmp_path / "run" / "results" / ".DS_Store").touch()
    (tmp_path / "run" / "results" / "notes.parquet").touch()
    assert finalize.read_results(run.location) == before
    path = tmp_path / "run" / "results" / "results-00000.parquet"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"results-00000.parquet: cannot be read .* remove _SUCCESS from the run"):
        finalize.read_results(run.location)
    (tmp_path / "run" / "metrics.json").write_text("{")
    with pytest.raises(InputError, match=r"metrics.json: is damaged; remove _SUCCESS from the run"):
        summary.read(run.location)
    (tmp_path / "run" / "_SUCCESS").unlink()
    finalize.finalize(run)
    assert finalize.read_results(run.location) == before
