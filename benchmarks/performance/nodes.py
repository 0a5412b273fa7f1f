"""How a job spreads over nodes: a Ray cluster simulated on this machine, a scorer that sleeps instead of computing.

    python benchmarks/performance/nodes.py WORK      writes WORK/nodes.md and .json

`cluster.pipeline`, shards and commits are crackvae's own; only the arithmetic is a pause. Work grows with the nodes.
Busy is the share of the nodes' time in which they scored, from when the last worker had begun (they start on the few
cores of this machine) until the last shard.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import scale
from machine import described

from crackvae.cluster import survey
from crackvae.cluster.workers import Job
from crackvae.report.tables import markdown

SHARDS, SECONDS = 12, 3.0  # shards for each node, and what each takes to score
SLOW = 4  # times as long on a straggler
_BYTES = 10_000  # of a file: so a shard holds 256
_WAIT_SECONDS = 120
_TILES = 2**25  # bytes, where reading and scoring are apart: eight of them are more than a node holds


class Sleeps:
    """A worker that commits a shard of made-up scores after a pause, and notes when."""

    pause = SECONDS

    def __init__(self, job: Job) -> None:
        self._run, self._notes = job.run, Path(job.run).parent / "notes"
        first = self._notes / "straggler"
        self._pause = self.pause
        if os.environ.get("STRAGGLER"):
            try:
                first.touch(exist_ok=False)
                self._pause = SLOW * self.pause
            except FileExistsError:
                pass

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Scores a shard."""
        shard, start = int(batch["shard"][0]), time.time()
        time.sleep(self._pause)
        scale._score(self._run, [shard])
        (self._notes / f"{shard}-{os.getpid()}.json").write_text(json.dumps([start, time.time(), os.getpid()]))
        return {"told": [json.dumps({"shard": shard, "files": 256, "status": {}, "megapixels": 0, "seconds": {}})]}


