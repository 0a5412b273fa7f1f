"""The commit protocol on real files, without Ray: shards in any order, twice, damaged, foreign."""

import csv
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crackvae.errors import InputError
from crackvae.run import directory, finalize, shards
from crackvae.run.finalize import Judge
from crackvae.schema import MANIFEST, PART, RESULTS

FILES = 700  # three shards
JUDGE = Judge(np.linspace(0, 1, 99, dtype=np.float32), np.arange(99, dtype=np.float32), 0.05)


def create(location, files=FILES, labelled=True):
    rng = np.random.default_rng(0)
    rows = [
        {
            "image_id": f"{i}.jpg",
            "uri": f"file:///{i}.jpg",
            "label": str(rng.choice(["normal", "crack"])) if labelled else None,
            "group": f"{i // 2}",
        }
        for i in range(files)
    ]
    sets = pa.array(["internal", "external"] * (files // 2), pa.string())
    return directory.create(str(location), pa.Table.from_pylist(rows, MANIFEST), sets, {"model": "m"})


def part(run, number):
    """What scoring a shard yields: a function of the run alone."""
    rng = np.random.default_rng(number)
    rows = []
    for image_id in run.shard(number)["image_id"].to_pylist():
        score = float(rng.random())
        good = {"status": "ok", "score": score, "reconstruction_error": score, "darkness": 9.0}
        bad = {"status": "undecodable", "message": "no, \"quoted\"\nnewline"}  # fmt: skip
        rows.append({"image_id": image_id, **(good if rng.random() > 0.03 else bad)})
    return pa.Table.from_pylist(rows, PART)


def score(run, numbers):
    for number in numbers:
        shards.write_part(run.location, run.identity, number, part(run, number))


def everything(location):
    names = ["results.csv", "metrics.json", "_SUCCESS", "manifest.parquet"]
    files = [location / name for name in names]
    files += sorted((location / "results").iterdir()) + sorted(location.glob("parts/*/*"))
    return {str(path.relative_to(location)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    location = tmp_path_factory.mktemp("undisturbed")
    run = create(location)
    score(run, range(3))
    finalize.finalize(run, JUDGE)
    return location


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(history=st.lists(st.integers(0, 2), max_size=6), early=st.booleans())
def test_any_history_of_shards_ends_in_the_same_bytes(undisturbed, tmp_path_factory, history, early):
    """Written in any order, again, and after a finalize that came too early."""
    location = tmp_path_factory.mktemp("disturbed")
    score(create(location), history)
    run = directory.open_run(str(location))
    assert shards.missing_shards(run) == sorted({0, 1, 2} - set(history))
    if early and shards.missing_shards(run):
        with pytest.raises(InputError, match="run the same command again"):
            finalize.finalize(run, JUDGE)
        assert not run.finished
    score(run, shards.missing_shards(run))
    finalize.finalize(run, JUDGE)
    assert everything(location) == everything(undisturbed)


def test_a_damaged_foreign_or_short_part_counts_as_missing(tmp_path):
    run = create(tmp_path / "run")
    score(run, range(3))
    paths = sorted((tmp_path / "run").glob("parts/*/*"))
    paths[0].write_bytes(paths[0].read_bytes()[:-20])
    shards.write_part(run.location, "another run", 1, part(run, 1))
    shards.write_part(run.location, run.identity, 2, part(run, 2).slice(1))
    assert shards.missing_shards(run) == [0, 1, 2]
    score(run, [0, 1])
    with pytest.raises(InputError, match="other rows"):
        finalize.finalize(run, JUDGE)
    assert not (tmp_path / "run" / "_SUCCESS").exists()


def test_every_file_is_one_row_in_parquet_and_csv(undisturbed):
    run = directory.open_run(str(undisturbed))
    results = finalize.read_results(str(undisturbed))
    assert results.schema.names == RESULTS.names
    assert results["image_id"].equals(run.plan["image_id"])
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
    for row in finalize.read_results(str(undisturbed)).to_pylist():
        if row["status"] == "ok":
            assert (row["prediction"] == "crack") == (row["p_value"] <= JUDGE.alpha)
            assert (row["prediction"] == "crack") == (row["score"] > JUDGE.threshold)


def test_metrics_add_up(undisturbed):
    metrics = json.loads((undisturbed / "metrics.json").read_text())
    counts = metrics["counts"]
    assert counts["files"] == FILES == sum(counts["status"].values())
    assert counts["scored"] == counts["status"]["ok"] == sum(counts["predicted"].values())
    assert finalize.failed_fraction(metrics) == pytest.approx(1 - counts["scored"] / FILES)
    sets = metrics["sets"]
    cells = {name: sets[name]["confusion"] for name in ("internal", "external", "all")}
    for cell in ("tn", "fp", "fn", "tp"):
        assert cells["internal"][cell] + cells["external"][cell] == cells["all"][cell]
    assert sum(cells["all"].values()) == counts["scored"]
    auc = sets["all"]["roc_auc"]
    assert auc["low"] < auc["value"] < auc["high"]
    darkness = sets["all"]["baselines"]["darkness"]
    assert darkness["roc_auc"]["value"] == 0.5  # every image is as dark as any other
    assert metrics["threshold"]["value"] == JUDGE.threshold


def test_without_labels_there_are_no_metrics_but_counts(tmp_path):
    run = create(tmp_path / "run", labelled=False)
    score(run, range(3))
    metrics = finalize.finalize(run, JUDGE)
    assert metrics["sets"] == {}
    assert metrics["counts"]["files"] == FILES


def test_a_run_in_which_nothing_could_be_read_still_finishes(tmp_path):
    run = create(tmp_path / "run", files=4)
    rows = [{"image_id": i, "status": "unreadable", "message": "gone"}
            for i in run.plan["image_id"].to_pylist()]  # fmt: skip
    shards.write_part(run.location, run.identity, 0, pa.Table.from_pylist(rows, PART))
    metrics = finalize.finalize(run, JUDGE)
    assert metrics["counts"]["scored"] == 0
    assert finalize.failed_fraction(metrics) == 1.0


def test_a_part_carries_the_identity_of_its_run(undisturbed):
    run = directory.open_run(str(undisturbed))
    for path in undisturbed.glob("parts/*/*"):
        assert pq.read_metadata(path).metadata[b"crackvae.run"] == run.identity.encode()
