"""A command as a job of a cluster that somebody else operates: sent, followed, and left running at Ctrl-C."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shlex
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aiohttp import ClientError
from ray.exceptions import RayError
from ray.job_submission import JobStatus, JobSubmissionClient

import crackvae
from crackvae import object_store, storage
from crackvae.cluster import probe
from crackvae.errors import CrackvaeError, DetachedError, ExitCode, InputError, UnavailableError, UsageError
from crackvae.terminal import SENT_BY, log

for _name in ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", "_private.runtime_env.packaging"):
    logging.getLogger(f"ray.{_name}").setLevel(logging.WARNING)  # or they say what they upload where

_POLL_SECONDS = 1.0
_TAKEN_ALONG = ("config", "structures")  # options that may name a small file of this machine


def submit(address: str, arguments: Sequence[str], options: Mapping[str, Any], *, image_code: bool) -> int:
    """Sends a command to a cluster, streams its log to standard output, waits for its end.

    Args:
        address: URL of the cluster's dashboard.
        arguments: The command as it is written here.
        options: The same, parsed.
        image_code: Whether the cluster's own crackvae runs; otherwise this one is sent.

    Returns:
        The job's exit code.

    Raises:
        UsageError: The address is no URL.
        InputError: The cluster takes no job, or a place is one of this machine.
        UnavailableError: The cluster does not answer any more.
        DetachedError: Ctrl-C or SIGTERM: the job goes on.
    """
    if not address.startswith(("http://", "https://")):
        raise UsageError(f"--address {address}: give the URL of the dashboard, such as http://localhost:8265")
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        os.environ.pop(name, None)  # Ray would take it instead
    for place in probe.places(options):
        object_store.check_uri(place, "what is sent")  # the cluster keeps and shows the command
        local = storage.local_path(place)
        if local is not None and not local.is_absolute():
            raise InputError(f"{place}: is looked for on the cluster; give a full path that its nodes see, or a URI")
    with tempfile.TemporaryDirectory() as folder:
        client, job = _send(address, arguments, options, Path(folder), image_code)
    ray_job = f"`ray job {{}} {job} --address {address}`"
    log.info("job %s: %s", job, ray_job.format("status|logs|stop"))
    try:
        return _follow(client, job)
    except KeyboardInterrupt:
        raise DetachedError(
            f"job {job} goes on; {ray_job.format('stop')} stops it, {ray_job.format('logs --follow')} shows its log"
        ) from None
    except (OSError, RuntimeError, RayError) as error:
        raise UnavailableError(
            f"{address}: does not answer any more ({_line(error)}); {ray_job.format('status')} says how job {job} ends"
        ) from error


def _send(
    address: str, arguments: Sequence[str], options: Mapping[str, Any], folder: Path, image_code: bool
) -> tuple[JobSubmissionClient, str]:
    environment: dict[str, Any] = {"env_vars": {SENT_BY: probe.versions()}}
    command = list(arguments)
    for name in _TAKEN_ALONG:
        if (location := options.get(name)) and "://" not in location:
            if not Path(location).is_file():
                raise InputError(f"{location}: no such file")
            shutil.copy(location, folder)
            given = {location, *(word for word in command if re.fullmatch(f"--[a-z]+={re.escape(location)}", word))}
            command = [word.replace(location, Path(location).name) if word in given else word for word in command]
            environment["working_dir"] = str(folder)
    if not image_code:
        environment["py_modules"] = [str(Path(crackvae.__file__).parent)]
    entrypoint = f"exec python -m crackvae {shlex.join(command)}"
    try:
        client = JobSubmissionClient(address)
        return client, client.submit_job(entrypoint=entrypoint, runtime_env=environment)
    except (OSError, RuntimeError, RayError) as error:
        cure = "is the cluster up, its dashboard's port forwarded to here, and RAY_AUTH_TOKEN (or _PATH) its token?"
        raise InputError(f"{address}: takes no job ({_line(error)}); {cure}") from error


def _line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _follow(client: JobSubmissionClient, job: str) -> int:
    async def stream() -> None:
        async for text in client.tail_job_logs(job):
            print(text, end="", flush=True)

    try:
        asyncio.run(stream())
    except (OSError, RuntimeError, ClientError) as error:  # the connection, not the job
        log.warning("its log is cut off (%s); waiting for its end", _line(error))
    while not client.get_job_status(job).is_terminal():
        time.sleep(_POLL_SECONDS)
    ended = client.get_job_info(job)
    if ended.status == JobStatus.STOPPED:
        return ExitCode.TERMINATED
    if ended.driver_exit_code is None and ended.status != JobStatus.SUCCEEDED:
        raise CrackvaeError(f"job {job} did not run to its end: {' '.join(str(ended.message).split())}")
    code = int(ended.driver_exit_code or 0)
    return code if code >= 0 else 128 - code  # as a shell has it, where a signal ended it
