"""A Ray cluster as somebody else would start it, on loopback: token authentication, a Python without crackvae.

Each node has an address of its own (for 127.0.0.1, Ray would take one that others reach), and a session directory of
its own (two that share one delete each other's files). It can be warned or killed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import urllib.request
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from faults import harness

TOKEN = "a-token-that-only-this-test-knows-of"
CLIENT = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
PREFIXES = ("127.", "[::1]", "[::ffff:127.")
_PATIENCE = 120.0  # seconds


class Cluster:
    """A head that computes nothing and nodes of one processor each; node 0 is the head.

    Args:
        nodes: How many there are beside the head.
        elsewhere: A folder that is an empty one on the last node, as a local disk is; needs root.

    Attributes:
        folder: Where all of it lies.
        address: URL of the dashboard.
    """

    def __init__(self, nodes: int, elsewhere: Path | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # sockets have short names only
        self._nodes: list[subprocess.Popen[bytes]] = []
        self._commands: list[list[object]] = []
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self._environment |= CLIENT | {"RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0"}
        self._install()
        port, dashboard = _free_port(), _free_port()
        self.address = f"http://127.0.0.1:{dashboard}"
        try:
            self.start("--head", f"--port={port}", f"--dashboard-port={dashboard}", "--num-cpus=0")
            self._until_alive(1)
            for number in range(nodes):
                hidden = elsewhere if number == nodes - 1 else None
                self.start(f"--address=127.0.0.2:{port}", "--num-cpus=1", hidden=hidden)
            self._until_alive(nodes + 1)
        except BaseException:
            self.end()
            raise

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def _install(self) -> None:
        """This environment's packages, without crackvae, for the base Python: the code has to come with the job."""
        site, mine, binaries = Path(sysconfig.get_paths()["purelib"]), self.folder / "site", self.folder / "bin"
        mine.mkdir()
        for entry in site.iterdir():
            if "crackvae" not in entry.name:
                (mine / entry.name).symlink_to(entry)
        binaries.mkdir()
        (binaries / "python").symlink_to(Path(sys.executable).resolve())
        self._environment |= {"PYTHONPATH": str(mine), "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}"}

    def start(self, *options: str, hidden: Path | None = None) -> None:
        number = len(self._nodes)
        ports = ("dashboard-agent-listen", "dashboard-agent-grpc", "runtime-env-agent", "metrics-export")
        ours = [f"--{name}-port={_free_port()}" for name in ports]
        ours += [f"--node-ip-address=127.0.0.{number + 2}", f"--temp-dir={self.folder}/{number}"]
        ours += ["--object-store-memory=200000000", "--disable-usage-stats"]
        command = [self.folder / "bin" / "python", "-m", "ray.scripts.scripts", "start", "--block", *ours, *options]
        if hidden:
            command = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs tmpfs "$0" && exec "$@"', hidden, *command]
        self._commands.append(command)
        self._nodes.append(self._spawned(number))

    def _spawned(self, number: int) -> subprocess.Popen[bytes]:
        command = list(map(str, self._commands[number]))
        with (self.folder / f"{number}.log").open("ab") as said:
            return subprocess.Popen(command, start_new_session=True, env=self._environment, stdout=said, stderr=said)

    def alive(self) -> int:
        """How many nodes the head knows of."""
        request = urllib.request.Request(f"{self.address}/api/v0/nodes", headers={"Authorization": f"Bearer {TOKEN}"})
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                nodes = json.load(answer)["data"]["result"]["result"]
        except OSError:
            return 0
        return sum(node["state"] == "ALIVE" for node in nodes)

    def _until_alive(self, count: int) -> None:
        deadline = time.monotonic() + _PATIENCE
        while self.alive() < count:
            said = [path.read_text() for path in sorted(self.folder.glob("*.log"))]
            assert time.monotonic() < deadline, said
            for number, node in enumerate(self._nodes):
                if node.poll() is not None:  # on a busy machine, Ray's own 30 s are not enough for a node to come up
                    assert said[number].count("timed out during startup") == 1, said
                    self._nodes[number] = self._spawned(number)
            time.sleep(0.5)

    def scoring_node(self) -> int:
        """A node that scores at the moment."""
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            for number, node in enumerate(self._nodes):
                if harness.rays_scoring_workers(node.pid):
                    return number
            time.sleep(0.01)
        raise AssertionError("no node scores")

    def kill(self, number: int) -> None:
        """SIGKILL of a raylet, as when a machine is gone."""
        for pid, title in harness.processes(self._nodes[number].pid).items():
            if title.partition("\0")[0].endswith("/raylet"):
                harness.with_signal(pid, signal.SIGKILL)

    def warn(self, number: int, grace: float = 30.0) -> float:
        """SIGTERM, and SIGKILL of what is left after the grace. Returns the seconds until all was gone."""
        node, began = self._nodes[number], time.monotonic()
        node.terminate()
        while harness.processes(node.pid) and time.monotonic() - began < grace:
            node.poll()
            time.sleep(0.05)
        gone = time.monotonic() - began
        harness.end(node.pid)
        return gone

    def end(self) -> None:
        for node in self._nodes:
            harness.end(node.pid)
            node.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def listening(pids: Collection[int] | None = None) -> list[str]:
    """The addresses and ports on which these processes, or all, take connections."""
    lines = subprocess.run(["ss", "-ltnpH"], capture_output=True, text=True, check=True).stdout.splitlines()
    return [line.split()[3] for line in lines if pids is None or any(f"pid={pid}," in line for pid in pids)]


@contextmanager
def watched() -> Iterator[set[str]]:
    """Meanwhile collects the addresses on which this session's processes take connections."""
    heard, done = set[str](), threading.Event()

    def watch() -> None:
        while not done.wait(1):
            heard.update(listening(harness.processes(os.getsid(0))))

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield heard
    finally:
        done.set()
        watching.join()


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])
