"""Scoring the shards of a run on Ray Data.

The unit is a shard: one row in the pipeline, one file in the run directory. On CPUs one worker per
core reads, decodes, scores and commits, because the network is the cost. With GPUs, CPU workers
read and decode, and send uint8 tiles to the workers that hold a GPU. A single shard on this machine
is scored by this process: Ray would hand it to one worker, and takes seven seconds to come and go.
"""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
import ray.exceptions
from numpy.typing import NDArray
from ray.data import ActorPoolStrategy
from ray.util.annotations import RayDeprecationWarning

from crackvae import logs
from crackvae.cluster import session, watch
from crackvae.cluster.watch import Clock, Watch
from crackvae.dataset.decoder import Decoder
from crackvae.errors import CrackvaeError, InputError, RefusedError
from crackvae.images.appearance import looks_of_tile
from crackvae.model import artifact, backend
from crackvae.model.backend import Backend
from crackvae.run import directory, finalize, judge, shards
from crackvae.run.directory import Run
from crackvae.run.shards import Work
from crackvae.schema import LOOKS, PART, Status
from crackvae.terminal import log, progress

Batch = dict[str, Any]

_TILE_LOOKS = pa.schema([PART.field(name) for name in LOOKS if name != "latent"])
_ROUND = 4096  # shards that Ray is told of at a time: it keeps a record of each
_DEATHS = 3  # of workers, without a single new shard
_LOST = (
    ray.exceptions.RayActorError,
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.ObjectLostError,
)


def score(run: Run, work: Sequence[Work], model: str, computed_on: Backend, *, fused: bool | None = None) -> None:
    """Scores shards. Starts Ray where it does not run yet and there is more than one.

    Where a worker or its node is lost, what is still missing is tried again.

    Args:
        run: The run.
        work: What is missing of it.
        model: Location of the model artifact.
        computed_on: The run's backend.
        fused: Whether one worker does everything; by default on CPUs only.

    Raises:
        CrackvaeError: Workers die again and again.
    """
    files = sum(run.plan.shard(item.shard).num_rows for item in work)
    with progress("scoring", files, "images") as advance, logs.about(run.short_identity):
        if len(work) == 1 and session.is_local() and not ray.is_initialized():
            _score_here(run, work[0], model, computed_on, Watch(run, 1, advance))
            return
        with session.session():
            seen = Watch(run, len(work), advance)
            for start in range(0, len(work), _ROUND):
                _score_round(run, work[start : start + _ROUND], model, computed_on, fused, seen)


def _score_here(run: Run, work: Work, model: str, computed_on: Backend, seen: Watch) -> None:
    kind = _ReadAndScore if artifact.load(model).photographs is None else _ScorePhotographs
    worker = kind(run.location, run.identity, model, computed_on)
    seen.count(json.loads(worker({name: [value] for name, value in asdict(work).items()})["told"][0]))


def _score_round(
    run: Run, work: Sequence[Work], model: str, computed_on: Backend, fused: bool | None, seen: Watch
) -> None:
    left, deaths, later = list(work), 0, seen.left - len(work)
    while left and deaths < _DEATHS:
        try:
            _score_shards(run, left, model, computed_on, fused, seen)
        except _LOST as error:
            log.warning("a worker or its node was lost: %s", " ".join(str(error).split()))
        before = left
        left, _ = shards.missing(run, [item.shard for item in before])
        seen.set_left(later + len(left))
        deaths = deaths + 1 if set(before) <= set(left) else 0
    if left:
        raise CrackvaeError(
            f"{run.location}: workers died {_DEATHS} times in a row and {len(left)} shards are missing, "
            f"first number {left[0].shard}; the rest is kept, run the same command again"
        )