class Reads:
    """The stage before, where reading and scoring are apart: quick, and its tiles are large."""

    def __init__(self, job: Job) -> None:
        self._notes = Path(job.run).parent / "notes"

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Reads a shard."""
        (self._notes / f"read-{int(batch['shard'][0])}.json").write_text(json.dumps([time.time()]))
        return {**batch, "tiles": [bytes(_TILES)]}


def _survey(work: Path, nodes: int, *, lose: bool = False, apart: bool = False) -> dict[str, float]:
    """Scores SHARDS shards on a cluster; runs in a process of its own."""
    import ray
    from ray.cluster_utils import Cluster

    from crackvae.cluster import pipeline, session
    from crackvae.cluster.watch import Watch
    from crackvae.model import artifact, backend
    from crackvae.run import directory, shards

    total = SHARDS * nodes * (1 + 2 * apart)
    files = scale.rows(256 * total, size=_BYTES)
    scale.manifest.write_blocks(files, str(work / "manifest.parquet"))
    scale.plan(work, 0)
    (work / "notes").mkdir()
    run = directory.open_run(str(work / "run"))
    pipeline._ReadAndScore, pipeline._Read, pipeline._Score = Sleeps, Reads, Sleeps  # type: ignore[misc, assignment]
    artifact.load = lambda _: type("Model", (), {"photographs": None if apart else ()})  # type: ignore[assignment]
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 2 * 10**8})
    added = [cluster.add_node(num_cpus=1, object_store_memory=2 * 10**8) for _ in range(nodes)]
    os.environ["RAY_ADDRESS"] = cluster.address
    start = time.time()
    with session.session():
        if lose:
            _lose(cluster, added[0], work / "notes", total // 2)
        job = Job(run.location, run.identity, "none", backend.Backend("cpu", "", "fp32", ""))
        missing = shards.missing(run)[0]
        seen = Watch(len(missing), lambda files: None)
        survey._score_all(run, missing, lambda left: pipeline.scored(job, left, fused=False), seen)
        seconds = time.time() - start
        driver = int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1e3
    ray.shutdown()
    cluster.shutdown()
    left, _ = shards.missing(run)
    noted = [json.loads(path.read_text()) for path in (work / "notes").glob("[0-9]*.json")]
    first, last = min(n[0] for n in noted), max(n[1] for n in noted)
    begun = max(min(n[0] for n in noted if n[2] == worker) for worker in {n[2] for n in noted})
    busy = sum(max(0, n[1] - max(n[0], begun)) for n in noted) / (nodes * (last - begun))
    found = {"shards": total, "seconds": seconds, "begun": begun - first, "scoring": last - first, "busy": busy}
    found |= {"missing": len(left), "driver_mb": driver}
    if apart:
        reads = [(json.loads(path.read_text())[0], 1) for path in (work / "notes").glob("read-*.json")]
        waiting = most = 0
        for _, change in sorted(reads + [(n[0], -1) for n in noted]):
            waiting += change
            most = max(most, waiting)
        found["most_waiting"] = most
    return found


def _lose(cluster: Any, node: Any, notes: Path, after: int) -> None:
    import threading

    def lose() -> None:
        deadline = time.monotonic() + _WAIT_SECONDS
        while len(list(notes.glob("[0-9]*.json"))) < after and time.monotonic() < deadline:
            time.sleep(0.05)
        cluster.remove_node(node, allow_graceful=False)

    threading.Thread(target=lose, daemon=True).start()


CASES: dict[str, dict[str, Any]] = {
    "1 node": {"nodes": 1},
    "2 nodes": {"nodes": 2},
    "4 nodes": {"nodes": 4},
    "8 nodes": {"nodes": 8},
    f"8 nodes, one {SLOW} times as slow": {"nodes": 8, "straggler": True},
    "8 nodes, one lost half-way": {"nodes": 8, "lose": True},
    "2 nodes, reading apart and quicker": {"nodes": 2, "apart": True},
}


def main() -> None:
    """Runs every case in a process of its own and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--case", help="only this one, in this process")
    options = parser.parse_args()
    if options.case:
        given = {key: value for key, value in CASES[options.case].items() if key != "straggler"}
        print(json.dumps(_survey(options.work, **given)))
        return
    found = {name: _case(options.work / "nodes", name) for name in CASES}
    (options.work / "nodes.json").write_text(json.dumps({"machine": described(), "cases": found}, indent=1))
    apart = found.pop("2 nodes, reading apart and quicker")
    rows = [
        [name, str(case["shards"]), *(f"{case[key]:.1f}" for key in ("seconds", "scoring", "begun")),
         f"{case['busy']:.0%}", f"{case['driver_mb']:.0f}", str(case["missing"])]
        for name, case in found.items()
    ]  # fmt: skip
    header = [f"shards of {SECONDS:g} s", "shards", "seconds", "first shard to last", "until all workers had begun",
              "busy from then on", "driver, MB", "shards missing"]  # fmt: skip
    last = (
        f"Where reading is quicker than scoring, at most {apart['most_waiting']:.0f} of {apart['shards']:.0f} shards' "
        f"tiles, {_TILES / 1e6:.0f} MB each, wait for it on two nodes that can hold six each."
    )
    (options.work / "nodes.md").write_text(f"{described()}.\n\n{markdown(header, rows)}\n\n{last}\n")
    print(options.work / "nodes.md")


def _case(work: Path, name: str) -> dict[str, float]:
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    folder = Path("/tmp") / f"crackvae-nodes-{os.getpid()}"  # sockets lie in it: a short name
    # Its nodes have addresses of their own; crackvae would have Ray listen on loopback only.
    environment = os.environ | {"RAY_TMPDIR": str(folder), "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1"}
    environment |= {"STRAGGLER": "1"} if "straggler" in CASES[name] else {}
    done = subprocess.run(
        [sys.executable, __file__, str(work), "--case", name], env=environment, capture_output=True, check=False
    )
    shutil.rmtree(folder, ignore_errors=True)
    if done.returncode:
        sys.exit(f"{name}: exit code {done.returncode}\n{done.stderr.decode()}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(name, found, file=sys.stderr)
    return found


if __name__ == "__main__":
    main()
