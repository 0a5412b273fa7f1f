"""Runs `crackvae score` in a process of its own, to be hit from outside: no hook is in the product."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq
from inotify_simple import INotify, flags

from crackvae.images import synthetic

LIMIT = 240.0  # seconds after which a process is taken to hang
_GONE = 30.0
_POLL = 0.002


@dataclass(frozen=True)
class Site:
    """What is scored again and again.

    Attributes:
        model: Directory of the model.
        survey: Folder of images, about 2% of them damaged.
        reference: The run directory of an undisturbed run.
        shard_of: Shard of each image, by its path below the survey.
        opened: How often each was opened in the undisturbed run.
        seconds: What that run took: until the first image was opened, the last part, the end.
    """

    model: Path
    survey: Path
    reference: Path
    shard_of: Mapping[str, int] = field(default_factory=dict)
    opened: Mapping[str, int] = field(default_factory=dict)
    seconds: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def shards(self) -> int:
        return max(self.shard_of.values()) + 1


def write_survey(folder: Path, files: int = 2900) -> None:
    """Images that all differ, so that a row in the wrong place shows; every fiftieth is damaged."""
    synthetic.write_survey(folder, normals=files * 9 // 10, cracks=files // 10, size=64)
    for index, path in enumerate(sorted(folder.rglob("*.jpg"))[7::50]):
        data = path.read_bytes()
        path.write_bytes([b"", b"text", data[: len(data) // 2], data[:-300], b"\xff" * 99][index % 5])


def prepare(model: Path, folder: Path) -> Site:
    """Writes a survey and scores it undisturbed."""
    survey, reference = folder / "survey", folder / "reference"
    write_survey(survey)
    site = Site(model, survey, reference)
    opens = Opens(survey)
    with Job(site, reference) as job:
        job.until(lambda: opens.count().total())
        first = job.seconds
        job.until((reference / "metrics.json").exists)
        job.finish()
        last = max(path.stat().st_mtime for path in parts(reference).values()) - job.started_at
        end = job.seconds
    plan = pq.read_table(reference / "manifest.parquet", columns=["uri", "shard"]).to_pylist()
    shard_of = {row["uri"].removeprefix(f"{survey.as_uri()}/"): row["shard"] for row in plan}
    return Site(model, survey, reference, shard_of, opens.close(), (first, last, end))


def parts(run: Path) -> dict[str, Path]:
    """The shards' files that are visible, by their path below parts/."""
    return {str(path.relative_to(run)): path for path in run.glob("parts/*/*.parquet") if path.name[0] != "."}


class Job:
    """A `crackvae score` process with all that it starts: they share its session id.

    Args:
        site: What to score.
        run: The run directory.
        cpus: The processors that it may use; by default all.
        environment: Added to this process's.
        address: Of the cluster that it is sent to; by default it computes here.
    """

    def __init__(
        self,
        site: Site,
        run: Path,
        *,
        cpus: Sequence[int] = (),
        environment: Mapping[str, str] | None = None,
        address: str | None = None,
    ) -> None:
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  no pipe: what outlives the driver would hold it open
        self.started_at, self._start = time.time(), time.monotonic()
        on = ["taskset", "--cpu-list", ",".join(map(str, cpus))] if cpus else []
        command = ["score", str(site.model), str(site.survey), "--out", str(run)]
        if address:
            command = ["submit", *command, "--address", address]
        self.process = subprocess.Popen(
            [*on, sys.executable, "-m", "crackvae", *command],
            env={**os.environ, "RAY_worker_niceness": "0", **(environment or {})},
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._said,
        )

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        self._said.close()

    @property
    def seconds(self) -> float:
        """Since it was started."""
        return time.monotonic() - self._start

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    @property
    def exit_code(self) -> int:
        """As a shell has it: 128 and the signal's number where one ended it."""
        try:
            code = self.process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {LIMIT} s: {self.said}") from None
        return code if code >= 0 else 128 - code

    @property
    def said(self) -> str:
        """What it wrote to standard error."""
        self._said.seek(0)
        return self._said.read().decode()

    def until(self, condition: Callable[[], object], most: float = LIMIT) -> bool:
        """Waits for a condition, and returns whether it came true before the process ended."""
        deadline = time.monotonic() + most
        while not (true := condition()) and self.running:
            assert time.monotonic() < deadline, f"nothing happened in {most} s: {self.said}"
            time.sleep(_POLL)
        return bool(true)

    def sleep(self, seconds: float) -> bool:
        """Waits, and returns whether the process still runs."""
        deadline = time.monotonic() + seconds
        while self.running and time.monotonic() < deadline:
            time.sleep(_POLL)
        return self.running

    def finish(self, exit_code: int = 0) -> None:
        """Waits for the process and all that it started."""
        assert self.exit_code == exit_code, self.said
        self.gone()

    def kill(self) -> None:
        """SIGKILL of the driver; what it started is left to itself."""
        self.process.kill()
        self.process.wait()

    def catches(self, number: int) -> bool:
        """Whether it has a handler for a signal."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return bool(int(status.partition("SigCgt:")[2].split()[0], 16) >> (number - 1) & 1)

    def scoring_workers(self) -> list[int]:
        return scoring_workers(self.process.pid)

    def gone(self) -> bool:
        """Waits until nothing of it runs, and returns whether that came about by itself.

        Ray's agents, which touch no run, notice the death of their parent only after a minute: they
        are not waited for, but ended here.
        """
        deadline = time.monotonic() + _GONE
        while (left := _no_agents(self.process.pid)) and time.monotonic() < deadline:
            time.sleep(0.05)
        self.end()
        return not left

    def end(self) -> None:
        """Ends what still runs of it."""
        end(self.process.pid)
        self.process.poll()


def with_signal(pid: int, number: int) -> None:
    """Sends a signal to a process that may be gone."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def processes(session: int) -> dict[int, str]:
    """The processes of a session and what they call themselves."""
    found = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            state, _, _, sid = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:4]
            if int(sid) == session and state not in "ZX":
                found[int(pid)] = Path(f"/proc/{pid}/cmdline").read_text()
        except OSError:
            continue
    return found


