"""A full disk ends a job with a line that says so; with space again, the same command finishes it."""

import resource
import subprocess
from pathlib import Path

import pytest
from faults.drills import Drill
from faults.harness import parts

pytestmark = [pytest.mark.ray, pytest.mark.faults, pytest.mark.timeout(1800)]

_PAGE = 4096  # of memory, of which a tmpfs is made
_SIZE = 2**23


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 8 MB: a folder."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={_SIZE}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a tmpfs needs root; the file size limits are tested all the same")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _pages(paths):
    return sum(-(-path.stat().st_size // _PAGE) * _PAGE for path in paths)


def _room_until(when, reference):
    """Bytes that are enough for everything before a step, and for half of what the step writes."""
    steps = {
        "the manifest": [reference / "manifest.parquet"],
        "scoring": list(parts(reference).values()),
        "the results": [reference / "results.csv"],
        "the pictures": list((reference / "figures").iterdir()),
    }
    room = _pages(reference.glob("*.json")) + _pages(reference.glob("calibration*"))
    for step, paths in steps.items():
        if step == when:
            return room + _pages(paths) // 2
        room += _pages(paths) + (_pages(reference.glob("results/*")) if step == "the results" else 0)
    raise ValueError(when)


def _ends_with(job, reason):
    assert job.exit_code == 3, job.said
    assert "Traceback" not in job.said, job.said
    last = job.said.splitlines()[-1]
    assert last.startswith("crackvae: "), job.said
    assert reason in last
    assert "UDF" not in last  # Ray's advice about Ray


@pytest.mark.parametrize("when", ["the manifest", "scoring", "the results", "the pictures"])
def test_a_full_disk_ends_the_job_with_a_clear_line_and_loses_nothing(when, site, small_disk, tally):
    counts = tally("full disk", f"at {when}", bound=None)
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(_SIZE - _room_until(when, site.reference)))
    with Drill(site, small_disk / "run", counts) as drill:
        job = drill.start()
        _ends_with(job, "No space left on device")
        drill.struck()
        assert bool(parts(drill.run)) == (when != "the manifest")
        ballast.unlink()
        drill.start().finish()
        drill.finished()
    counts.check()


@pytest.mark.parametrize("whose", ["workers", "driver"])
def test_a_file_size_limit_ends_the_job_with_a_clear_line_and_loses_nothing(whose, site, tmp_path, tally):
    counts = tally("file size limit", f"of the {whose}", bound=None)
    with Drill(site, tmp_path / "run", counts) as drill:
        job = drill.start()
        if whose == "workers":
            assert job.until(job.scoring_workers)
            while job.running:
                _limit(job.scoring_workers(), 1024)
                job.sleep(0.05)
        else:
            assert job.until(lambda: parts(drill.run))
            _limit([job.process.pid], 100_000)
        _ends_with(job, "File too large")
        drill.struck()
        drill.start().finish()
        drill.finished()
    counts.check()


def _limit(pids, size):
    for pid in pids:
        if Path(f"/proc/{pid}").exists():
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, size))
