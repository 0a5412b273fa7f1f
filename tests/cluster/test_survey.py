"""Scoring jobs on a real local Ray."""

import os
import shutil
import signal
import threading
from pathlib import Path

import numpy as np
import pytest

from crackvae import AnomalyScorer
from crackvae.cluster import scoring, survey
from crackvae.dataset import manifest
from crackvae.errors import ExitCode, RefusedError
from crackvae.images import synthetic
from crackvae.model import artifact
from crackvae.run import directory, finalize, shards

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """1,000 images, 20 of them damaged in ten ways, and a file that is none."""
    folder = tmp_path_factory.mktemp("damaged") / "survey"
    synthetic.write_survey(folder, normals=250, cracks=0, size=64)
    originals = sorted((folder / "normal").iterdir())
    for copy in range(1, 4):
        for path in originals:
            shutil.copy(path, path.with_name(f"{copy}-{path.name}"))
    paths = sorted(folder.rglob("*.jpg"))
    assert len(paths) == 1000
    for index, path in enumerate(paths[7::50]):
        data = path.read_bytes()
        path.write_bytes([b"", b"text", data[: len(data) // 2], data[:-300], b"\xff" * 99][index % 5])
    (folder / "notes.txt").write_text("not an image")
    return folder


@pytest.fixture(scope="module")
def run(model, damaged, tmp_path_factory, ray_session):
    out = tmp_path_factory.mktemp("run") / "run"
    return scoring.score(str(model), [str(damaged)], str(out))


def test_a_thousand_files_with_twenty_damaged_are_a_thousand_rows(run):
    results = finalize.read_results(run.run).to_pylist()
    assert len(results) == 1000
    failed = [row for row in results if row["status"] != "ok"]
    assert len(failed) == 20
    assert all(row["message"] and row["prediction"] is None for row in failed)
    assert run.metrics["counts"]["status"] == {"ok": 980, "undecodable": 20}
    assert run.exit_code == ExitCode.DONE


def test_the_job_scores_as_the_library_does(run, model):
    results = finalize.read_results(run.run).to_pandas()
    frame = AnomalyScorer.load(str(model)).score(results["uri"])
    np.testing.assert_allclose(frame["score"], results["score"], rtol=1e-5)
    np.testing.assert_array_equal(frame["status"], results["status"])
    np.testing.assert_array_equal(frame["darkness"], results["darkness"])


def test_a_finished_run_is_left_alone(run, model, damaged):
    before = os.stat(f"{run.run}/results.csv").st_mtime_ns
    again = scoring.score(str(model), [str(damaged)], run.run)
    assert again.metrics == run.metrics
    assert os.stat(f"{run.run}/results.csv").st_mtime_ns == before


def test_resuming_scores_only_what_is_missing_to_the_same_bytes(run, model, damaged, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(run.run, out)
    kept = out / "parts/00000/part-00000001.parquet"
    modified = kept.stat().st_mtime_ns
    for gone in ("_SUCCESS", "results.csv", "metrics.json", "parts/00000/part-00000000.parquet"):
        (out / gone).unlink()
    (damaged / "added-later.jpg").write_bytes(b"")  # the run's own manifest counts
    resumed = scoring.score(str(model), [str(damaged)], str(out))
    (damaged / "added-later.jpg").unlink()
    assert kept.stat().st_mtime_ns == modified
    for name in ("results.csv", "metrics.json", "parts/00000/part-00000000.parquet"):
        assert (out / name).read_bytes() == Path(run.run, name).read_bytes()
    assert resumed.metrics == run.metrics


def test_another_model_or_source_is_refused(run, model, survey, tmp_path):
    with pytest.raises(RefusedError, match="sources was"):
        scoring.score(str(model), [str(survey)], run.run)
    loaded = artifact.load(str(model))
    provenance = {**loaded.provenance, "date": "another"}
    changed = artifact.Artifact(loaded.config, loaded.weights, loaded.calibration, loaded.history, provenance)
    artifact.save(changed, str(tmp_path / "other"))
    source = [uri for uri, _ in directory.open_run(run.run).facts["sources"]]
    with pytest.raises(RefusedError, match="model was"):
        scoring.score(str(tmp_path / "other"), source, run.run)


def test_reading_and_scoring_apart_writes_the_same_bytes(run, model, tmp_path, ray_session):
    """The two stages that a GPU needs, here both on the CPU."""
    original = directory.open_run(run.run)
    plan = original.plan.select(manifest.MANIFEST.names)
    facts = {k: v for k, v in original.facts.items() if k != "manifest"}
    split = directory.create(str(tmp_path / "run"), plan, original.plan["set"], facts)
    assert split.identity == original.identity
    backend = survey.resolve_backend("cpu", artifact.load(str(model)).config.scoring.precision)
    survey.score_missing(split, str(model), backend, fused=False)
    for number in range(original.shards):
        name = shards.part_name(number)
        ours = (tmp_path / "run" / "parts" / name).read_bytes()
        assert ours == Path(run.run, "parts", name).read_bytes()


def scoring_workers():
    """The processes of our own Ray that score: no other Ray on this machine is touched."""
    parents = {}
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
            title = Path(f"/proc/{pid}/cmdline").read_text()
        except OSError:
            continue
        parents[pid] = (int(stat.rpartition(")")[2].split()[1]), "_ReadAndScore" in title)
    for pid, (parent, scores) in parents.items():
        ancestor = parent
        while ancestor in parents and ancestor != os.getpid():
            ancestor = parents[ancestor][0]
        if scores and ancestor == os.getpid():
            yield pid


def test_killed_workers_lose_nothing(model, damaged, run, tmp_path, ray_session):
    stop, killed = threading.Event(), []

    def kill():
        while not stop.wait(1.5) and len(killed) < 2:
            for pid in scoring_workers():
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
                break

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        outcome = scoring.score(str(model), [str(damaged)], str(tmp_path / "run"))
    finally:
        stop.set()
        thread.join()
    assert killed
    assert outcome.metrics == run.metrics
    ours = (tmp_path / "run" / "results.csv").read_bytes()
    assert ours == Path(run.run, "results.csv").read_bytes()


def test_more_failures_than_allowed_keep_the_results_and_change_the_exit_code(model, tmp_path, ray_session):
    folder = tmp_path / "survey"
    synthetic.write_survey(folder, normals=3, cracks=0, size=64)
    (folder / "normal" / "bad.jpg").write_bytes(b"text")
    outcome = scoring.score(str(model), [str(folder)], str(tmp_path / "run"))
    assert outcome.exit_code == ExitCode.TOO_MANY_FAILED
    assert finalize.read_results(outcome.run).num_rows == 4
    again = scoring.score(str(model), [str(folder)], str(tmp_path / "run"))
    assert again.exit_code == ExitCode.TOO_MANY_FAILED


def test_evaluation_reports_internal_and_external(model, split_manifest, tmp_path, ray_session):
    outcome = scoring.evaluate(str(model), str(split_manifest), str(tmp_path / "run"))
    table = manifest.read(str(split_manifest))
    for name, split in (("internal", "test"), ("external", "external")):
        cells = outcome.metrics["sets"][name]["confusion"]
        rows = manifest.rows(table, split=split)
        assert cells["fn"] + cells["tp"] == manifest.rows(rows, label="crack").num_rows
        assert cells["tn"] + cells["fp"] == manifest.rows(rows, label="normal").num_rows
    results = finalize.read_results(outcome.run).to_pandas()
    trained_on = manifest.rows(table, split="train")["image_id"].to_pylist()
    assert not set(results["image_id"]) & set(trained_on)
