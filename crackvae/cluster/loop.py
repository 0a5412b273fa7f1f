"""What each training worker runs, and the checkpoint it leaves after every epoch.

A checkpoint is weights and optimiser state as safetensors and a JSON file; nothing is pickled.
Random numbers of an epoch follow from seed, epoch and worker, so that a training that was killed
and went on draws what an undisturbed one draws.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import safetensors.torch
import torch
import torch.distributed
from ray.train.torch.config import TorchConfig, _setup_torch_process_group, _TorchBackend
from torch import Tensor

from crackvae import config as configuration
from crackvae.model import artifact, backend
from crackvae.model.loss import vae_loss
from crackvae.model.network import ConvVAE, normalise

_SHUFFLE_ROWS = 8192  # tiles held for shuffling: 128 MB at 128x128
_VAL_BATCH = 32
_WEIGHTS, _OPTIMISER, _STATE = "weights.safetensors", "optimiser.safetensors", "state.json"

Record = dict[str, float]


class OnLoopback(TorchConfig):
    """Workers of one machine meet by a file and talk on its loopback; torch's own store listens on every interface."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """What starts the workers' process group."""
        return _OnLoopback


class _OnLoopback(_TorchBackend):
    _store: Path | None = None

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        self._store = Path(tempfile.gettempdir()) / f"crackvae-{uuid.uuid4().hex}"
        on_gpu = worker_group.get_resources_per_worker().get("GPU", 0) > 0
        rest = len(worker_group), self._store.as_uri(), backend_config.timeout_s
        ranks = range(len(worker_group))
        ray.get([worker_group.execute_single_async(rank, _join, on_gpu, rank, *rest) for rank in ranks])

    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
        super().on_shutdown(worker_group, backend_config)
        if self._store:
            self._store.unlink(missing_ok=True)


def _join(on_gpu: bool, rank: int, size: int, store: str, timeout_s: int) -> None:
    loopback = "lo" if sys.platform == "linux" else "lo0"
    os.environ.update({"GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": loopback})
    _setup_torch_process_group("nccl" if on_gpu else "gloo", rank, size, store, timeout_s)


def describe(record: Record, epochs: int) -> str:
    """An epoch's record as a line."""
    left = (epochs - record["epoch"]) * record["seconds"]
    return (
        f"epoch {record['epoch']:.0f}/{epochs}  mse {record['mse']:.5f}  kl {record['kl']:.1f}  "
        f"validation mse {record['val_mse']:.5f}  {record['images_per_second']:.0f} images/s  "
        f"{left // 60:.0f}:{left % 60:02.0f} left"
    )


