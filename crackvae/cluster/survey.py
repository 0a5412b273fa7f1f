"""Scoring the shards of a run on Ray Data.

The unit is a shard: one row in the pipeline, one file in the run directory. On CPUs one worker per
core reads, decodes, scores and commits, because the network is the cost. With GPUs, CPU workers
read and decode, and send uint8 tiles to the workers that hold a GPU.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
import ray.exceptions
from ray.data import ActorPoolStrategy
from ray.util.annotations import RayDeprecationWarning

from crackvae.cluster import session
from crackvae.dataset.sources import Reader
from crackvae.dataset.tiles import read_tiles
from crackvae.errors import CrackvaeError, RefusedError
from crackvae.model import artifact, backend
from crackvae.model.backend import Backend
from crackvae.run import directory, shards
from crackvae.run.directory import Run
from crackvae.schema import Status
from crackvae.terminal import Advance, log, progress

Batch = dict[str, Any]

_ATTEMPTS = 3  # without a single new shard
_LOST = (
    ray.exceptions.RayActorError,
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.ObjectLostError,
)


def score_missing(run: Run, model: str, computed_on: Backend, *, fused: bool | None = None) -> int:
    """Scores every shard that has no valid file yet. Needs a session.

    Where a worker or its node is lost, what is still missing is tried again.

    Args:
        run: The run.
        model: Location of the model artifact.
        computed_on: The run's backend.
        fused: Whether one worker does everything; by default on CPUs only.

    Returns:
        How many shards were missing.

    Raises:
        CrackvaeError: Workers die again and again.
    """
    missing = shards.missing_shards(run)
    with progress("scoring", _files(run, missing), "images") as advance:
        left, attempts = missing, 0
        while left and attempts < _ATTEMPTS:
            try:
                _score_shards(run, left, model, computed_on, fused, advance)
            except _LOST as error:
                log.warning("a worker or its node was lost: %s", " ".join(str(error).split()))
            before, left = left, shards.missing_shards(run)
            attempts = attempts + 1 if len(left) == len(before) else 0
    if left:
        raise CrackvaeError(
            f"{run.location}: workers died {_ATTEMPTS} times in a row and {len(left)} shards are missing, "
            f"first number {left[0]}; the rest is kept, run the same command again"
        )
    return len(missing)


def _files(run: Run, numbers: Sequence[int]) -> int:
    return sum(run.shard(number).num_rows for number in numbers)


def _score_shards(
    run: Run,
    numbers: Sequence[int],
    model: str,
    computed_on: Backend,
    fused: bool | None,
    advance: Advance,
) -> None:
    on_gpu = computed_on.device == "cuda"
    arguments = (run.location, run.identity, model, computed_on)

    def stage(upstream: ray.data.Dataset, worker: type, pool: ActorPoolStrategy, **needs: Any) -> ray.data.Dataset:
        with warnings.catch_warnings():  # there is no other way to say max_restarts in Ray 2.60
            warnings.simplefilter("ignore", RayDeprecationWarning)
            return upstream.map_batches(
                worker,
                fn_constructor_args=arguments,
                batch_size=1,
                compute=pool,
                max_restarts=0,  # Ray would try for ever; score_missing counts
                **needs,
            )

    rows = [{"shard": number} for number in numbers]
    dataset: ray.data.Dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    pool = session.worker_pool(len(rows))
    if not on_gpu if fused is None else fused:
        dataset = stage(dataset, _ReadAndScore, pool, num_cpus=1)
    else:
        scorers = session.worker_pool(min(len(rows), session.gpus()) if session.is_local() else len(rows))
        dataset = stage(dataset, _Read, pool, num_cpus=1)
        dataset = stage(dataset, _Score, scorers, num_cpus=0, num_gpus=int(on_gpu))
    for row in dataset.iter_rows():
        advance(int(row["files"]))


class _Read:
    """Reads and decodes a shard: shard number in, tiles and an unscored part out."""

    def __init__(self, run: str, identity: str, model: str, computed_on: Backend) -> None:
        import cv2

        cv2.setNumThreads(1)
        self._run = directory.open_run(run)
        self._image = artifact.load(model).config.image
        self._reader = Reader()

    def __call__(self, batch: Batch) -> Batch:
        number = int(batch["shard"][0])
        files = self._run.shard(number)
        tiles_NSS, part = read_tiles(files["uri"].to_pylist(), self._image, self._reader)
        part = part.set_column(0, "image_id", files["image_id"])
        sink = io.BytesIO()
        with pa.ipc.new_stream(sink, part.schema) as stream:
            stream.write_table(part)
        return {"shard": [number], "tiles": [tiles_NSS.tobytes()], "part": [sink.getvalue()]}


class _Score:
    """Scores the tiles of a shard and commits it."""

    def __init__(self, run: str, identity: str, model: str, computed_on: Backend) -> None:
        import torch

        from crackvae.model.scorer import TileScorer

        torch.set_num_threads(1)
        loaded = artifact.load(model)
        self._run, self._identity = run, identity
        self._size = loaded.config.image.tile_size
        self._refused = backend.resolve(computed_on.device, computed_on.precision) != computed_on
        self._scorer = TileScorer(loaded, computed_on.device, computed_on.precision)

    def __call__(self, batch: Batch) -> Batch:
        if self._refused:
            raise RefusedError(f"{self._run}: a node has other hardware or versions than the run; make the nodes equal")
        number, part = int(batch["shard"][0]), pa.ipc.open_stream(batch["part"][0]).read_all()
        tiles_NSS = np.frombuffer(batch["tiles"][0], np.uint8).reshape(-1, self._size, self._size)
        error_N = pa.array(
            self._scorer.score(tiles_NSS),
            mask=np.asarray(part["status"].to_pylist()) != str(Status.OK),
        )
        for name in ("score", "reconstruction_error"):
            part = part.set_column(part.schema.get_field_index(name), name, error_N)
        shards.write_part(self._run, self._identity, number, part)
        return {"shard": [number], "files": [part.num_rows]}


class _ReadAndScore:
    """Both, in one worker."""

    def __init__(self, *arguments: Any) -> None:
        self._read, self._score = _Read(*arguments), _Score(*arguments)

    def __call__(self, batch: Batch) -> Batch:
        return self._score(self._read(batch))


def resolve_backend(device: str, precision: str) -> Backend:
    """The backend of the cluster's workers, asked on one of them. Needs a session."""
    chosen = session.device(device)
    task = ray.remote(backend.resolve).options(num_gpus=1 if chosen == "cuda" else 0)
    resolved: Backend = ray.get(task.remote(chosen, precision))
    return resolved
