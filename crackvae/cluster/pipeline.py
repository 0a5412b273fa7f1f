"""Shards through Ray Data: one row of a pipeline each.

On CPUs one worker per core does everything, because the network is the cost. With GPUs, CPU workers read and decode,
and send uint8 tiles to the workers that hold a GPU.
"""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
import ray.exceptions
import torch
from ray.data import ActorPoolStrategy
from ray.util.annotations import RayDeprecationWarning

from crackvae.cluster import session, workers
from crackvae.cluster.workers import Job, Tiles
from crackvae.errors import CrackvaeError, LostError
from crackvae.model import artifact, backend
from crackvae.model.backend import Backend
from crackvae.run.shards import Work

Batch = dict[str, Any]

_COMING_SECONDS = 1800  # until a node is there, where an autoscaler brings them

_LOST = (
    ray.exceptions.RayActorError,
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.ObjectLostError,
)


def scored(job: Job, work: Sequence[Work], *, fused: bool | None = None) -> Generator[str, None, None]:
    """Scores shards on the cluster of this session; as `here.scored`, but in order.

    Where it is not fused, as by default on GPUs, one worker reads and another one scores.
    """
    try:
        for row in _dataset(job, work, fused).iter_rows():
            yield row["told"]
    except _LOST as error:
        raise LostError(" ".join(str(error).split())) from error


def _dataset(job: Job, work: Sequence[Work], fused: bool | None) -> ray.data.Dataset:
    on_gpu = job.computed_on.device == "cuda"

    def stage(upstream: ray.data.Dataset, worker: type, pool: ActorPoolStrategy, **needs: Any) -> ray.data.Dataset:
        with warnings.catch_warnings():  # there is no other way to say max_restarts in Ray 2.60
            warnings.simplefilter("ignore", RayDeprecationWarning)
            return upstream.map_batches(
                worker,
                fn_constructor_args=(job,),
                batch_size=1,
                compute=pool,
                max_restarts=0,  # Ray would try for ever; `survey` counts
                **needs,
            )

    rows = [asdict(item) for item in work]
    dataset: ray.data.Dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    if artifact.load(job.model).photographs is not None:
        # One worker from file to commit, GPU or not: a shard's photographs would fill Ray's object store. Two thirds
        # of the work are decoding and lines, on the CPU: so a GPU is shared by as many workers as it has processors.
        sharers = session.sharers_of_gpu() if on_gpu else 1
        pool = session.worker_pool(len(rows), session.gpus() * sharers if on_gpu else session.cpus())
        return stage(dataset, _ReadAndScore, pool, num_cpus=1, num_gpus=1 / sharers if on_gpu else 0)
    if not on_gpu if fused is None else fused:
        # Ahead: a shard of tiles takes a core 0.4 s, and Ray another 0.13 s to hand an idle worker the next.
        return stage(dataset, _ReadAndScore, session.worker_pool(len(rows), session.cpus(), ahead=True), num_cpus=1)
    scorers = session.worker_pool(len(rows), session.gpus() if on_gpu else session.cpus(), ahead=True)
    dataset = stage(dataset, _Read, session.worker_pool(len(rows), session.cpus()), num_cpus=1)
    return stage(dataset, _Score, scorers, num_cpus=0, num_gpus=int(on_gpu))


class _Stage:
    """A worker is made by its first shard: what is raised then is raised to the job, and counts as no death."""

    make: Any  # a worker of a job

    def __init__(self, job: Job) -> None:
        self._job = job

    @cached_property
    def _worker(self) -> Any:
        return type(self).make(self._job)


class _ReadAndScore(_Stage):
    make = workers.whole

    def __call__(self, batch: Batch) -> Batch:
        with _ending_with_its_gpu():
            return {"told": [self._worker.score(_work(batch))]}


class _Read(_Stage):
    make = workers.TileReader

    def __call__(self, batch: Batch) -> Batch:
        read: Tiles = self._worker.read(_work(batch))
        sink = io.BytesIO()
        with pa.ipc.new_stream(sink, read.part.schema) as stream:
            stream.write_table(read.part)
        tiles = {"tiles": read.tiles_NSS.tobytes(), "side": read.tiles_NSS.shape[1], "again": read.again_N.tobytes()}
        made = {**tiles, "part": sink.getvalue(), "seconds": read.seconds}
        return batch | {name: [value] for name, value in made.items()}


class _Score(_Stage):
    make = workers.TileWorker

    def __call__(self, batch: Batch) -> Batch:
        row = {name: value[0] for name, value in batch.items()}
        tiles_NSS = np.frombuffer(row["tiles"], np.uint8).reshape(-1, row["side"], row["side"])
        part, again_N = pa.ipc.open_stream(row["part"]).read_all(), np.frombuffer(row["again"], np.bool_)
        read = Tiles(tiles_NSS, part, again_N, float(row["seconds"]))
        with _ending_with_its_gpu():
            return {"told": [self._worker.score(_work(batch), read)]}


@contextmanager
def _ending_with_its_gpu() -> Iterator[None]:
    """An error of CUDA stays in the process: it would fail every shard to come, and be the quickest to take them."""
    try:
        yield
    except torch.AcceleratorError as error:
        print(f"crackvae: a worker ends: {error}", file=sys.stderr, flush=True)
        os._exit(1)


def _work(batch: Batch) -> Work:
    return Work(int(batch["shard"][0]), int(batch["attempt"][0]))


def resolve_backend(device: str, precision: str) -> Backend:
    """The backend of the workers, asked on one of the cluster's."""
    with session.session():
        chosen = session.device(device)
        task = ray.remote(backend.resolve).options(num_gpus=1 if chosen == "cuda" else 0)
        try:
            resolved: Backend = ray.get(task.remote(chosen, precision), timeout=_COMING_SECONDS)
        except ray.exceptions.GetTimeoutError as error:
            kind = "GPU" if chosen == "cuda" else "processor"
            raise CrackvaeError(
                f"no {kind} has come within {_COMING_SECONDS // 60} minutes; ask again later"
            ) from error
        return resolved
