"""What scoring a survey will take, from its listing and a sample of it, before anything is spent."""

from __future__ import annotations

import io
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Unpack

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from scipy import stats

from crackvae.cluster import here, session
from crackvae.dataset import manifest
from crackvae.dataset.decoder import Decoder
from crackvae.dataset.labels import Naming
from crackvae.images.appearance import looks_of_tiles
from crackvae.model import artifact, backend
from crackvae.model.photograph import PhotoScorer, Row
from crackvae.model.scorer import TileScorer
from crackvae.run.directory import Sharding
from crackvae.schema import MANIFEST, PART, Status

_SAMPLE = {"native": 16, "resize": 512}  # files, by tiling: two minutes of photographs of 20 megapixels
_TIMED = 32  # tiles are timed so many at once, as they are scored
_OTHER_BYTES = 550  # a row in manifest.parquet and results.csv; as a Parquet table results/ is as large as parts/


class Sample(NamedTuple):
    """What some files took, on one worker."""

    statuses: Counter[str]
    megapixels: list[float]  # of each that was decoded
    seconds: list[float]  # of a file: of each photograph, of tiles the mean of so many at once
    row_bytes: float  # of a shard's file


@dataclass(frozen=True)
class Estimate:
    """What a survey will take: its files, what some of them took, and how many workers score at a time."""

    files: int
    bytes: int  # where sizes are known
    shards: int
    sample: Sample
    workers: int
    device: str  # cpu or cuda

    def hours(self) -> tuple[float, float, float]:
        """Expected, and an interval of 95% for the sampling of files; start-up is seconds more."""
        seconds, count = self.sample.seconds, len(self.sample.seconds)
        mean = float(np.mean(seconds))
        error = float(stats.t.ppf(0.975, count - 1) * stats.sem(seconds)) if count > 1 else mean
        each = self.files / self.workers / 3600
        return each * mean, each * max(0.0, mean - error), each * (mean + error)

    def lines(self) -> list[str]:
        """For people."""
        statuses, taken = self.sample.statuses, self.sample.statuses.total()
        failed = {name: count for name, count in statuses.items() if name != Status.OK}
        what = f"a sample of {taken}" + "".join(f", {count} {name}" for name, count in sorted(failed.items()))
        megapixels = np.array(self.sample.megapixels or [0.0])
        expected, low, high = map(_duration, self.hours())
        disk = self.files * (2 * self.sample.row_bytes + _OTHER_BYTES)
        unit = "CPU workers" if self.device == "cpu" else "GPU workers"
        return [
            f"files       {self.files:,} ({self.bytes / 1e9:,.1f} GB) in {self.shards:,} shards",
            f"megapixels  {megapixels.mean():.2f} each, {self.files * megapixels.mean():,.0f} in all ({what})",
            f"time        {expected} ({low} to {high}) on {self.workers} {unit}, "
            f"{np.mean(self.sample.seconds):.3g} s a file and worker",
            f"disk        {disk / 1e9:,.2f} GB in --out",
        ]


def estimate(
    model: str,
    locations: Sequence[str],
    *,
    device: str = "auto",
    **labels: Unpack[Naming],
) -> Estimate:
    """Lists a survey and scores a few files of it, on a worker of the cluster or here; writes nothing.

    Arguments and errors are those of `scoring.score`: labels are normal, crack and label_column.
    """
    tiling = artifact.load(model).config.image.tiling
    with manifest.listing(locations, unlabelled_if_unclear=True, **labels) as (blocks, found):
        chosen, shards = _sampled(blocks, found.images, _SAMPLE[tiling])
    if here.is_local():
        computed_on = backend.resolve(device, "auto").device
        sample, workers = measure(model, chosen, computed_on), _workers(computed_on, tiling)
    else:
        with session.session():
            computed_on = session.device(device)
            task = ray.remote(measure).options(num_gpus=int(computed_on == "cuda"), num_cpus=1)
            sample = ray.get(task.remote(model, chosen, computed_on))
            workers = _workers(computed_on, tiling)
    return Estimate(found.images, found.bytes, shards, sample, workers, computed_on)


def _workers(device: str, tiling: str) -> int:
    """That score at the same time."""
    if device == "cpu":
        return session.cpus()
    return session.gpus() * (1 if tiling == "resize" else session.sharers_of_gpu())


def _sampled(blocks: Iterable[pa.Table], count: int, size: int) -> tuple[pa.Table, int]:
    """Files at random, and the number of shards."""
    wanted_N = np.sort(np.random.default_rng(0).permutation(count)[:size])
    sharding, before, shards = Sharding(), 0, 0
    chosen = [MANIFEST.empty_table()]
    for block in blocks:
        inside_N = wanted_N[(wanted_N >= before) & (wanted_N < before + block.num_rows)] - before
        chosen.append(block.take(pa.array(inside_N)))
        shards = int(sharding.assign(block["size"].to_pylist()).max(initial=shards - 1)) + 1
        before += block.num_rows
    return pa.concat_tables(chosen), shards


def measure(model: str, files: pa.Table, device: str) -> Sample:
    """Reads, decodes and scores files one after the other in this process, on one thread.

    Args:
        model: Location of the model artifact.
        files: As for `Decoder.photographs`.
        device: `cpu` or `cuda`.
    """
    import cv2
    import torch

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    loaded = artifact.load(model)
    precision = backend.resolve(device, loaded.precision).precision
    with Decoder(loaded.config.image) as decoder:
        list(decoder.photographs(files.slice(0, 1)))  # starts its process
        if loaded.photographs is None:
            rows, seconds = _measure_tiles(TileScorer(loaded, device, precision), decoder, files)
        else:
            rows, seconds = _measure_photographs(PhotoScorer(loaded, device, precision), decoder, files)
    pixels = [row["width"] * row["height"] / 1e6 for row in rows if row.get("width")]
    return Sample(Counter(row["status"] for row in rows), pixels, seconds, _row_bytes(rows))


def _measure_tiles(scorer: TileScorer, decoder: Decoder, files: pa.Table) -> tuple[list[Row], list[float]]:
    scorer.measure(np.zeros((1, decoder.tile_size, decoder.tile_size), np.uint8))  # the first pass is slow
    rows, seconds = [], []
    for first in range(0, len(files), _TIMED):
        some = files.slice(first, _TIMED)
        start = time.perf_counter()
        tile_NSS, part = decoder.read(some)
        scorer.measure(tile_NSS)
        looks_of_tiles(tile_NSS)
        seconds.append((time.perf_counter() - start) / len(some))
        rows += part.to_pylist()
    return rows, seconds


def _measure_photographs(scorer: PhotoScorer, decoder: Decoder, files: pa.Table) -> tuple[list[Row], list[float]]:
    rows, seconds = [], []
    for number in range(len(files)):
        start = time.perf_counter()
        [(row, arrays)] = decoder.photographs(files.slice(number, 1))
        rows.append(scorer.complete(row, arrays))
        seconds.append(time.perf_counter() - start)
    return rows, seconds[1:] or seconds  # the first pass is slow


def _row_bytes(rows: list[Row]) -> float:
    def size(table: pa.Table) -> int:
        pq.write_table(table, buffer := io.BytesIO(), compression="zstd", store_schema=False)
        return buffer.tell()

    return (size(pa.Table.from_pylist(rows, PART)) - size(PART.empty_table())) / len(rows)


def _duration(hours: float) -> str:
    return f"{hours * 60:.0f} min" if hours < 2 else f"{hours:,.1f} h"
