"""Hits runs at random moments, lets them be finished, and adds up what that did to them."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from faults.comparing import Difference, compare, leftovers, missing_pictures, torn
from faults.harness import Job, Opens, Site, half_done, parts, repeated, with_signal

WORKERS = len(os.sched_getaffinity(0))  # crackvae scores one shard per core at a time
_HITS_PER_RUN = 6
_BOOT = 1.0  # seconds in which Python starts


@dataclass
class Tally:
    """What came of one kind of fault.

    Attributes:
        kind: Of fault.
        where: When it struck.
        faults: How often.
        runs: How many runs were finished and compared.
        difference: Of those runs from the undisturbed one.
        torn: Shards' files that were not whole, looked at after each fault.
        leftovers: Temporary files in finished runs.
        flying: Shards that were being scored when a fault struck.
        repeated: Shards that were read again.
        bound: What `repeated` may be at most; None where the fault is no kill, but lasts.
        outlived: Faults half a minute after which something of the job still ran.
        slowest: Seconds until the process had ended, where it was asked to.
        seconds: All of it took.
        site_files: Images of the survey.
        site_shards: And its shards.
    """

    kind: str
    where: str
    faults: int = 0
    runs: int = 0
    difference: Difference = field(default_factory=Difference)
    torn: int = 0
    leftovers: int = 0
    flying: int = 0
    repeated: int = 0
    bound: int | None = 0
    outlived: int = 0
    slowest: float | None = None
    seconds: float = 0.0
    site_files: int = 0
    site_shards: int = 0

    def row(self) -> dict[str, Any]:
        """For the report."""
        files = len(self.difference.files)
        return {**vars(self), **vars(self.difference), "difference": None, "files": files}

    def check(self) -> None:
        """Asserts that nothing was lost, double, different, torn, left running or done in vain."""
        assert self.faults
        assert self.runs
        assert self.difference == Difference()
        assert self.torn == 0
        assert self.outlived == 0
        assert self.bound is None or self.repeated <= self.bound


class Drill:
    """One run that is hit again and again, and its opened images.

    Args:
        site: What to score.
        run: The run directory.
        tally: To be added to.
    """

    def __init__(self, site: Site, run: Path, tally: Tally) -> None:
        self.site, self.run, self.tally = site, run, tally
        tally.site_files, tally.site_shards = len(site.shard_of), site.shards
        self._opens, self._began = Opens(site.survey), time.monotonic()
        self._before: Mapping[str, int] = {}
        self._jobs = ExitStack()

    def __enter__(self) -> Drill:
        return self

    def __exit__(self, *_: object) -> None:
        self._jobs.close()
        self.tally.seconds += time.monotonic() - self._began

    def start(self, **options: Any) -> Job:
        self._before = dict(self._opens.count())
        return self._jobs.enter_context(Job(self.site, self.run, **options))

    @property
    def opened(self) -> int:
        """How often images were opened since the start."""
        return self._opens.count().total() - sum(self._before.values())

    def struck(self) -> None:
        """Notes the state of things right after a fault."""
        now = self._opens.count()
        begun = {shard for name, shard in self.site.shard_of.items() if now[name] > self._before.get(name, 0)}
        done = {int(Path(name).name[5:13]) for name in parts(self.run)}
        self.tally.faults += 1
        self.tally.flying += len(begun - done)
        if self.tally.bound is not None:
            self.tally.bound += WORKERS
        self.tally.torn += len(torn(self.site.reference, self.run))

    def finished(self) -> None:
        """Compares the run, which has been finished."""
        self.tally.runs += 1
        self.tally.difference += compare(self.site.reference, self.run)
        self.tally.leftovers += len(leftovers(self.run))
        self.tally.repeated += repeated(self.site, self._opens.close())
        assert not missing_pictures(self.site.reference, self.run)


Aim = Callable[[Drill, Job, random.Random], bool]


def any_moment(drill: Drill, job: Job, rng: random.Random) -> bool:
    """Waits for a moment of the whole duration; returns whether the job still runs."""
    return job.sleep(rng.uniform(_BOOT, drill.site.seconds[2]))


def scoring_moment(drill: Drill, job: Job, rng: random.Random) -> bool:
    """Waits for a moment between the first image and the last part."""
    first, last, _ = drill.site.seconds
    left = 1 - len(parts(drill.run)) / drill.site.shards
    return left > 0 and job.until(lambda: drill.opened) and job.sleep(rng.uniform(0, (last - first) * left))


def finalize_moment(drill: Drill, job: Job, rng: random.Random) -> bool:
    """Waits for a moment between the last part and the end; every other one is within half a second."""
    before = _entries(drill.run)
    complete = len(parts(drill.run)) == drill.site.shards
    begun = job.until(
        lambda: len(parts(drill.run)) == drill.site.shards and (not complete or _entries(drill.run) != before)
    )
    _, last, end = drill.site.seconds
    return begun and job.sleep(rng.uniform(0, rng.choice([0.5, end - last])))


def _entries(run: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in run.glob("*") if path.name != ".lock"}


def hits(
    site: Site,
    folder: Path,
    aim: Aim,
    faults: int,
    tally: Tally,
    hit: Callable[[Job], object] = Job.kill,
) -> None:
    """Hits the drivers of one run after the other; every other one is started again at once.

    Args:
        site: What is scored.
        folder: For the run directories.
        aim: When a driver is hit.
        faults: How many are.
        tally: To be added to.
        hit: By what; it has ended when this returns.
    """
    rng = random.Random(f"{aim.__name__} {hit.__name__}")
    while tally.faults < faults:
        run = folder / f"{aim.__name__}-{tally.runs}"
        if aim is finalize_moment:
            half_done(site, run, left_out=1)
        with Drill(site, run, tally) as drill:
            for _ in range(min(_HITS_PER_RUN, faults - tally.faults)):
                job = drill.start()
                if not aim(drill, job, rng):
                    break
                hit(job)
                drill.struck()
                if rng.random() < 0.5:
                    tally.outlived += not job.gone()
            else:
                job = drill.start()
            job.finish()
            drill.finished()


def worker_kills(site: Site, run: Path, tally: Tally, seed: int = 0) -> None:
    """SIGKILLs scoring workers again and again, at work or, one time in four, as they start."""
    rng = random.Random(seed)
    with Drill(site, run, tally) as drill:
        while True:
            job, faults = drill.start(), tally.faults

            def scoring(job: Job = job) -> list[int]:
                return [] if (run / "_SUCCESS").exists() else job.scoring_workers()  # then they draw

            while job.until(scoring):
                if rng.random() < 0.75:
                    read = drill.opened
                    if not (job.until(lambda read=read: drill.opened > read) and job.sleep(rng.uniform(0, 1))):
                        break
                if workers := scoring():
                    with_signal(rng.choice(workers), signal.SIGKILL)
                    drill.struck()
            if job.exit_code == 0:
                break
            assert tally.faults - faults > 2, job.said
            assert "workers died" in job.said.splitlines()[-1]  # too often in a row, but the rest is kept
        job.finish()
        drill.finished()
