"""What a worker does with a shard: reads, decodes, scores, commits. Who hands it out does not matter here."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from crackvae.cluster import watch
from crackvae.cluster.watch import Clock
from crackvae.dataset.decoder import Decoder
from crackvae.errors import InputError, RefusedError
from crackvae.images.appearance import looks_of_tiles
from crackvae.images.decode import Gray
from crackvae.model import artifact, backend
from crackvae.model.artifact import Artifact
from crackvae.model.backend import Backend
from crackvae.run import directory, finalize, judge, maps, shards
from crackvae.run.directory import Run
from crackvae.run.shards import Work
from crackvae.schema import PART, Status


@dataclass(frozen=True)
class Job:
    """What every worker of a run is told.

    Attributes:
        run: Location of the run directory.
        identity: The run's.
        model: Location of the model artifact.
        computed_on: The run's backend; a worker that has another one refuses.
    """

    run: str
    identity: str
    model: str
    computed_on: Backend


@dataclass(frozen=True)
class Tiles:
    """A shard of images that were read, each one tile.

    Attributes:
        tiles_NSS: Zeros in the place of an image that failed.
        part: Its rows, columns of `schema.PART`.
        again_N: Which of them were read now; others are an earlier attempt's.
        seconds: It took to read them.
    """

    tiles_NSS: Gray
    part: pa.Table
    again_N: NDArray[np.bool_]
    seconds: float


class TileReader:
    """Reads and decodes shards of images, each to one tile."""

    def __init__(self, job: Job) -> None:
        if backend.versions() != job.computed_on.versions:
            raise _other(job)
        self._run = directory.read_header(job.run)
        self._decoder = Decoder(_model(job, self._run).config.image)

    def read(self, work: Work) -> Tiles:
        """Reads a shard."""
        clock = Clock()
        files = self._run.plan.shard(work.shard)
        before, again_N = _again(self._run, work)
        tiles_NSS, part = self._decoder.read(files.filter(again_N))
        if work.attempt:  # else all were read, in order: to copy them takes 45 microseconds each
            placed_NSS = np.zeros((len(files), *tiles_NSS.shape[1:]), np.uint8)
            placed_NSS[again_N] = tiles_NSS
            tiles_NSS, part = placed_NSS, _merged(before, again_N, part)
        clock.lap("decode")
        return Tiles(tiles_NSS, part, again_N, clock.seconds["decode"])


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


class _Worker:
    """Refuses to score on another backend; writes a shard's file, and tells of it what `watch` counts."""

    def __init__(self, job: Job) -> None:
        torch.set_num_threads(1)
        if backend.resolve(job.computed_on.device, job.computed_on.precision) != job.computed_on:
            raise _other(job)
        self._job, self._run = job, directory.read_header(job.run)
        self._judge = judge.load(self._run) if "calibration" in self._run.facts else None

    def _commit(self, work: Work, part: pa.Table, again_N: NDArray[np.bool_], clock: Clock) -> str:
        try:
            shards.write_part(self._job.run, self._job.identity, work, part)
        except OSError as error:  # on its way to the job's process, its file would be lost
            cure = "what is finished is kept, run the same command again"
            raise InputError(f"{self._job.run}: {error.strerror or error}; {cure}") from error
        clock.lap("commit")
        return watch.tell(work.shard, part, again_N, self._judge, clock)


class TileWorker(_Worker):
    """Scores shards of tiles and commits them."""

    def __init__(self, job: Job) -> None:
        from crackvae.model.scorer import TileScorer

        super().__init__(job)
        self._scorer = TileScorer(_model(job, self._run), job.computed_on.device, job.computed_on.precision)

    def score(self, work: Work, tiles: Tiles) -> str:
        """Scores and commits a shard; returns what `watch.tell` tells of it."""
        clock, part = Clock(), tiles.part
        clock.seconds["decode"] = tiles.seconds
        # What an earlier attempt scored keeps its score; what failed has none.
        new_N = pc.and_(pc.equal(part["status"], str(Status.OK)), pc.is_null(part["score"]))
        error_N, latent_N = self._scorer.measure(tiles.tiles_NSS)
        measured = {"score": error_N, "reconstruction_error": error_N, "latent": latent_N}
        for name, value_N in (measured | looks_of_tiles(tiles.tiles_NSS)).items():
            column = pc.if_else(new_N, pa.array(value_N), part[name])
            part = part.set_column(part.schema.get_field_index(name), name, column)
        clock.lap("score")
        return self._commit(work, part, tiles.again_N, clock)


class PhotographWorker(_Worker):
    """Reads, decodes, scores and commits shards of photographs, one photograph after the other."""

    def __init__(self, job: Job) -> None:
        import cv2

        from crackvae.model.photograph import PhotoScorer

        super().__init__(job)
        cv2.setNumThreads(1)
        loaded = _model(job, self._run)
        self._decoder = Decoder(loaded.config.image)
        self._given = self._run.facts.get("given", {})
        on, keep_tiles = job.computed_on, finalize.TILES_DIRECTORY in finalize.tables(self._run)
        self._scorer = PhotoScorer(loaded, on.device, on.precision, keep_tiles=keep_tiles)
        self._photographs = loaded.photographs

    def score(self, work: Work) -> str:
        """Reads, scores and commits a shard; returns what `watch.tell` tells of it."""
        clock = Clock()
        before, again_N = _again(self._run, work)
        files = self._run.plan.shard(work.shard).filter(again_N)
        read = clock.split(self._decoder.photographs(files), "decode", "score")
        rows = [self._complete(row, arrays, work.shard) for row, arrays in read]
        part = _merged(before, again_N, pa.Table.from_pylist(rows, PART))
        return self._commit(work, part, again_N, clock)

    def _complete(self, row: dict[str, Any], arrays: list[Gray], shard: int) -> dict[str, Any]:
        if not arrays:
            return row
        keep = None
        # A run that calibrates a model is not judged, and has no pictures.
        if self._judge and self._photographs and maps.is_kept(shard, arrays[0].size):
            keep = partial(maps.keep, self._job.run, row["image_id"], limit=self._photographs.map_limit)
        return self._scorer.complete(row | self._given, arrays, keep)


class ImageWorker:
    """Reads and scores shards of images, each one tile."""

    def __init__(self, job: Job) -> None:
        self._reader, self._worker = TileReader(job), TileWorker(job)

    def score(self, work: Work) -> str:
        """Reads, scores and commits a shard; returns what `watch.tell` tells of it."""
        return self._worker.score(work, self._reader.read(work))


def whole(job: Job) -> ImageWorker | PhotographWorker:
    """A worker that does everything."""
    return ImageWorker(job) if artifact.load(job.model).photographs is None else PhotographWorker(job)


def _model(job: Job, run: Run) -> Artifact:
    """The run's model; a node may have another one under its name, or it may have been replaced since."""
    model = artifact.load(job.model)
    if model.fingerprint != run.facts["model"]:
        raise RefusedError(
            f"{job.model}: is not the model that the run began with; what is scored is kept, put that one back and run "
            "the same command again"
        )
    return model


def _other(job: Job) -> RefusedError:
    return RefusedError(f"{job.run}: a node has other hardware or versions than the run; make the nodes equal")
