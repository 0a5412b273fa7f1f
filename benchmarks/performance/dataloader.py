"""What most people write: a PyTorch Dataset and DataLoader with Pillow, in fp32.

python dataloader.py MODEL FOLDER OUT
"""

import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from crackvae.model import artifact


class Images(Dataset[tuple[torch.Tensor, str]]):
    """Gray tiles in [-1, 1]."""

    def __init__(self, folder: str) -> None:
        self.paths = sorted(Path(folder).iterdir())

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, str]:
        image = Image.open(self.paths[index]).convert("L").resize((128, 128))
        return torch.from_numpy(np.asarray(image, np.float32) / 127.5 - 1)[None], str(self.paths[index])


def main(model: str, folder: str, out: str) -> None:
    """Scores a folder."""
    network = artifact.load(model).network().eval()
    loader = DataLoader(Images(folder), batch_size=64, num_workers=len(os.sched_getaffinity(0)))
    paths: list[str] = []
    errors: list[float] = []
    with torch.no_grad():
        for x, names in loader:
            x_hat, _, _ = network.reconstruct(x)
            errors += ((x_hat - x) ** 2).mean(dim=(1, 2, 3)).tolist()
            paths += names
    Path(out).mkdir(parents=True)
    pd.DataFrame({"path": paths, "error": errors}).to_csv(Path(out, "scores.csv"), index=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
