"""Scoring jobs, on a real local Ray and without."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import local
import numpy as np
import pyarrow as pa
import pytest
import runs
from PIL import Image

from crackvae import AnomalyScorer
from crackvae.cluster import pipeline, scoring, session, survey, workers
from crackvae.cluster.workers import Job
from crackvae.dataset import manifest
from crackvae.errors import ExitCode, InputError, RefusedError
from crackvae.images import synthetic
from crackvae.model import artifact
from crackvae.run import check, directory, finalize, shards
from crackvae.schema import Status

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


@pytest.fixture
def here():
    with local.without_ray():
        yield


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


def test_resuming_scores_only_what_is_missing_or_altered_to_the_same_bytes(run, model, damaged, tmp_path, caplog):
    out = tmp_path / "run"
    shutil.copytree(run.run, out)
    kept = out / "parts/00000/part-00000001.parquet"
    modified = kept.stat().st_mtime_ns
    for gone in ("_SUCCESS", "results.csv", "metrics.json", "parts/00000/part-00000000.parquet"):
        (out / gone).unlink()
    with open(out / "parts/00000/part-00000003.parquet", "r+b") as stream:
        stream.truncate(1000)
    (damaged / "added-later.jpg").write_bytes(b"")  # the run's own manifest counts
    caplog.set_level(logging.INFO, "crackvae")
    with local.without_ray():  # which the run was scored by
        resumed = scoring.score(str(model), [str(damaged)], str(out))
    (damaged / "added-later.jpg").unlink()
    assert "part-00000003.parquet: is truncated, or no file of a run; it is scored again" in caplog.text
    assert "going on with the 1,000 files listed at" in caplog.text
    assert "2 of 4 shards are left" in caplog.text
    assert kept.stat().st_mtime_ns == modified
    assert runs.everything(out) == runs.everything(Path(run.run))
    assert resumed.metrics == run.metrics


def test_a_run_that_only_lacks_its_end_is_finished_without_ray(run, model, damaged, tmp_path, monkeypatch):
    out = tmp_path / "run"
    shutil.copytree(run.run, out)
    (out / "_SUCCESS").unlink()
    monkeypatch.setattr(session, "session", None)
    assert scoring.score(str(model), [str(damaged)], str(out)).metrics == run.metrics
    assert runs.everything(out) == runs.everything(Path(run.run))


def test_a_table_that_grew_blocks_neither_a_resumed_nor_a_finished_run(model, damaged, tmp_path, here, caplog):
    paths = sorted(map(str, damaged.rglob("*.jpg")))
    table = tmp_path / "table.csv"
    table.write_text("\n".join(["uri", *paths[:5]]))
    first = scoring.score(str(model), [str(table)], str(tmp_path / "run"))
    table.write_text("\n".join(["uri", *paths[:9]]))
    caplog.set_level(logging.INFO, "crackvae")
    assert scoring.score(str(model), [str(table)], str(tmp_path / "run")).metrics == first.metrics
    assert "has changed since it was listed" in caplog.text


def test_a_retry_scores_the_rows_of_one_status_and_keeps_all_others(model, tmp_path, here):
    folder, away = tmp_path / "survey", tmp_path / "away"
    synthetic.write_survey(folder, normals=300, cracks=0, size=64)
    (folder / "normal" / "text.jpg").write_bytes(b"text")
    undisturbed = scoring.score(str(model), [str(folder)], str(tmp_path / "undisturbed"))
    table, _ = manifest.build([str(folder)])
    manifest.write(table, str(tmp_path / "manifest.parquet"))
    away.mkdir()
    absent = sorted((folder / "normal").iterdir())[:7]
    for path in absent:
        path.rename(away / path.name)
    arguments = (str(model), [str(tmp_path / "manifest.parquet")], str(tmp_path / "run"))
    first = scoring.score(*arguments)
    assert first.metrics["counts"]["status"] == {"ok": 293, "undecodable": 1, "unreadable": 7}
    kept = tmp_path / "run/parts/00000/part-00000001.parquet"
    for path in absent:
        (away / path.name).rename(path)
    second = scoring.score(*arguments, retry=Status.UNREADABLE)
    assert second.metrics == undisturbed.metrics
    assert sorted(p.name for p in kept.parent.iterdir()) == [
        "part-00000000.a1.parquet", "part-00000000.parquet", "part-00000001.parquet"
    ]  # fmt: skip
    again = finalize.read_results(second.run).to_pylist()
    for row, expected in zip(again, finalize.read_results(undisturbed.run).to_pylist(), strict=True):
        assert row == expected
    assert check.check(second.run).problems == []
    modified = os.stat(f"{second.run}/_SUCCESS").st_mtime_ns
    assert scoring.score(*arguments, retry=Status.UNREADABLE).metrics == second.metrics  # none is left
    assert os.stat(f"{second.run}/_SUCCESS").st_mtime_ns == modified
    with pytest.raises(InputError, match="is no run"):
        scoring.score(*arguments[:2], str(tmp_path / "other"), retry=Status.UNREADABLE)


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
    plan = pa.concat_tables(original.plan.shard(number) for number in range(original.plan.shards))
    kept = artifact.load(str(model)).calibration
    calibration = kept.as_table().drop_columns("image_id")
    facts = {k: v for k, v in original.facts.items() if k not in ("manifest", "calibration", "schema_version")}
    split = directory.create(str(tmp_path / "run"), [plan.drop_columns("shard")], facts, calibration)
    assert split.identity == original.identity
    backend = survey.resolve_backend("cpu", artifact.load(str(model)).config.scoring.precision)
    job = Job(split.location, split.identity, str(model), backend)
    told = list(pipeline.scored(job, shards.missing(split)[0], fused=False))
    assert [json.loads(shard)["shard"] for shard in told] == list(range(original.plan.shards))
    for number in range(original.plan.shards):
        name = shards.part_name(number)
        ours = (tmp_path / "run" / name).read_bytes()
        assert ours == Path(run.run, name).read_bytes()


def test_a_node_of_other_versions_does_not_even_read_for_a_run(run, model):
    opened = directory.open_run(run.run)
    backend = survey.resolve_backend("cpu", artifact.load(str(model)).precision)
    job = Job(opened.location, opened.identity, str(model), replace(backend, versions="torch 1.0"))
    with pytest.raises(RefusedError, match="a node has other hardware or versions"):
        workers.TileReader(job)


def test_a_worker_that_finds_another_model_refuses_it(run, model, tmp_path):
    """It was replaced while the run went on, or the node has another one at that place."""
    opened, loaded = directory.open_run(run.run), artifact.load(str(model))
    artifact.save(replace(loaded, provenance={**loaded.provenance, "date": "later"}), str(tmp_path / "other"))
    backend = survey.resolve_backend("cpu", loaded.precision)
    workers.whole(Job(opened.location, opened.identity, str(model), backend))
    with pytest.raises(RefusedError, match=r"other: is not the model that the run began with; .* put that one back"):
        workers.whole(Job(opened.location, opened.identity, str(tmp_path / "other"), backend))


def test_an_error_of_cuda_ends_the_worker_that_met_it():
    """It would fail every shard to come, at once, and so be given most of them."""
    code = """
