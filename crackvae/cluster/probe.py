"""What would fail an hour later, found in the first seconds: asked on every node before a command begins."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util import placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import crackvae
from crackvae import storage
from crackvae.cluster import session
from crackvae.dataset import sources, table_files
from crackvae.errors import CrackvaeError, InputError, UsageError
from crackvae.model import backend
from crackvae.model.artifact import PRETRAINED
from crackvae.terminal import SENT_BY, log

_READ = ("model", "manifest", "source", "start_from")
_ANSWER_SECONDS = 120
_SCALING_SECONDS = 20  # an autoscaler looks every 5
_SPILL_BYTES, _SPILL_SHARE = 2**30, 0.05  # Ray spills nothing to a disk that is 95% full


def versions() -> str:
    """What has to be the same here and on a cluster."""
    return f"crackvae {crackvae.__version__}, Ray {ray.__version__.rpartition('.')[0]}"


def places(options: Mapping[str, Any]) -> list[str]:
    """The locations that a command reads, and last the one that it writes to."""
    read = [*options.get("sources", []), *(options[name] for name in _READ if options.get(name))]
    return [*(place for place in read if place != PRETRAINED), options["out"]]


def check(options: Mapping[str, Any]) -> None:
    """Asks every node whether it sees the inputs and the output, has room, and is like the others. Needs a session.

    Nodes that the autoscaler brings later are not asked.

    Raises:
        InputError: A node does not see a place, runs something else, or has no room.
        UsageError: There are not the GPUs or processors that it asks for, and none are coming.
    """
    if os.environ.get(SENT_BY, versions()) != versions():
        raise InputError(f"the cluster has {versions()}, here is {os.environ[SENT_BY]}; make them equal")
    if os.environ.get("RAY_AUTH_MODE") != "token":
        log.warning("this cluster runs code of whoever reaches its ports: start it with RAY_AUTH_MODE=token")
    kind = "GPU" if session.device(options.get("device", "auto")) == "cuda" else "CPU"
    _check_resources(kind, options.get("workers") or 1)
    *inputs, out = map(storage.absolute, places(options))
    token = _hidden(out)
    storage.write_bytes(token, b"")
    try:
        problems, equal = _ask(kind, [*inputs, *(file for place in inputs for file in _one_file(place)), token], out)
    finally:
        storage.remove(token)
    for node, problem in problems.items():
        if problem:
            raise InputError(f"node {node}: {problem.replace(token, out)}")
    if len(equal) > 1:
        (one, first), (other, second) = list(equal.items())[:2]
        raise InputError(f"node {first} has {_besides(one, other)}, {second} {_besides(other, one)}; make them equal")
    log.info("%d nodes see %s", len(problems), ", ".join([*inputs, out]))


def _besides(one: str, other: str) -> str:
    return ", ".join(part for part in one.split(", ") if part not in other.split(", "))


def _hidden(out: str) -> str:
    return storage.join(out, f".probe-{secrets.token_hex(6)}.tmp")


def _one_file(place: str) -> Iterator[str]:
    """A file of a source: a node may have a folder of that name, or the table, and not what belongs to it."""
    if storage.exists(place) and (kind := sources.kind(place)) in {"folder", "table"}:
        if kind == "folder":
            uris = (file.uri for file in sources.list_source(place))
        else:
            uris = (uri for block in table_files.read_blocks(place, ["uri"]) for uri in block["uri"].to_pylist())
        file = (next(uris, None) or "").partition("!/")[0]  # a member of an archive is in it
        if file and storage.exists(file):
            yield file


def _check_resources(kind: str, count: int) -> None:
    if (session.gpus() if kind == "GPU" else session.cpus()) >= count:
        return
    wish = placement_group([{kind: 1}] * count)
    deadline = time.monotonic() + _SCALING_SECONDS
    try:
        while time.monotonic() < deadline:
            if wish.wait(1) or _nodes_are_coming():
                return
    finally:
        remove_placement_group(wish)
    raise UsageError(f"the cluster has fewer than {count} {kind}s, and no autoscaler brings them; ask for what it has")


def _nodes_are_coming() -> bool:
    """What `ray status` says: nothing else tells it of both of Ray's autoscalers."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "status"]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return "Pending:" in said and "(no pending nodes)" not in said


def _ask(kind: str, places: Sequence[str], out: str) -> tuple[dict[str, str], dict[str, str]]:
    """What is wrong on each living node, if anything, and of all that those with a GPU or CPU run, one that does."""
    asked: dict[str, Any] = {}
    problems: dict[str, str] = {}
    runs: dict[str, str] = {}
    for node in ray.nodes():  # type: ignore[no-untyped-call]
        if node["Alive"]:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            session_directory = str(Path(node["ObjectStoreSocketName"]).parents[1])  # by default, it spills to that
            task = ray.remote(_look).options(num_cpus=0, scheduling_strategy=there)
            name = f"{node['NodeManagerAddress']} ({node['NodeID'][:8]})"
            asked[name] = node, task.remote(places, out, session_directory, kind)
    deadline = time.monotonic() + _ANSWER_SECONDS
    for name, (node, answer) in asked.items():
        try:
            problems[name], running = ray.get(answer, timeout=max(0.0, deadline - time.monotonic()))
        except RayError as error:
            reason = str(error).strip().rpartition("\n")[2]
            raise InputError(f"node {name}: gives no answer ({reason}); remove it, or look at its log") from error
        if node["Resources"].get(kind):
            runs.setdefault(running, name)
    return problems, runs


def _look(places: Sequence[str], out: str, spills_to: str, kind: str) -> tuple[str, str]:
    """What is wrong on this node, if anything, and what it runs."""
    disk, problem = shutil.disk_usage(spills_to), ""
    if disk.free < max(_SPILL_BYTES, _SPILL_SHARE * disk.total):
        problem = f"{disk.free / 1e9:.1f} GB are free in {spills_to}, too few for Ray to spill to; make room"
    try:
        if unseen := next((place for place in places if not storage.exists(place)), None):
            problem = f"does not see {unseen}; use a bucket, or a disk that every node has mounted there"
        else:
            mine = _hidden(out)
            storage.write_bytes(mine, b"")
            storage.remove(mine)
    except (OSError, CrackvaeError) as error:
        problem = " ".join(str(error).split())
    on = backend.resolve("cpu", "auto")
    hardware = f"{on.hardware}, {on.precision}, " if kind == "CPU" else ""
    return problem, f"{versions()}, Python {sys.version.split()[0]}, {hardware}{on.versions}"