def _no_agents(session: int) -> dict[int, str]:
    return {pid: title for pid, title in processes(session).items() if "agent" not in title.lower()}


def end(session: int) -> None:
    """Ends the processes of a session, by their ids."""
    while found := processes(session):
        for pid in found:
            with_signal(pid, signal.SIGKILL)
        time.sleep(0.05)


def scoring_workers(session: int) -> list[int]:
    """The processes of a session that score: Ray's, or on one machine forks of a process that has imported all."""
    found = processes(session)
    servers = [pid for pid, title in found.items() if "multiprocessing.forkserver" in title]
    forks = [pid for pid in servers if _parent(pid) in servers]
    return forks or rays_scoring_workers(session)


def rays_scoring_workers(session: int) -> list[int]:
    """Ray's alone: on a head its dashboard has forks, too."""
    titles = processes(session).items()
    return [pid for pid, title in titles if title.startswith("ray::") and "Score" in title]


def _parent(pid: int) -> int:
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


class Opens:
    """Counts how often each file of a survey is opened, whoever does it."""

    def __init__(self, folder: Path) -> None:
        self._inotify = INotify()
        self._names = {}
        for sub in filter(Path.is_dir, [folder, *folder.rglob("*")]):
            self._names[self._inotify.add_watch(sub, flags.OPEN)] = sub.relative_to(folder)
        self._counts: Counter[str] = Counter()

    def count(self) -> Counter[str]:
        """So far, by the path below the survey."""
        for event in self._inotify.read(timeout=0):
            assert not event.mask & flags.Q_OVERFLOW, "more events than the kernel keeps"
            if not event.mask & flags.ISDIR:
                self._counts[str(self._names[event.wd] / event.name)] += 1
        return self._counts

    def close(self) -> Counter[str]:
        counts = self.count()
        self._inotify.close()
        return counts


def repeated(site: Site, opened: Mapping[str, int]) -> int:
    """How often shards were read beyond the one time that each needs.

    A file that the pictures show is opened for them too; it does not count.
    """
    once = min(site.opened[name] for name in site.shard_of)
    extra: Counter[int] = Counter()
    for name, shard in site.shard_of.items():
        if site.opened[name] == once:
            extra[shard] = max(extra[shard], opened.get(name, 0) - once)
    return extra.total()


def half_done(site: Site, run: Path, left_out: int) -> None:
    """Makes a run directory as one that was killed with so many shards to go."""
    shutil.copytree(
        site.reference, run, ignore=shutil.ignore_patterns("results*", "metrics.json", "_SUCCESS", "figures")
    )
    for path in sorted(parts(run).values())[:left_out]:
        path.unlink()
