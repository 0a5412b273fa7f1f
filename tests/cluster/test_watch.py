"""Metrics, scraped from Ray's own port while a job runs and after it, and what the job's log says."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time

import pytest
import runs
from scraping import scrape, until

from crackvae import logs
from crackvae.cluster import metrics, scoring, watch
from crackvae.images import synthetic
from crackvae.run import directory, finalize, shards
from crackvae.schema import Status

pytestmark = pytest.mark.ray

_LEFT = ("ray_crackvae_shards_left", None)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Six shards of files; the last 13 files are no images."""
    folder = tmp_path_factory.mktemp("photographs") / "survey"
    synthetic.write_survey(folder, normals=160, cracks=0, size=64)
    originals = sorted((folder / "normal").iterdir())
    for copy in range(7):
        for path in originals:
            os.link(path, path.with_name(f"{copy}-{path.name}"))
    for number in range(13):
        (folder / "normal" / f"text-{number}.jpg").write_text("text")
    return folder


def test_a_running_job_is_watched_and_its_counts_are_those_of_its_results(model, photographs, tmp_path, ray_session):
    out, seen, ended = str(tmp_path / "run"), [], threading.Event()

    def watching():
        while not ended.wait(0.2):
            if directory.exists(out):
                seen.append(scrape(directory.read_header(out).short_identity))

    thread = threading.Thread(target=watching)
    thread.start()
    try:
        outcome = scoring.score(str(model), [str(photographs)], out)
    finally:
        ended.set()
        thread.join()
    left = [told[_LEFT] for told in seen if _LEFT in told]
    assert any(0 < shards_left <= 6 for shards_left in left)
    assert sorted(left, reverse=True) == left
    run = directory.open_run(out).short_identity
    files = {("ray_crackvae_photographs_total", status): n for status, n in outcome.metrics["counts"]["status"].items()}
    assert files == {("ray_crackvae_photographs_total", s): n for s, n in {"ok": 1280, "undecodable": 13}.items()}
    # The port may tell the last counts a second later; gauges of a job that has ended go
    told = until(lambda: now if files.items() <= (now := scrape(run)).items() and _LEFT not in now else None)
    assert told, f"of {files}, the port told {scrape(run)}"
    assert told["ray_crackvae_megapixels_total", None] == pytest.approx(1280 * 64 * 64 / 1e6)
    stages = {stage: value for (name, stage), value in told.items() if name == "ray_crackvae_stage_seconds_total"}
    assert stages.keys() == {"decode", "score", "commit"}
    assert all(0 < seconds < 600 for seconds in stages.values())
    assert {name for name, _ in told} == {
        f"ray_crackvae_{name}_total" for name in ("photographs", "megapixels", "stage_seconds")
    }


def test_the_gauges_of_a_job_that_is_stuck_stay_at_the_port(tmp_path, ray_session):
    run = runs.create(tmp_path / "run")
    told = {"shard": 0, "files": 256, "status": {"ok": 256}, "megapixels": 1.0, "judged": 256, "flagged": 64}
    with metrics.ExportedWatch(run, 3, lambda files: None) as seen:
        seen.count({**told, "seconds": {"score": 1.0}})
        wanted = {_LEFT: 2, ("ray_crackvae_flagged_share", None): 0.25}
        assert until(lambda: wanted.items() <= scrape(run.short_identity).items())
        time.sleep(5)  # Ray's port lets go of what is not set again for two seconds, in tests
        assert wanted.items() <= scrape(run.short_identity).items()
    assert until(lambda: not scrape(run.short_identity).keys() & wanted.keys())


def test_what_a_retry_scores_is_counted_and_what_it_copies_is_not(model, tmp_path, ray_session):
    folder = tmp_path / "survey"
    synthetic.write_survey(folder, normals=20, cracks=0, size=64)
    absent = sorted((folder / "normal").iterdir())[:3]
    listing = tmp_path / "manifest.csv"
    listing.write_text("\n".join(["uri", *map(str, sorted((folder / "normal").iterdir()))]))
    (tmp_path / "away").mkdir()
    for path in absent:
        path.rename(tmp_path / "away" / path.name)
    arguments = (str(model), [str(listing)], str(tmp_path / "run"))
    scoring.score(*arguments)
    for path in absent:
        shutil.move(tmp_path / "away" / path.name, path)
    scoring.score(*arguments, retry=Status.UNREADABLE)
    run = directory.read_header(str(tmp_path / "run")).short_identity
    wanted = {("ray_crackvae_photographs_total", "ok"): 20, ("ray_crackvae_photographs_total", "unreadable"): 3}
    assert until(lambda: wanted.items() <= scrape(run).items()), scrape(run)


def test_a_drift_alarm_is_counted_by_statistic(ray_session):
    charts = {"flagged": {"alarm": "higher"}, "not_judged": {"alarm": None}}
    before = scrape().get(("ray_crackvae_drift_alarms_total", "flagged"), 0)
    metrics.count_alarms(charts)
    assert until(lambda: scrape().get(("ray_crackvae_drift_alarms_total", "flagged")) == before + 1)
    assert ("ray_crackvae_drift_alarms_total", "not_judged") not in scrape()


def test_a_shard_of_photographs_tells_their_stages():
    clock = watch.Clock()
    for _ in clock.split([1, 2], "decode", "score"):
        time.sleep(0.02)
    assert clock.seconds["score"] > 0.03 > clock.seconds["decode"]


def test_the_log_of_a_job_has_run_and_shard_as_text_and_as_json(model, photographs, tmp_path):
    def score(out, **environment):
        command = [sys.executable, "-m", "crackvae", "score", str(model), str(photographs), "--out", str(out)]
        done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stderr.splitlines(), directory.open_run(str(out))

    lines, run = score(tmp_path / "text")
    told = [line for line in lines if line.startswith(f"run {run.short_identity}, shard ")]
    assert len(told) == run.plan.shards == 6
    assert all(" flagged, decode " in line for line in told)
    assert any(line.startswith(f"run {run.short_identity}, shard 0: 256 ok, ") for line in told)

    (tmp_path / "text" / shards.part_name(3)).unlink()
    (tmp_path / "text" / "_SUCCESS").unlink()
    lines, run = score(tmp_path / "text", **{logs.FORMAT: "json"})
    records = [json.loads(line) for line in lines]
    assert {record["run"] for record in records} == {run.short_identity}
    assert [record["shard"] for record in records if "shard" in record] == [3]
    assert all(record["level"] == "info" and record["time"].endswith("+00:00") for record in records)
    assert finalize.read_results(run.location).num_rows == 1293
