"""What a survey costs as it grows, without the network: `make bench-scale`.

    python benchmarks/performance/scale.py WORK [--rows 100000 1000000 10000000]

The manifest, the run, its shards, finalize and the threshold are crackvae's own; only scores are made up. Each step
is a process of its own, whose time and peak memory are told. Writes WORK/scale.md, .json and .png.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import bucket
import numpy as np
import pyarrow as pa
from machine import described

from crackvae.dataset import manifest
from crackvae.model import artifact
from crackvae.report import page as report
from crackvae.report import pictures
from crackvae.report.tables import markdown
from crackvae.run import directory, finalize, judge, shards
from crackvae.run.shards import Work
from crackvae.schema import BASELINES, LOOKS, MANIFEST, PART

ROWS = (10**5, 10**6, 10**7)
MOST_FILES = 10**6  # that are made on the disk, or told of by a bucket
MISSING = 100  # each so manieth shard is left to score
_BLOCK = 2**16
_BYTES = 8_000_000  # of a photograph of 20 megapixels: shards are made by bytes
_NORMALS = 1500  # calibration images
_FACTS = {
    "model": artifact.load(artifact.PRETRAINED).fingerprint,
    "scoring": {"score": "mse", "alpha": 0.05, "max_failed_fraction": 0.05},
}


def rows(count: int, size: int = _BYTES) -> Iterator[pa.Table]:
    """A manifest of photographs of a size, in folders of 1,000."""
    for start in range(0, count, _BLOCK):
        number_N = range(start, min(start + _BLOCK, count))
        name = [f"bridge-{n // 100_000:03d}/span-{n // 1000:05d}/DJI_{n:08d}.JPG" for n in number_N]
        columns = {"image_id": name, "uri": [f"file:///surveys/2026/{one}" for one in name]}
        columns |= {"size": pa.repeat(size, len(name))}
        unknown = {field.name: pa.nulls(len(name), field.type) for field in MANIFEST}
        yield pa.table(unknown | columns).cast(MANIFEST)


def make_files(folder: Path, count: int) -> None:
    """Empty files in folders of 1,000: listing opens none."""
    for number in range(count):
        if number % 1000 == 0:
            place = folder / f"bridge-{number // 100_000:03d}" / f"span-{number // 1000:05d}"
            place.mkdir(parents=True)
        (place / f"DJI_{number:08d}.JPG").touch()


def index_files(work: Path, count: int) -> None:
    """A manifest of a folder on the local disk."""
    with manifest.listing([str(work / "files")]) as (blocks, _):
        manifest.write_blocks(blocks, str(work / "listed.parquet"))


def index_bucket(work: Path, count: int) -> None:
    """A manifest of one folder of an object store."""
    with bucket.served(count) as folder, manifest.listing([folder]) as (blocks, _):
        manifest.write_blocks(blocks, str(work / "listed.parquet"))


def index(work: Path, count: int) -> None:
    """A manifest of another one, as `crackvae index` makes it."""
    with manifest.listing([str(work / "given.parquet")]) as (blocks, _):
        manifest.write_blocks(blocks, str(work / "manifest.parquet"))


def plan(work: Path, count: int) -> None:
    """The run directory."""
    score_n = np.linspace(0, 1, _NORMALS, dtype=np.float32)
    others = dict.fromkeys((*BASELINES, *LOOKS), score_n)
    calibration = pa.table({"score": score_n, "worst_tile_score": score_n, "tiles": np.ones(_NORMALS, int), **others})
    with manifest.listing([str(work / "manifest.parquet")]) as (blocks, _):
        directory.create(str(work / "run"), blocks, _FACTS, calibration)


def score(work: Path, count: int) -> None:
    """Most shards, from a scorer that costs nothing, on all cores."""
    run = directory.open_run(str(work / "run"))
    wanted = [number for number in range(run.plan.shards) if number % MISSING]
    _score_all(run.location, wanted)


def resume(work: Path, count: int) -> None:
    """What is missing is found and scored."""
    run = directory.open_run(str(work / "run"))
    left, _ = shards.missing(run)
    _score_all(run.location, [item.shard for item in left])


def find_missing(work: Path, count: int) -> None:
    """What is missing is found."""
    shards.missing(directory.open_run(str(work / "run")))


def finish(work: Path, count: int) -> None:
    """Results, CSV and metrics."""
    finalize.finalize(directory.open_run(str(work / "run")))


def threshold(work: Path, count: int) -> None:
    """Other predictions, without scoring anything again."""
    run = directory.open_run(str(work / "run"))
    finalize.check_scored(run)
    judge.set_threshold(run, quantile=0.99, value=None)
    finalize.finalize(run)


def draw(work: Path, count: int) -> None:
    """Page and pictures, of images that cannot be read: the same few whatever the survey."""
    report.write(str(work / "run"))
    pictures.draw(str(work / "run"))


STEPS: dict[str, Callable[[Path, int], None]] = {
    "index a local folder": index_files,
    "index a bucket's folder": index_bucket,
    "index a table": index,
    "plan": plan,
    "score 99%": score,
    "find the missing 1%": find_missing,
    "resume": resume,
    "finalize with CSV": finish,
    "new threshold": threshold,
    "page and pictures": draw,
}


def _score_all(location: str, numbers: list[int]) -> None:
    chunks = [numbers[at : at + 64] for at in range(0, len(numbers), 64)]
    with multiprocessing.get_context("spawn").Pool(len(os.sched_getaffinity(0))) as pool:
        pool.map(partial(_score, location), chunks, chunksize=1)


def _score(location: str, numbers: list[int]) -> None:
    run = directory.read_header(location)
    for number in numbers:
        ids = run.plan.shard(number)["image_id"]
        rng, count = np.random.default_rng(number), len(ids)
        value_N = rng.random(count).astype(np.float32)
        columns: dict[str, Any] = {field.name: pa.nulls(count, field.type) for field in PART}
        columns |= {"image_id": ids, "status": pa.repeat("ok", count), "score": value_N}
        columns |= dict.fromkeys(("reconstruction_error", *BASELINES, *LOOKS), value_N)
        columns |= {"width": pa.repeat(227, count), "height": pa.repeat(227, count)}
        shards.write_part(location, run.identity, Work(number, 0), pa.table(columns).cast(PART))


def _measured(step: str, work: Path, count: int) -> dict[str, float]:
    """Seconds and peak megabytes of a step in a process of its own."""
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    process = context.Process(target=_run, args=(step, work, count, queue))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{step}: exit code {process.exitcode}")
    found: dict[str, float] = queue.get()
    return found


def _run(step: str, work: Path, count: int, queue: Any) -> None:
    start = time.perf_counter()
    STEPS[step](work, count)
    status = Path("/proc/self/status").read_text()  # getrusage's maximum is that of the parent before, too
    peak = int(status.partition("VmHWM:")[2].split()[0]) / 1e3
    queue.put({"seconds": time.perf_counter() - start, "megabytes": peak})


def _size(folder: Path) -> tuple[int, int]:
    """Files and bytes below a folder."""
    sizes = [os.path.getsize(os.path.join(place, name)) for place, _, names in os.walk(folder) for name in names]
    return len(sizes), sum(sizes)


def main() -> None:
    """Measures all sizes and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    found: dict[int, dict[str, Any]] = {}
    for count in options.rows:
        work = options.work / str(count)
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        manifest.write_blocks(rows(count), str(work / "given.parquet"))
        steps = list(STEPS)
        if count <= MOST_FILES:
            make_files(work / "files", count)
        else:
            steps = [step for step in steps if STEPS[step] not in (index_files, index_bucket)]
        found[count] = {step: _measured(step, work, count) for step in steps}
        shutil.rmtree(work / "files", ignore_errors=True)
        files, size = _size(work / "run")
        parts, of_parts = _size(work / "run" / shards.PARTS)
        found[count]["run"] = {"files": files, "bytes": size, "parts": parts, "part_bytes": of_parts}
        print(json.dumps({count: found[count]}), flush=True)
        shutil.rmtree(work)
    (options.work / "scale.json").write_text(json.dumps({"machine": described(), "sizes": found}, indent=1))
    (options.work / "scale.md").write_text(page(found))
    plot(found, options.work / "scale.png")
    print(options.work / "scale.md")


