"""Runs without images, model or Ray: what scoring a shard yields is made up, from the run alone."""

import numpy as np
import pyarrow as pa

from crackvae.run import directory, finalize, shards
from crackvae.run.shards import Work
from crackvae.schema import BASELINES, LOOKS, MANIFEST, PART

FILES = 700  # three shards
SCORE_n = np.linspace(0, 1, 99, dtype=np.float32)
DARKNESS_n = np.arange(99, dtype=np.float32)
LOOKS_n = np.random.default_rng(1).normal(size=99).astype(np.float32)
FACTS = {"model": "m", "scoring": {"score": "mse", "alpha": 0.05, "max_failed_fraction": 0.05}}
MESSAGE = 'no, "quoted"\nnewline'


def create(location, files=FILES, labelled=True, ids="{}.jpg", facts=None):
    rng = np.random.default_rng(0)
    rows = [
        {
            "image_id": ids.format(i),
            "uri": f"file:///{i}.jpg",
            "size": 5000,
            "label": str(rng.choice(["normal", "crack"])) if labelled else None,
            "group": f"{i // 2}",
        }
        for i in range(files)
    ]
    sets = pa.array(["internal", "external"] * (files // 2) + ["internal"] * (files % 2), pa.string())
    tiles_n = np.ones(len(SCORE_n), np.int32)
    others = dict.fromkeys(BASELINES, DARKNESS_n) | dict.fromkeys(LOOKS, LOOKS_n)
    calibration = pa.table({"score": SCORE_n, "worst_tile_score": SCORE_n, "tiles": tiles_n, **others})
    return directory.create(
        str(location),
        [pa.Table.from_pylist(rows, MANIFEST).append_column("set", sets)],
        {**FACTS, **(facts or {})},
        calibration,
    )


def part(run, number, failed=0.03):
    """A function of the run alone."""
    rng = np.random.default_rng(number)
    rows = []
    for image_id in run.plan.shard(number)["image_id"].to_pylist():
        score = float(rng.random())
        good = {"status": "ok", "score": score, "reconstruction_error": score, "darkness": 9.0, "line_filter": 9.0}
        good |= {name: float(rng.normal()) for name in LOOKS}
        bad = {"status": "undecodable", "message": MESSAGE}
        rows.append({"image_id": image_id, **(good if rng.random() >= failed else bad)})
    return pa.Table.from_pylist(rows, PART)


def score(run, numbers):
    for number in numbers:
        shards.write_part(run.location, run.identity, Work(number, 0), part(run, number))


def finished(location, **options):
    run = create(location, **options)
    score(run, range(run.plan.shards))
    finalize.finalize(run)
    return run


def missing(run):
    return [(work.shard, work.attempt) for work in shards.missing(run)[0]]


def everything(location):
    """The bytes of every file but run.json, which holds a time."""
    paths = sorted(path for path in location.rglob("*") if path.is_file())
    return {str(p.relative_to(location)): p.read_bytes() for p in paths if p.name not in ("run.json", ".lock")}
