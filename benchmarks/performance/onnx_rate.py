"""The exported graph beside PyTorch on one core: `python benchmarks/performance/onnx_rate.py DATA`.

Tiles of METU's photographs (DATA/metu-concrete-20k.zip); the model that comes with the package, and the reference
network with the weights it begins with, which cost as much as trained ones.
"""

from __future__ import annotations

import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
import torch

from crackvae.config import Config
from crackvae.images.tile import to_tile
from crackvae.model import artifact, onnx_graph
from crackvae.model.artifact import Artifact, Calibration
from crackvae.model.scorer import TileScorer
from crackvae.report.tables import markdown
from crackvae.statistics.calibration import Normals

_TILES, _BATCH, _ROUNDS = 640, 32, 5


def main() -> None:
    """Prints a Markdown table."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with zipfile.ZipFile(Path(sys.argv[1]) / "metu-concrete-20k.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))[:: 20_000 // _TILES][:_TILES]
        data = (np.frombuffer(archive.read(name), np.uint8) for name in names)
        tile_NHW = np.stack([to_tile(cv2.imdecode(each, cv2.IMREAD_GRAYSCALE), 128) for each in data])
    rows = [
        _measured("pretrained", artifact.load(artifact.PRETRAINED), tile_NHW),
        _measured("reference", _reference(), tile_NHW),
    ]
    header = [
        "one core, tiles/s",
        "ONNX Runtime fp32",
        "PyTorch fp32",
        "PyTorch bf16",
        "largest difference to fp32",
        "MB",
    ]
    print(markdown(header, rows))


def _reference() -> Artifact:
    config = Config(recipe="reference").with_tiling("resize")
    torch.manual_seed(0)
    weights = artifact.build_network(config).state_dict()
    score_n = np.linspace(0, 1, 99, dtype=np.float32)
    normals = Normals(score_n, score_n, np.ones(99))
    return Artifact(config, weights, Calibration([""] * 99, {}, {}, normals), [], {})


def _measured(name: str, model: Artifact, tile_NHW: np.ndarray) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx_graph.write(model, str(path))
        size = path.stat().st_size
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    batches = [tile_NHW[start : start + _BATCH] for start in range(0, len(tile_NHW), _BATCH)]

    def of_pytorch(precision: str) -> list[tuple[Any, ...]]:
        scorer = TileScorer(model, "cpu", precision)
        if model.photographs is None:
            return [scorer.measure(batch) for batch in batches]
        return [part for batch in batches for part in scorer.expect(batch)]

    rates, found = zip(*map(_timed, (lambda: [session.run(None, {"tiles": batch}) for batch in batches],
                                     lambda: of_pytorch("fp32"), lambda: of_pytorch("bf16"))), strict=True)  # fmt: skip
    pairs = (
        (ours, theirs) for both in zip(found[0], found[1], strict=True) for ours, theirs in zip(*both, strict=True)
    )
    difference = max(float(np.abs(ours - theirs).max()) for ours, theirs in pairs)
    return [name, *(f"{len(tile_NHW) / seconds:.0f}" for seconds in rates), f"{difference:.1e}", f"{size / 1e6:.1f}"]


def _timed(work: Callable[[], list[Any]]) -> tuple[float, list[Any]]:
    """The quickest of some rounds, and what came out."""
    best, made = np.inf, work()
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        made = work()
        best = min(best, time.perf_counter() - start)
    return best, made


if __name__ == "__main__":
    main()
