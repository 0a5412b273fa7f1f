"""Processes of this machine: how they begin, and that none outlives what it was for."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from crackvae import processes
from crackvae.errors import LostError


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def children(pool, count):
    """The processes of a pool, once all have begun."""
    for _ in range(count):
        pool.submit(time.sleep, 600)
    before = time.monotonic()
    while len(found := multiprocessing.active_children()) < count and time.monotonic() < before + 30:
        time.sleep(0.01)
    return [child.pid for child in found]


def test_a_killed_process_is_told_of_and_the_others_end():
    with pytest.raises(LostError, match="was killed"), processes.pool(2) as pool:  # noqa: PT012
        pids = children(pool, 2)
        lost = pool.submit(os.getpid)
        os.kill(pids[0], signal.SIGKILL)
        lost.result()
    assert len(pids) == 2
    assert not any(map(is_running, pids))


def test_an_error_ends_what_still_runs():
    with pytest.raises(KeyboardInterrupt), processes.pool(2) as pool:  # noqa: PT012
        pids = children(pool, 2)
        assert all(map(is_running, pids))
        raise KeyboardInterrupt
    assert not any(map(is_running, pids))


UNGUARDED = """
import multiprocessing, os, sys, time
from crackvae import processes
print("begun", flush=True)
processes.prepare(["torch"])
with processes.pool(2) as pool:
    print(pool.submit(eval, "'torch' in __import__('sys').modules").result(), flush=True)
    for _ in range(2):
        pool.submit(time.sleep, 600)
    while len(multiprocessing.active_children()) < 2:
        time.sleep(0.01)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    time.sleep(600)
"""


def test_they_end_with_a_process_that_is_killed_and_run_neither_its_script_nor_what_lies_beside_images(tmp_path):
    for name in ("numpy", "signal", "socket", "threading"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(9)")
    (tmp_path / "elsewhere").mkdir()
    script = tmp_path / "elsewhere" / "script.py"
    script.write_text(UNGUARDED)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, script], cwd=tmp_path, **streams) as job:
        begun, imported, pids = (job.stdout.readline().split() for _ in range(3))
        job.kill()
        assert "Traceback" not in job.stderr.read()
        assert [*begun, *imported] == ["begun", "True"]
    assert len(pids) == 2
    deadline = time.monotonic() + 30
    while any(map(is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_running, pids))
    assert job.returncode == -signal.SIGKILL


@pytest.mark.parametrize("cores", [1, 2])
def test_what_goes_on_beside_a_block_is_done_when_it_ends(cores, tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "cores", lambda: cores)
    made = tmp_path / "made"
    with processes.beside(os.mkdir, made):
        assert made.exists() or cores == 2
    assert made.exists()
    with pytest.raises(FileExistsError), processes.beside(os.mkdir, made):
        pass


def test_what_they_are_forked_from_ends_with_a_command_that_ends_at_once():
    """It imports for seconds; until it ends, a pipe behind the command would stay open."""
    script = """
import os
from multiprocessing import forkserver
from crackvae import processes
processes.prepare()
print(forkserver._forkserver._forkserver_pid, flush=True)
os._exit(0)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert not is_running(int(done.stdout))
