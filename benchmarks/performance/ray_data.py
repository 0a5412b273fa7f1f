"""Batch inference as Ray Data's documentation writes it: read_images, map_batches with a class, write_parquet.

python ray_data.py MODEL FOLDER OUT
"""

import os
import sys
from typing import Any

import numpy as np
import ray
import torch

from crackvae.model import artifact

Batch = dict[str, Any]


class Scorer:
    """The network, loaded once per actor."""

    def __init__(self, model: str) -> None:
        self.network = artifact.load(model).network().eval()

    def __call__(self, batch: Batch) -> Batch:
        """Reconstruction errors."""
        x = torch.from_numpy(batch["image"].astype(np.float32) / 127.5 - 1)[:, None]
        with torch.inference_mode():
            x_hat, _, _ = self.network.reconstruct(x)
        return {"path": batch["path"], "error": ((x_hat - x) ** 2).mean(dim=(1, 2, 3)).numpy()}


def main(model: str, folder: str, out: str) -> None:
    """Scores a folder."""
    cores = len(os.sched_getaffinity(0))
    # One CPU more than actors: with none left for the reading tasks the pipeline would never begin.
    ray.init(address="local", num_cpus=cores + 1, include_dashboard=False, log_to_driver=False)
    dataset = ray.data.read_images(folder, size=(128, 128), mode="L", include_paths=True)
    scores = dataset.map_batches(
        Scorer, fn_constructor_args=(model,), batch_size=64, compute=ray.data.ActorPoolStrategy(size=cores)
    )
    scores.write_parquet(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
