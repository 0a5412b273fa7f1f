"""The ceiling for photographs: one process per core, decode and `PhotoScorer`, one photograph at a time.

python bare_photographs.py MODEL FOLDER OUT
"""

import os
import sys
from multiprocessing import get_context
from pathlib import Path

import pandas as pd


def start(model: str) -> None:
    """Loads the scorer, once per process."""
    import cv2
    import torch

    from crackvae.model import artifact, backend
    from crackvae.model.photograph import PhotoScorer

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    loaded = artifact.load(model)
    precision = backend.resolve("cpu", loaded.config.scoring.precision).precision
    globals()["scorer"] = PhotoScorer(loaded, "cpu", precision)


def score(path: Path) -> float:
    """The score of a photograph."""
    from crackvae.images.decode import decode

    image = decode(path.read_bytes(), min_side=16, max_megapixels=200, color=True)
    assert image.chroma_hw2 is not None
    evidence_hw, _ = globals()["scorer"].anomaly_map(image.gray_HW, image.chroma_hw2, None)
    return float(evidence_hw.max())


def main(model: str, folder: str, out: str) -> None:
    """Scores a folder."""
    paths = sorted(Path(folder).iterdir())
    with get_context("spawn").Pool(len(os.sched_getaffinity(0)), start, (model,)) as pool:
        scores = pool.map(score, paths, chunksize=1)
    Path(out).mkdir(parents=True)
    pd.DataFrame({"path": [str(path) for path in paths], "score": scores}).to_parquet(Path(out, "scores.parquet"))


if __name__ == "__main__":
    main(*sys.argv[1:])
