"""Training the ConvVAE with Ray Train, from a manifest with splits to a calibrated artifact."""

from __future__ import annotations

import platform
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
import ray.train
import torch
from ray.train.torch import TorchTrainer
from ray.util.queue import Empty, Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from torch import Tensor

import crackvae
from crackvae import storage
from crackvae.cluster import claim, here, loop, session, survey
from crackvae.cluster.calibrate import calibrate
from crackvae.cluster.decoding import at_pitch, decode_batch
from crackvae.config import Config
from crackvae.dataset import manifest, splitting
from crackvae.dataset.decoder import Decoder
from crackvae.errors import CrackvaeError, InputError, TooManyFailedError, UsageError
from crackvae.images.decode import Gray
from crackvae.model import artifact, photograph
from crackvae.model.artifact import Artifact
from crackvae.model.backend import Backend
from crackvae.model.quantised import LARGEST, largest_activations
from crackvae.processes import cores
from crackvae.schema import Label, Split
from crackvae.statistics import calibration, domain
from crackvae.terminal import log, progress

_BLOCK_ROWS = 512  # files per block: 8 MB of 128x128, where each is one tile
_BLOCK_BYTES = 2**24  # of them: two photographs
_STARTS = 30  # that may fail, all in all; a minute each, where processors or GPUs are missing
_SIZED = 64  # training images whose size decides on the tiling
_QUANTISED_TILES = 1024  # that the scales of int8 are learned from
_LEARNED_IMAGES, _LEARNED_PIXELS, _WINDOW = 300, 5e7, 1024  # of the training images: evidence takes 0.4 s a megapixel


