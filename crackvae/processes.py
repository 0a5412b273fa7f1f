"""Processes of this machine, forks of one that has imported what they need: they begin within milliseconds."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker, util
from multiprocessing.connection import Connection
from types import ModuleType
from typing import Any, TypeVar

from crackvae import logs
from crackvae.errors import LostError
from crackvae.terminal import show_cursor

_T = TypeVar("_T")

# -P: this may be a folder of images from anywhere, with a numpy.py in it. One thread each: there is one for each core.
_ENVIRONMENT = {"PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0))


def prepare(modules: Sequence[str] = ()) -> None:
    """Starts the process that others are forked from, if it does not run: it imports modules beside what this does."""
    multiprocessing.set_forkserver_preload(["crackvae.orphan", *modules])
    before = {name: os.environ.get(name) for name in _ENVIRONMENT}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    os.environ.update(_ENVIRONMENT)
    try:
        resource_tracker.ensure_running()  # before, for it unblocks SIGINT
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # for all of them: Ctrl-C is for this one
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def clean() -> None:
    """Removes what a process that leaves by `os._exit` would leave behind: the folder of a socket."""
    shutil.rmtree(util.get_temp_dir(), ignore_errors=True)


@contextmanager
def pool(size: int) -> Iterator[Executor]:
    """Processes that end with the block, with this process, and at once where either ends by an error.

    Raises:
        LostError: One of them was killed.
    """
    prepare()
    context = multiprocessing.get_context("forkserver")
    held, lifeline = context.Pipe(duplex=False)
    with held, lifeline, _Pool(size, context, _begin, (held, dict(os.environ))) as executor:
        try:
            yield executor
        except BrokenProcessPool as error:
            show_cursor()
            raise LostError("a process of this job was killed, perhaps for want of memory") from error
        except BaseException:
            lifeline.close()
            executor.shutdown(cancel_futures=True)
            show_cursor()
            raise


@contextmanager
def beside(act: Callable[..., object], *arguments: Any) -> Iterator[None]:
    """Acts in a process of its own while the block runs; where there is one core, before it."""
    if cores() == 1:
        act(*arguments)
        yield
        return
    with pool(1) as executor:
        done = executor.submit(act, *arguments)
        yield
        done.result()


class _Pool(ProcessPoolExecutor):
    def submit(self, act: Callable[..., _T], /, *arguments: Any, **named: Any) -> Future[_T]:
        """Hides the script that calls this: a process that starts would run it once more.

        A signal waits meanwhile: of a process that is half started nobody would know, and it would outlive this one.
        """
        script = sys.modules["__main__"]
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM])
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            return super().submit(act, *arguments, **named)
        finally:
            sys.modules["__main__"] = script
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _begin(held: Connection, environment: dict[str, str]) -> None:
    """Has a process end, whatever it is doing, when the one that uses it lets go."""
    os.environ.clear()
    os.environ.update(environment | _ENVIRONMENT)  # it may have changed since the first of them was started
    logs.start()

    def watch() -> None:
        held.poll(None)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