import torch
from crackvae.cluster import pipeline
with pipeline._ending_with_its_gpu():
    raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
print("went on")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "crackvae: a worker ends: CUDA error: an illegal memory access was encountered\n"


@pytest.mark.parametrize("on", ["one core", "all cores"])
def test_one_machine_scores_without_ray_to_the_same_bytes(on, model, damaged, run, tmp_path):
    out = tmp_path / "here"
    without = "import sys; sys.modules['ray'] = None; from crackvae import cli; sys.exit(cli.main(sys.argv[1:]))"
    command = [sys.executable, "-c", without, "score", str(model), str(damaged), "--out", str(out)]
    core = str(min(os.sched_getaffinity(0)))
    done = subprocess.run(
        ["taskset", "-c", core, *command] if on == "one core" else command, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    ours, by_ray = runs.everything(out), runs.everything(Path(run.run))
    assert {name: ours[name] for name in by_ray} == by_ray


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


def test_more_failures_than_allowed_keep_the_results_and_change_the_exit_code(model, tmp_path, here):
    folder = tmp_path / "survey"
    synthetic.write_survey(folder, normals=3, cracks=0, size=64)
    (folder / "normal" / "bad.jpg").write_bytes(b"text")
    outcome = scoring.score(str(model), [str(folder)], str(tmp_path / "run"))
    assert outcome.exit_code == ExitCode.TOO_MANY_FAILED
    assert finalize.read_results(outcome.run).num_rows == 4
    again = scoring.score(str(model), [str(folder)], str(tmp_path / "run"))
    assert again.exit_code == ExitCode.TOO_MANY_FAILED


def test_evaluation_by_another_split_than_the_models_is_told(model, split_manifest, tmp_path, caplog):
    table = manifest.rows(manifest.read(str(split_manifest)), split="train", label="normal")
    manifest.write(table, str(tmp_path / "untested.parquet"))
    with pytest.raises(InputError, match="no labelled image has split"):
        scoring.evaluate(str(model), str(tmp_path / "untested.parquet"), str(tmp_path / "run"))
    assert "whether it has seen what is tested is not known" in caplog.text


def test_evaluation_reports_internal_and_external(model, split_manifest, tmp_path, here, caplog):
    outcome = scoring.evaluate(str(model), str(split_manifest), str(tmp_path / "run"))
    assert "was not trained on" not in caplog.text
    table = manifest.read(str(split_manifest))
    for name, split in (("internal", "test"), ("external", "external")):
        cells = outcome.metrics["sets"][name]["confusion"]
        rows = manifest.rows(table, split=split)
        assert cells["fn"] + cells["tp"] == manifest.rows(rows, label="crack").num_rows
        assert cells["tn"] + cells["fp"] == manifest.rows(rows, label="normal").num_rows
    results = finalize.read_results(outcome.run).to_pandas()
    trained_on = manifest.rows(table, split="train")["image_id"].to_pylist()
    assert not set(results["image_id"]) & set(trained_on)


BUG = """
import ctypes, sys

if "crackvae.dataset.decoder_process" in sys.orig_argv:
    import simplejpeg

    genuine = simplejpeg.decode_jpeg
    simplejpeg.decode_jpeg = lambda data, **options: (
        ctypes.string_at(0) if b"bug" in data else genuine(data, **options)
    )
"""


def test_a_file_that_kills_its_decoder_is_one_row_and_its_neighbours_are_scored(model, tmp_path, here):
    """As a process, whose workers' decoders have a real segmentation fault in store."""
    folder = tmp_path / "survey"
    synthetic.write_survey(folder, normals=40, cracks=0, size=64)
    undisturbed = scoring.score(str(model), [str(folder)], str(tmp_path / "undisturbed"))
    guilty = folder / "normal" / sorted(os.listdir(folder / "normal"))[17]
    with Image.open(guilty) as image:
        image.load()
    image.save(guilty, "JPEG", comment="bug")
    (tmp_path / "sitecustomize.py").write_text(BUG)
    command = [sys.executable, "-m", "crackvae", "score", str(model), str(folder), "--out", str(tmp_path / "run")]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == ExitCode.DONE, done.stderr
    assert "1 of 40 files not scored: 1 crashed" in done.stdout.splitlines()[0]
    rows = finalize.read_results(str(tmp_path / "run")).to_pylist()
    crashed = rows.pop(17)
    assert (crashed["status"], crashed["prediction"]) == ("crashed", None)
    assert crashed["message"] == "the decoder was ended by SIGSEGV"
    expected = finalize.read_results(undisturbed.run).to_pylist()
    assert rows == expected[:17] + expected[18:]


def test_a_retry_in_the_process_that_scored_before_knows_of_the_retry(model, tmp_path):
    folder = tmp_path / "survey"
    synthetic.write_survey(folder, normals=3, cracks=0, size=64)
    (folder / "normal" / "broken.jpg").write_text("text")
    twice = """
import sys
from crackvae.cluster import scoring
from crackvae.schema import Status
model, folder, out = sys.argv[1:]
scoring.score(model, [folder], out)
scoring.score(model, [folder], out, retry=Status.UNDECODABLE)
"""
    out = tmp_path / "run"
    command = [sys.executable, "-c", twice, str(model), str(folder), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert directory.open_run(str(out)).retries == (Status.UNDECODABLE,)
    assert shards.missing(directory.open_run(str(out)))[0] == []
