"""A connection to Ray: the cluster of the job that this process is, or one on this machine."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
import ray.data
import ray.exceptions
import torch

from crackvae.cluster.here import is_local
from crackvae.errors import CrackvaeError
from crackvae.processes import cores

# One logical CPU more than cores: actors that hold them all would starve the stages that feed
# them, and a pipeline on two CPUs then waits for ever.
_FREE_CPUS = 1
_STALLED_SECONDS = 1800
_MOST_SHARERS = 16
_SHARER_BYTES = 8 * 10**8
_BUSY = 0.9  # share of a pool's workers, from which on it grows; by Ray's default of 1.75 it would have to queue work


@contextmanager
def session() -> Iterator[None]:
    """Connects to the cluster named by RAY_ADDRESS, or starts Ray here; ends what it started.

    A submitted job has RAY_ADDRESS set. Without it nothing is joined by chance: a cluster that
    happens to run on this machine is left alone. Where Ray is already connected, it is used.

    Raises:
        CrackvaeError: What a worker raised on purpose, as it was raised there.
        OSError: What a worker met at a disk or an object store.
    """
    if ray.is_initialized():
        yield
        return
    _connect()
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # tracebacks of what crackvae itself reports
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    context.raise_original_map_exception = True
    context.execution_no_progress_timeout_s = _STALLED_SECONDS
    context.autoscaling_config.actor_pool_util_upscaling_threshold = _BUSY
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, (CrackvaeError, OSError)):
            raise _as_raised(error.cause) from None
        raise
    finally:
        ray.shutdown()  # not in a thread, to save 1.2 s: a reference let go meanwhile ends the process


def _connect() -> None:
    """Joins or starts Ray, and takes SIGTERM back: Ray's own handler ends the process with exit code 15."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # tell nobody about the user's surveys
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    on_terminate = signal.getsignal(signal.SIGTERM)

    def take_back() -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_terminate)

    try:
        if is_local():
            ray.init(
                address="local",
                num_cpus=cores() + _FREE_CPUS,
                num_gpus=gpus(),
                object_store_memory=_object_store_bytes(),
                include_dashboard=False,
                **quiet,
            )
        else:
            ray.init(address=os.environ["RAY_ADDRESS"], **quiet)
        take_back()
    except SystemExit:  # SIGTERM came meanwhile
        take_back()
        signal.raise_signal(signal.SIGTERM)


def _as_raised(error: CrackvaeError | OSError) -> CrackvaeError | OSError:
    """Without the advice about its own settings that Ray Data 2.60 puts among the arguments."""
    if isinstance(error, OSError) and error.errno is not None:
        return OSError(error.errno, error.strerror)  # the advice has taken the file name's place
    error.args = tuple(str(argument).partition("\nFailed to ")[0] for argument in error.args)
    return error


def _object_store_bytes() -> int:
    """A fifth of the memory (Ray takes 30%), within what /dev/shm holds."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(min(memory // 5, shutil.disk_usage("/dev/shm").free * 0.9))


def worker_pool(most: int, now: int, *, ahead: bool = False) -> ray.data.ActorPoolStrategy:
    """A pool of workers.

    Here it is as large as it is. On a cluster it grows as nodes join, so that it asks the autoscaler for them.

    Args:
        most: Workers that there is work for.
        now: Workers that there is room for.
        ahead: Whether a worker is given its next shard before it has finished one. A slow one then keeps two waiting.
    """
    in_flight = None if ahead else 1
    size = max(1, min(most, now))
    if is_local():
        return ray.data.ActorPoolStrategy(size=size, max_tasks_in_flight_per_actor=in_flight)
    return ray.data.ActorPoolStrategy(
        min_size=1, max_size=max(1, most), initial_size=size, max_tasks_in_flight_per_actor=in_flight
    )


def gpus() -> int:
    """GPUs of the cluster, or of this machine."""
    return torch.cuda.device_count() if is_local() else _of_cluster("GPU")


def cpus() -> int:
    """Processors of the cluster, or of this machine."""
    return cores() if is_local() else _of_cluster("CPU")  # here, Ray was told of one more


def _of_cluster(kind: str) -> int:
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return int(resources.get(kind, 0))


def sharers_of_gpu() -> int:
    """Workers that a GPU can serve: each has a processor, and some 0.7 GB of the GPU's memory."""
    room = _gpu_bytes() if is_local() else ray.get(ray.remote(_gpu_bytes).options(num_gpus=0.01).remote())
    return max(1, min(_MOST_SHARERS, cpus() // max(1, gpus()), room // _SHARER_BYTES))


def _gpu_bytes() -> int:
    return int(torch.cuda.get_device_properties(0).total_memory)


def device(asked: str) -> str:
    """What a cluster computes on: for `auto`, cuda where it has a GPU now."""
    return asked if asked != "auto" else "cuda" if gpus() else "cpu"