def _score_shards(
    run: Run,
    work: Sequence[Work],
    model: str,
    computed_on: Backend,
    fused: bool | None,
    seen: Watch,
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
                max_restarts=0,  # Ray would try for ever; `score` counts
                **needs,
            )

    rows = [asdict(item) for item in work]
    dataset: ray.data.Dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    if artifact.load(model).photographs is not None:
        # One worker from file to commit, GPU or not: a shard's photographs would fill Ray's object store. Two thirds
        # of the work are decoding and lines, on the CPU: so a GPU is shared by as many workers as it has processors.
        sharers = session.sharers_of_gpu()
        pool = session.worker_pool(len(rows), session.gpus() * sharers if on_gpu else session.cpus())
        dataset = stage(dataset, _ScorePhotographs, pool, num_cpus=1, num_gpus=1 / sharers if on_gpu else 0)
    elif not on_gpu if fused is None else fused:
        # Ahead: a shard of tiles takes a core 0.4 s, and Ray another 0.13 s to hand an idle worker the next.
        dataset = stage(dataset, _ReadAndScore, session.worker_pool(len(rows), session.cpus(), ahead=True), num_cpus=1)
    else:
        scorers = session.worker_pool(len(rows), session.gpus() if on_gpu else session.cpus(), ahead=True)
        dataset = stage(dataset, _Read, session.worker_pool(len(rows), session.cpus()), num_cpus=1)
        dataset = stage(dataset, _Score, scorers, num_cpus=0, num_gpus=int(on_gpu))
    for row in dataset.iter_rows():
        seen.count(json.loads(row["told"]))


class _Read:
    """Reads and decodes a shard: its work in, tiles and an unscored part out."""

    def __init__(self, run: str, identity: str, model: str, computed_on: Backend) -> None:
        self._run = directory.read_header(run)
        image = artifact.load(model).config.image
        self._decoder, self._size = Decoder(image), image.tile_size

    def __call__(self, batch: Batch) -> Batch:
        work, clock = _work(batch), Clock()
        files = self._run.plan.shard(work.shard)
        before, again_N = _again(self._run, work)
        tiles_NSS = np.zeros((len(files), self._size, self._size), np.uint8)
        tiles_NSS[again_N], read = self._decoder.read(files.filter(again_N))
        part = _merged(before, again_N, read)
        sink = io.BytesIO()
        with pa.ipc.new_stream(sink, part.schema) as stream:
            stream.write_table(part)
        clock.lap("decode")
        made = {"tiles": tiles_NSS.tobytes(), "part": sink.getvalue(), "again": again_N.tobytes()}
        return batch | {name: [value] for name, value in made.items()} | {"seconds": [clock.seconds["decode"]]}


def _again(run: Run, work: Work) -> tuple[pa.Table, NDArray[np.bool_]]:
    """The newest rows of a shard, and which of them a retry scores again; without rows, all."""
    if not work.attempt:
        files = run.plan.shard(work.shard).num_rows
        return PART.empty_table(), np.ones(files, np.bool_)
    before = shards.read_part(run, work.shard, range(work.attempt)).table
    return before, pc.equal(before["status"], str(run.retries[work.attempt - 1])).to_numpy()


def _merged(before: pa.Table, again_N: NDArray[np.bool_], read: pa.Table) -> pa.Table:
    """The rows of before, with those that were read again in their places."""
    row_N = np.arange(len(again_N))
    row_N[again_N] = before.num_rows + np.arange(len(read))
    return pa.concat_tables([before, read]).take(row_N)


class _Score:
    """Scores the tiles of a shard and commits it."""

    def __init__(self, run: str, identity: str, model: str, computed_on: Backend) -> None:
        import torch

        from crackvae.model.scorer import TileScorer

        torch.set_num_threads(1)
        loaded = artifact.load(model)
        self._commit = _Commit(directory.read_header(run), identity)
        self._size = loaded.config.image.tile_size
        self._refused = backend.resolve(computed_on.device, computed_on.precision) != computed_on
        self._scorer = TileScorer(loaded, computed_on.device, computed_on.precision)

    def __call__(self, batch: Batch) -> Batch:
        if self._refused:
            raise _other_node(self._commit.run.location)
        clock = Clock()
        clock.seconds["decode"] = float(batch["seconds"][0])
        part = pa.ipc.open_stream(batch["part"][0]).read_all()
        tiles_NSS = np.frombuffer(batch["tiles"][0], np.uint8).reshape(-1, self._size, self._size)
        # What an earlier attempt scored keeps its score; what failed has none.
        new_N = pc.and_(pc.equal(part["status"], str(Status.OK)), pc.is_null(part["score"]))
        error_N, latent_N = (pa.array(value_N) for value_N in self._scorer.measure(tiles_NSS))
        measured = {"score": error_N, "reconstruction_error": error_N, "latent": latent_N}
        looks = pa.Table.from_pylist([looks_of_tile(tile_SS) for tile_SS in tiles_NSS]).cast(_TILE_LOOKS)
        for name, value_N in (measured | dict(zip(_TILE_LOOKS.names, looks.columns, strict=True))).items():
            column = pc.if_else(new_N, value_N, part[name])
            part = part.set_column(part.schema.get_field_index(name), name, column)
        clock.lap("score")
        return self._commit(_work(batch), part, np.frombuffer(batch["again"][0], np.bool_), clock)