def train_worker(options: dict[str, Any]) -> None:
    """The training loop of one Ray Train worker.

    Args:
        options: config, precision, start_from (a model's location or None), and the queue that
            progress goes to.
    """
    config = configuration.parse(options["config"], "training")
    context = ray.train.get_context()
    world, rank = context.get_world_size(), context.get_world_rank()
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // context.get_local_world_size()))
    torch.manual_seed(config.training.seed)
    network = artifact.build_network(config)
    if options["start_from"]:
        network.load_state_dict(artifact.load(options["start_from"]).network().state_dict())
    device = ray.train.torch.get_device()
    network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.Adam(network.parameters(), lr=config.training.learning_rate)
    history = _restore(network, optimiser)
    wrapped = ray.train.torch.prepare_model(network)
    tiles = ray.train.get_dataset_shard("train")
    val_tiles = ray.train.get_dataset_shard("val")
    seen = sum(record["images"] for record in history)
    for epoch in range(len(history) + 1, config.training.epochs + 1):
        start = time.monotonic()
        seed = config.training.seed * 1_000_003 + epoch
        torch.manual_seed(seed * world + rank)
        sums = torch.zeros(3, dtype=torch.float64)  # squared error, KL, images
        reported = start
        for tile_BHW in _batches(tiles, config.training.batch_size // world, seed, device):
            with backend.autocast(device.type, options["precision"]):
                x_B1HW = normalise(tile_BHW)
                loss = vae_loss(wrapped(x_B1HW), x_B1HW, config.training.kl_weight)
            optimiser.zero_grad(set_to_none=True)
            loss.total.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            count = len(tile_BHW)
            sums += torch.tensor([loss.mse.item() * count, loss.kl.item() * count, count])
            if rank == 0 and time.monotonic() - reported > 1:
                reported = time.monotonic()
                options["queue"].put({"images": seen + int(sums[2]) * world})
        _add_up(sums)
        trained = time.monotonic() - start
        record = {
            "epoch": epoch,
            "mse": float(sums[0] / sums[2]),
            "kl": float(sums[1] / sums[2]),
            "val_mse": _validate(network, val_tiles, device, options["precision"], world, rank),
            "images": int(sums[2]),
            "images_per_second": float(sums[2]) / trained,
            "seconds": time.monotonic() - start,
        }
        seen += record["images"]
        history.append(record)
        _report(network, optimiser, history, rank)
        if rank == 0:
            options["queue"].put({"images": seen, "record": record})


def _batches(tiles: Any, size: int, seed: int, device: torch.device) -> Iterator[Tensor]:
    for batch in tiles.iter_torch_batches(
        batch_size=max(1, size),
        local_shuffle_buffer_size=_SHUFFLE_ROWS,
        local_shuffle_seed=seed,
        drop_last=False,
        device=device,
        prefetch_batches=2,
    ):
        yield batch["tile"]


@torch.inference_mode()
def _validate(network: ConvVAE, tiles: Any, device: torch.device, precision: str, world: int, rank: int) -> float:
    """Mean squared error of the validation normals, from the mean, without sampling.

    Every worker sees all of them and computes its share of the batches: splitting the dataset
    would drop the remainder.
    """
    sums = torch.zeros(2, dtype=torch.float64)
    network.eval()
    for index, batch in enumerate(tiles.iter_torch_batches(batch_size=_VAL_BATCH, device=device)):
        if index % world != rank:
            continue
        x_B1HW = normalise(batch["tile"])
        with backend.autocast(device.type, precision):
            x_hat_B1HW, _, _ = network.reconstruct(x_B1HW)
        error_B = (x_hat_B1HW.float() - x_B1HW).square().mean(dim=(1, 2, 3))
        sums += torch.tensor([float(error_B.double().sum()), len(error_B)])
    network.train()
    _add_up(sums)
    return float(sums[0] / sums[1])


def _add_up(sums: Tensor) -> None:
    """Sums over the workers, in place."""
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        device = ray.train.torch.get_device()
        everywhere = sums.to(device)
        torch.distributed.all_reduce(everywhere)
        sums.copy_(everywhere.cpu())


def _report(network: ConvVAE, optimiser: torch.optim.Adam, history: list[Record], rank: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = None
        if rank == 0:
            names = [name for name, _ in network.named_parameters()]
            state = optimiser.state_dict()["state"]
            tensors = {
                f"{names[i]}:{key}": value.contiguous() for i, slots in state.items() for key, value in slots.items()
            }
            weights = {name: value.contiguous() for name, value in network.state_dict().items()}
            safetensors.torch.save_file(weights, Path(folder, _WEIGHTS))
            safetensors.torch.save_file(tensors, Path(folder, _OPTIMISER))
            Path(folder, _STATE).write_text(json.dumps(history))
            checkpoint = ray.train.Checkpoint.from_directory(folder)
        ray.train.report(history[-1], checkpoint=checkpoint)


def read_checkpoint(checkpoint: ray.train.Checkpoint) -> tuple[dict[str, Tensor], list[Record]]:
    """The network's weights after the last epoch, and a record of each epoch so far."""
    with checkpoint.as_directory() as folder:
        return safetensors.torch.load_file(Path(folder, _WEIGHTS)), json.loads(Path(folder, _STATE).read_text())


def _restore(network: ConvVAE, optimiser: torch.optim.Adam) -> list[Record]:
    """Loads the last checkpoint of this training, if there is one; returns its history."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return []
    with checkpoint.as_directory() as folder:
        tensors = safetensors.torch.load_file(Path(folder, _OPTIMISER))
    weights, history = read_checkpoint(checkpoint)
    network.load_state_dict(weights)
    slots, names = ("step", "exp_avg", "exp_avg_sq"), [name for name, _ in network.named_parameters()]
    state = {index: {slot: tensors[f"{name}:{slot}"] for slot in slots} for index, name in enumerate(names)}
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
    return history