def train(
    manifest_location: str,
    out: str,
    config: Config,
    *,
    workers: int | None = None,
    start_from: str | None = None,
    device: str = "auto",
) -> Artifact:
    """Trains on the split `train`, calibrates on the normals of `val`, writes the artifact.

    After a kill the same call goes on from the last epoch. Crack images are never looked at.

    Args:
        manifest_location: A manifest with splits.
        out: Directory of the artifact.
        config: What to train.
        workers: Training processes; by default one per GPU, or one on CPUs.
        start_from: A model whose weights to begin with.
        device: `cpu`, `cuda` or `auto`.

    Raises:
        InputError: The manifest has no training or too few validation normals.
        RefusedError: The directory holds something else.
        UsageError: More workers are asked for than there are cores or GPUs, or than divide a batch.
        TooManyFailedError: Too many training images cannot be read.
    """
    table = manifest.read(manifest_location)
    train_rows, all_val_rows = (manifest.rows(table, split=s, label=Label.NORMAL) for s in (Split.TRAIN, Split.VAL))
    val_rows = manifest.one_per_group(all_val_rows)
    if train_rows.num_rows == 0:
        raise InputError(f"{manifest_location}: no normal has split 'train'; run `crackvae split`")
    # Fails now, not after training, where alpha asks for more calibration normals.
    calibration.threshold(np.zeros(val_rows.num_rows), config.scoring.alpha)
    config = _decide_tiling(config, train_rows)
    base = artifact.load(start_from) if start_from else None
    if base and (base.config.network, base.config.image) != (config.network, config.image):
        raise InputError(f"{start_from}: has another network or tile; give the same [network] and [image] by --config")
    facts = {
        "config": config.model_dump(mode="json"),
        "data": claim.data(table),
        "start_from": base.fingerprint if base else None,
    }
    if artifact.is_artifact(out):
        return claim.finished(out, facts)
    if config.training.batch_size % (workers or 1):
        raise UsageError(f"--workers {workers}: does not divide training.batch_size {config.training.batch_size}")
    if here.is_local() and (workers or 1) > cores():
        raise UsageError(f"--workers {workers}: this machine has {cores()} cores; ask for no more")
    with claim.claim(out, facts), session.session():
        computed_on = survey.resolve_backend(device, config.training.precision)
        workers = workers or _workers(config.training.batch_size, computed_on.device)
        apart = splitting.apart(table)
        twins, train_rows = train_rows.num_rows - apart.num_rows, apart
        tiles, failed = _tiles(train_rows, config)
        val_tiles, val_failed = _tiles(val_rows, config)
        weights, history = _fit(tiles, val_tiles, out, config, workers, base, computed_on)
        provenance = {
            **facts,
            "train_normals": train_rows.num_rows,
            "failed_images": failed + val_failed,
            "training_twins_left_out": twins,
            "calibration_twins_left_out": all_val_rows.num_rows - val_rows.num_rows,
            "workers": workers,
            "trained_on": computed_on.as_dict(),
            "machine": f"{platform.machine()}, {cores()} cores",
            "crackvae": crackvae.__version__,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        model = _learn(Artifact(config, weights, None, history, provenance), tiles, train_rows)
        model = calibrate(model, val_rows, storage.join(out, claim.WORK), device)
        return claim.complete(model, out)


def _workers(batch_size: int, device: str) -> int:
    """One for each GPU, as far as there are processors for them and the batch can be divided."""
    most = min(session.gpus(), session.cpus()) if device == "cuda" else 1
    return max(workers for workers in range(1, max(1, most) + 1) if batch_size % workers == 0)


def _decide_tiling(config: Config, rows: pa.Table) -> Config:
    """Makes `auto` native unless most training images are smaller than a tile."""
    if config.tiling != "auto":
        return config.with_tiling(config.tiling)
    image = config.image.model_copy(update={"tiling": "resize"})
    chosen = rows.take(np.linspace(0, len(rows) - 1, min(_SIZED, len(rows))).astype(np.int64))
    with Decoder(image) as decoder:
        read = decoder.read(chosen)[1]
    side = pc.approximate_median(pc.min_element_wise(read["width"], read["height"])).as_py() or 0
    decided = config.with_tiling("native" if side >= image.tile_size or image.mm_per_pixel else "resize")
    tiling, score = decided.image.tiling, decided.scoring.score
    log.info("tiling %s, score %s: half of the training images have %d pixels or more a side", tiling, score, side)
    return decided


def _learn(model: Artifact, tiles: ray.data.Dataset, rows: pa.Table) -> Artifact:
    """Adds the scales of int8, and what photographs are judged by: of training images, so that others stay unseen."""
    some_BHW = torch.from_numpy(np.stack([row["tile"] for row in tiles.take(_QUANTISED_TILES)]))
    model = replace(model, weights={**model.weights, LARGEST: largest_activations(model.network(), some_BHW)})
    if model.config.image.tiling != "native":
        return model
    known = tiles.select_columns(["feature", "mm_per_pixel"]).to_pandas()
    pitch = known["mm_per_pixel"].max()
    learnt = domain.fit(np.stack(known["feature"].to_list()), None if np.isnan(pitch) else float(pitch))
    return replace(model, photographs=photograph.learn(model, learnt, list(_windows(rows, model.config))))


def _windows(rows: pa.Table, config: Config) -> Iterator[Gray]:
    """A part of each of some training images, whole where they are small."""
    generator, left = np.random.default_rng(config.training.seed), _LEARNED_PIXELS
    chosen = rows.take(generator.permutation(len(rows))[:_LEARNED_IMAGES])
    with Decoder(config.image) as decoder, progress("learning", len(chosen), "images") as advance:
        for row, arrays in decoder.photographs(chosen):
            advance(1)
            gray_HW = at_pitch(row, arrays[0], config.image) if arrays else None
            if gray_HW is not None and left > 0:
                y, x = (int(generator.integers(max(0, side - _WINDOW) + 1)) for side in gray_HW.shape)
                yield gray_HW[y : y + _WINDOW, x : x + _WINDOW]
                left -= min(gray_HW.size, _WINDOW**2)


def _fit(
    tiles: ray.data.Dataset,
    val_tiles: ray.data.Dataset,
    out: str,
    config: Config,
    workers: int,
    base: Artifact | None,
    computed_on: Backend,
) -> tuple[dict[str, Tensor], list[loop.Record]]:
    on_gpu = computed_on.device == "cuda"
    if on_gpu and here.is_local() and workers > session.gpus():
        raise UsageError(f"--workers {workers}: this machine has {session.gpus()} GPUs; ask for no more")
    here_alone = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    queue = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here_alone})  # lost with this process only
    if base is not None:
        artifact.save(base, storage.join(out, claim.WORK, "start"))
    _discard_torn_record(storage.join(out, claim.WORK, "ray"))
    trainer = TorchTrainer(
        loop.train_worker,
        train_loop_config={
            "config": config.model_dump(mode="json"),
            "precision": computed_on.precision,
            "start_from": storage.join(out, claim.WORK, "start") if base else None,
            "queue": queue,
        },
        torch_config=loop.OnLoopback() if here.is_local() else None,
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers, use_gpu=on_gpu, resources_per_worker={"CPU": 1, "GPU": int(on_gpu)}
        ),
        run_config=ray.train.RunConfig(
            name="ray",
            storage_path=storage.absolute(storage.join(out, claim.WORK)),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            failure_config=ray.train.FailureConfig(
                max_failures=2,
                controller_failure_limit=_STARTS,  # type: ignore[call-arg]  # checked as Ray Train 1's
            ),
        ),
        datasets={"train": tiles, "val": val_tiles},
        dataset_config=ray.train.DataConfig(datasets_to_split=["train"]),
    )
    result = _watch(trainer, queue, config.training.epochs, tiles.count())
    if result.checkpoint is None:
        raise CrackvaeError(f"{out}: training left no checkpoint; run the same command again")
    return loop.read_checkpoint(result.checkpoint)


