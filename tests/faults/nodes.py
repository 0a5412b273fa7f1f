"""A Ray cluster of a head and two nodes on this machine; a node is lost for every line on standard input.

Prints its address, then the number of the lost node each time. A process of its own, because the
test's process may be connected to another Ray.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from ray.cluster_utils import Cluster

_PATIENCE = 30.0  # seconds


def main() -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})  # what scores, scores on a node
    nodes = [cluster.add_node(num_cpus=2) for _ in range(2)]
    print(cluster.address, flush=True)
    for _ in sys.stdin:
        deadline = time.monotonic() + _PATIENCE
        while not (scorers := max(map(_scorers, nodes))) and time.monotonic() < deadline:
            time.sleep(0.01)
        lost = max(nodes, key=_scorers)
        cluster.remove_node(lost, allow_graceful=False)
        nodes.remove(lost)
        print(scorers, flush=True)
        nodes.append(cluster.add_node(num_cpus=2))
    cluster.shutdown()


def _scorers(node: object) -> int:
    """How many workers score on a node."""
    (raylet,) = node.all_processes["raylet"]  # type: ignore[attr-defined]
    children = Path(f"/proc/{raylet.process.pid}/task/{raylet.process.pid}/children").read_text().split()
    titles = (Path(f"/proc/{pid}/cmdline") for pid in children)
    return sum("Score" in title.read_text() for title in titles if title.exists())


if __name__ == "__main__":
    main()