class _ScorePhotographs:
    """Reads, decodes, scores and commits a shard of photographs, one after the other."""

    def __init__(self, run: str, identity: str, model: str, computed_on: Backend) -> None:
        import cv2
        import torch

        from crackvae.model.photograph import PhotoScorer

        torch.set_num_threads(1)
        cv2.setNumThreads(1)
        loaded = artifact.load(model)
        self._run = directory.read_header(run)
        self._commit = _Commit(self._run, identity)
        self._refused = backend.resolve(computed_on.device, computed_on.precision) != computed_on
        self._decoder = Decoder(loaded.config.image)
        self._given = self._run.facts.get("given", {})
        keep_tiles = finalize.TILES_DIRECTORY in finalize.tables(self._run)
        self._scorer = PhotoScorer(loaded, computed_on.device, computed_on.precision, keep_tiles=keep_tiles)

    def __call__(self, batch: Batch) -> Batch:
        if self._refused:
            raise _other_node(self._run.location)
        work, clock = _work(batch), Clock()
        before, again_N = _again(self._run, work)
        files = self._run.plan.shard(work.shard).filter(again_N)
        read = clock.split(self._decoder.photographs(files), "decode", "score")
        rows = [self._scorer.complete(row | self._given if arrays else row, arrays) for row, arrays in read]
        part = _merged(before, again_N, pa.Table.from_pylist(rows, PART))
        return self._commit(work, part, again_N, clock)


class _ReadAndScore:
    """Both, in one worker."""

    def __init__(self, *arguments: Any) -> None:
        self._read, self._score = _Read(*arguments), _Score(*arguments)

    def __call__(self, batch: Batch) -> Batch:
        return self._score(self._read(batch))


def _other_node(run: str) -> RefusedError:
    return RefusedError(f"{run}: a node has other hardware or versions than the run; make the nodes equal")


class _Commit:
    """Writes a shard's file, and tells of it what `watch` counts."""

    def __init__(self, run: Run, identity: str) -> None:
        self.run, self._identity = run, identity
        self._judge = judge.load(run) if "calibration" in run.facts else None

    def __call__(self, work: Work, part: pa.Table, again_N: NDArray[np.bool_], clock: Clock) -> Batch:
        try:
            shards.write_part(self.run.location, self._identity, work, part)
        except OSError as error:  # on the way to the driver, Ray would put its advice in the file's place
            cure = "what is finished is kept, run the same command again"
            raise InputError(f"{self.run.location}: {error.strerror or error}; {cure}") from error
        clock.lap("commit")
        return {"told": [watch.tell(work.shard, part, again_N, self._judge, clock)]}


def _work(batch: Batch) -> Work:
    return Work(int(batch["shard"][0]), int(batch["attempt"][0]))


def resolve_backend(device: str, precision: str) -> Backend:
    """The backend of the workers: of this machine, or asked on one of a cluster's."""
    if session.is_local():
        return backend.resolve(device, precision)
    with session.session():
        chosen = session.device(device)
        task = ray.remote(backend.resolve).options(num_gpus=1 if chosen == "cuda" else 0)
        resolved: Backend = ray.get(task.remote(chosen, precision))
        return resolved
