"""Killed at any moment, a run is finished by the same command to the same bytes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

import loopback
import pytest
from faults import drills, harness, nodes
from faults.comparing import Difference, compare
from faults.harness import Job, parts

pytestmark = [pytest.mark.ray, pytest.mark.timeout(3600)]


def test_a_run_stopped_and_killed_has_one_process_at_a_time_and_ends_in_the_same_bytes(site, tmp_path, tally):
    counts, rng = tally("SIGTERM, SIGKILL", "scoring, finalize"), random.Random(1)
    with drills.Drill(site, tmp_path / "run", counts) as drill:
        first = drill.start()
        assert drills.scoring_moment(drill, first, rng)
        first.process.send_signal(signal.SIGSTOP)  # or it would be done before the second has begun
        with Job(site, drill.run) as second:
            assert second.exit_code == 3
            assert "another process works on this run" in second.said.splitlines()[-1]
        first.process.send_signal(signal.SIGCONT)
        first.process.send_signal(signal.SIGTERM)
        _is_stopped(first, 143)
        drill.struck()
        killed = drill.start()
        assert drills.finalize_moment(drill, killed, rng)
        killed.kill()
        drill.struck()
        drill.start().finish()
        drill.finished()
    counts.check()


def _is_stopped(job: Job, exit_code: int) -> None:
    assert job.exit_code == exit_code, job.said
    assert "Traceback" not in job.said, job.said
    assert "the same command goes on" in job.said.splitlines()[-1]


@pytest.mark.faults
@pytest.mark.parametrize(
    ("aim", "where", "faults"),
    [
        (drills.any_moment, "any moment, start included", 20),
        (drills.scoring_moment, "while scoring", 15),
        (drills.finalize_moment, "finalize and pictures", 15),
    ],
)
def test_fifty_killed_drivers_lose_nothing(aim, where, faults, site, tmp_path, tally):
    counts = tally("SIGKILL of the driver", where)
    drills.hits(site, tmp_path, aim, faults, counts)
    counts.check()


@pytest.mark.faults
def test_workers_killed_again_and_again_lose_nothing(site, tmp_path, tally):
    counts = tally("SIGKILL of scoring workers", "at work, and as they start")
    for seed in range(3):
        drills.worker_kills(site, tmp_path / f"run-{seed}", counts, seed)
    counts.check()


@pytest.mark.faults
@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_is_told_to_stop_does_so_and_says_how_to_go_on(number, exit_code, site, tmp_path, tally):
    counts = tally("Ctrl-C" if number == signal.SIGINT else "SIGTERM", "any moment, start included")

    def stop(job):
        began = time.monotonic()
        if number == signal.SIGINT:  # a terminal's Ctrl-C goes to the whole process group
            os.killpg(job.process.pid, number)
        else:
            job.process.send_signal(number)
        _is_stopped(job, exit_code)
        counts.slowest = max(counts.slowest or 0.0, time.monotonic() - began)

    def any_moment(drill, job, rng):  # Python starts without a handler, on a busy machine for seconds, and ends so
        return drills.any_moment(drill, job, rng) and job.until(lambda: job.catches(number))

    drills.hits(site, tmp_path, any_moment, 10, counts, stop)
    counts.check()
    assert counts.slowest < 30


@pytest.mark.faults
def test_one_worker_or_two_and_any_order_of_shards_write_the_same_bytes(site, tmp_path, tally):
    counts = tally("one worker, shards in another order", "no fault")
    run = tmp_path / "run"
    harness.half_done(site, run, left_out=0)
    for path in random.Random(0).sample(sorted(parts(run).values()), site.shards * 2 // 3):
        path.unlink()
    with Job(site, run, cpus=[min(os.sched_getaffinity(0))]) as job:
        job.finish()
    with Job(site, tmp_path / "alone", cpus=[min(os.sched_getaffinity(0))]) as job:
        job.finish()
    counts.runs, counts.difference = 2, compare(site.reference, run) + compare(site.reference, tmp_path / "alone")
    assert counts.difference == Difference()


@contextmanager
def cluster() -> Iterator[subprocess.Popen[str]]:
    """A cluster of `nodes.py`, in a folder of its own with a short name: sockets lie in it."""
    with tempfile.TemporaryDirectory(prefix="cv") as folder:
        process = subprocess.Popen(
            [sys.executable, nodes.__file__],
            env={
                **os.environ,
                "RAY_TMPDIR": folder,
                "RAY_worker_niceness": "0",
                "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1",
            },
            start_new_session=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            yield process
        finally:
            process.communicate(timeout=harness.LIMIT)
            harness.end(process.pid)


@pytest.mark.faults
def test_lost_nodes_lose_nothing(site, tmp_path, tally):
    counts = tally("loss of a node", "while scoring, one of two")
    rng = random.Random(0)
    with cluster() as process, drills.Drill(site, tmp_path / "run", counts) as drill:
        address = process.stdout.readline().strip()
        job = drill.start(environment={"RAY_ADDRESS": address})
        for lost in range(2):
            done = len(parts(drill.run))
            assert job.until(lambda done=done, lost=lost: len(parts(drill.run)) > done + lost)
            time.sleep(rng.uniform(0, 0.3))
            process.stdin.write("lose one\n")
            process.stdin.flush()
            scorers = int(process.stdout.readline())
            counts.bound += max(0, 4 - drills.WORKERS)  # two nodes of two processors each
            drill.struck()
            assert scorers, "no worker of the run was on the lost node"
        job.finish()
        drill.finished()
    counts.check()


@pytest.mark.faults
@pytest.mark.parametrize("strike", ["kill", "warn"])
def test_a_submitted_job_outlives_one_of_two_nodes(strike, site, tmp_path, tally):
    kind = {"kill": "SIGKILL of a raylet", "warn": "spot warning: SIGTERM, 30 s later SIGKILL"}[strike]
    counts = tally(kind, "submitted job half done, one of two nodes")
    with loopback.Cluster(nodes=2) as cluster, drills.Drill(site, tmp_path / "run", counts) as drill:
        job = drill.start(address=cluster.address, environment=loopback.CLIENT)
        assert job.until(lambda: len(parts(drill.run)) >= site.shards // 2 - 1)
        lost = cluster.scoring_node()
        assert len(parts(drill.run)) < site.shards - 1, "it was too late to lose a node"
        getattr(cluster, strike)(lost)
        drill.struck()
        job.finish()
        drill.finished()
    counts.check()
    assert not counts.leftovers
