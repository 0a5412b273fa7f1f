"""A connection to Ray: the cluster of the job that this process is, or one on this machine."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
import ray.data
import ray.exceptions

from crackvae.errors import CrackvaeError

# One logical CPU more than cores: actors that hold them all would starve the stages that feed
# them, and a pipeline on two CPUs then waits for ever.
_FREE_CPUS = 1
_STALLED_SECONDS = 1800


@contextmanager
def session() -> Iterator[None]:
    """Connects to the cluster named by RAY_ADDRESS, or starts Ray here; ends what it started.

    A submitted job has RAY_ADDRESS set. Without it nothing is joined by chance: a cluster that
    happens to run on this machine is left alone. Where Ray is already connected, it is used.

    Raises:
        CrackvaeError: What a worker raised on purpose, as it was raised there.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # tell nobody about the user's surveys
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if is_local():
        ray.init(address="local", num_cpus=cores() + _FREE_CPUS, include_dashboard=False, **quiet)
    else:
        ray.init(address=os.environ["RAY_ADDRESS"], **quiet)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    context.execution_no_progress_timeout_s = _STALLED_SECONDS
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, CrackvaeError):
            raise error.cause from None
        raise
    finally:
        ray.shutdown()


def is_local() -> bool:
    """Whether Ray runs on this machine alone, for this process."""
    return not os.environ.get("RAY_ADDRESS")


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0))


def worker_pool(most: int) -> ray.data.ActorPoolStrategy:
    """A pool of one-CPU workers.

    Here it is what the cores allow. On a cluster the pool grows as nodes join, so that it asks
    the autoscaler for them.

    Args:
        most: Workers that there is work for.
    """
    if not is_local():
        return ray.data.ActorPoolStrategy(min_size=1, max_size=max(1, most))
    return ray.data.ActorPoolStrategy(size=max(1, min(cores(), most)))


def gpus() -> int:
    """GPUs of the cluster."""
    return _resource("GPU")


def device(asked: str) -> str:
    """What `auto` means on this cluster: cuda where it has a GPU."""
    return asked if asked != "auto" else "cuda" if gpus() else "cpu"


def _resource(name: str) -> int:
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return int(resources.get(name, 0))