def _tiles(rows: pa.Table, config: Config) -> tuple[ray.data.Dataset, int]:
    """Decodes and shuffles images, once: the tiles stay in Ray's object store between epochs."""
    files = rows.select(["uri", "size", "content_hash"])
    held_N = np.cumsum(files["size"].fill_null(0).to_numpy()) // _BLOCK_BYTES
    block_N = np.maximum.accumulate(held_N + np.arange(len(files)) // _BLOCK_ROWS)
    edges = [0, *(np.flatnonzero(np.diff(block_N)) + 1), len(files)]
    blocks = [files.slice(start, stop - start) for start, stop in pairwise(edges)]
    decode = partial(decode_batch, image=config.image, most=config.training.tiles_per_image)
    decoded = (
        ray.data.from_arrow(blocks)
        .map_batches(decode, batch_size=None, batch_format="pyarrow", num_cpus=1)
        .random_shuffle(seed=config.training.seed)
        .materialize()
    )
    missing = len(files) - int(decoded.sum("is_first") or 0)
    if missing > config.scoring.max_failed_fraction * len(files):
        raise TooManyFailedError(
            f"{missing:,} of {len(files):,} training images cannot be read (`crackvae split` says which), are smaller "
            "than a tile, or their pixel pitch is unknown"
        )
    if missing:
        log.warning("%d of %d images cannot be used and are left out", missing, len(files))
    return decoded, missing


def _discard_torn_record(folder: str) -> None:
    """Ray Train rewrites its list of checkpoints in place: a kill in between leaves half of it."""
    record = storage.join(folder, "checkpoint_manager_snapshot.json")
    try:
        storage.read_json(record, lambda content: content, "it is removed")
    except InputError:
        log.warning("%s: was cut off; training starts from the first epoch", record)
        storage.remove(folder)


def _watch(trainer: TorchTrainer, queue: Queue, epochs: int, tiles: int) -> ray.train.Result:
    """Runs a training and shows what its workers put into the queue: a line an epoch, a bar between."""
    outcome: Future[ray.train.Result] = Future()

    def fit() -> None:
        try:
            outcome.set_result(trainer.fit())
        except BaseException as error:
            outcome.set_exception(error)

    # In the main thread, Ray Train would turn Ctrl-C into exit code 0.
    threading.Thread(target=fit, daemon=True).start()
    with progress("training", epochs * tiles, "images") as advance:
        shown = 0
        while not outcome.done() or not queue.empty():
            try:
                item = queue.get(timeout=0.5)
            except Empty:
                continue
            advance(item["images"] - shown)
            shown = item["images"]
            if "record" in item:
                log.info(loop.describe(item["record"], epochs))
    try:
        return outcome.result()
    except ray.train.TrainingFailedError as error:
        reason = " ".join(str(error).split())[:500]
        raise CrackvaeError(f"training workers failed, run the same command again to go on: {reason}") from error