def page(found: dict[int, dict[str, Any]]) -> str:
    """Time and memory by step and size."""
    header = ["", *(f"{count:,} rows" for count in found)]
    seconds, memory = [], []
    for step in STEPS:
        measured = [sizes.get(step) for sizes in found.values()]
        seconds.append([step, *(f"{m['seconds']:,.1f} s" if m else "" for m in measured)])
        memory.append([step, *(f"{m['megabytes']:,.0f} MB" if m else "" for m in measured)])
    files = [
        [name, *(f"{sizes['run'][key] / unit:,.0f}" for sizes in found.values())]
        for name, key, unit in (("files", "files", 1), ("of them parts", "parts", 1), ("megabytes", "bytes", 1e6))
    ]
    tables = (markdown(header, seconds), markdown(["peak memory", *header[1:]], memory), markdown(header, files))
    return "\n\n".join([f"{described()}.", *tables]) + "\n"


def plot(found: dict[int, dict[str, Any]], path: Path) -> None:
    """Memory and time against the size of the survey."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 3.5), layout="constrained")
    for axis, key, label in zip(axes, ("seconds", "megabytes"), ("seconds", "peak memory, MB"), strict=True):
        for step in STEPS:
            points = [(count, sizes[step][key]) for count, sizes in found.items() if step in sizes]
            axis.plot(*zip(*points, strict=True), marker="o", label=step)
        axis.set(xscale="log", xlabel="photographs", ylabel=label)
    axes[0].set_yscale("log")
    axes[1].set_ylim(0)
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside right center", fontsize="small")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
