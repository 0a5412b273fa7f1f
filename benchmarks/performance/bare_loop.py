"""The ceiling: one process per core, crackvae's decode, network and batch, and nothing else.

    python bare_loop.py MODEL FOLDER OUT [PRECISION]      by default bf16 where the processor has it, or else fp32

No row for a damaged file, no baseline, no resume: what is left out is what a job costs beyond it. In int8 the network
is crackvae's own, otherwise PyTorch's as it is.
"""

import os
import sys
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd

BATCH = 32


def start(model: str, precision: str) -> None:
    """Loads the network, once per process."""
    import torch

    from crackvae.model import artifact, backend
    from crackvae.model.quantised import QuantisedVAE

    torch.set_num_threads(1)
    loaded = artifact.load(model)
    network = loaded.network().to(memory_format=torch.channels_last)
    globals()["precision"] = precision = backend.resolve("cpu", precision).precision
    globals()["network"] = QuantisedVAE(network, loaded.largest_activations()) if precision == "int8" else network


def score(paths: list[Path]) -> list[float]:
    """Reconstruction errors of one batch."""
    import torch

    from crackvae.images.decode import decode
    from crackvae.images.tile import to_tile
    from crackvae.model import backend
    from crackvae.model.network import normalise

    tiles = [to_tile(decode(path.read_bytes(), min_side=16, max_megapixels=200).gray_HW, 128) for path in paths]
    with torch.inference_mode():
        gray = torch.from_numpy(np.stack(tiles))
        x = normalise(gray)
        with backend.autocast("cpu", globals()["precision"]):
            x_hat, _, _ = globals()["network"].reconstruct(gray if globals()["precision"] == "int8" else x)
        return [float(error) for error in (x_hat.float() - x).square().mean(dim=(1, 2, 3))]


def main(model: str, folder: str, out: str, precision: str = "auto") -> None:
    """Scores a folder."""
    paths = sorted(Path(folder).iterdir())
    batches = [paths[at : at + BATCH] for at in range(0, len(paths), BATCH)]
    cores = len(os.sched_getaffinity(0))
    with get_context("spawn").Pool(cores, start, (model, precision)) as pool:
        errors = [error for batch in pool.imap(score, batches) for error in batch]
    Path(out).mkdir(parents=True)
    pd.DataFrame({"path": [str(path) for path in paths], "error": errors}).to_parquet(Path(out, "scores.parquet"))


if __name__ == "__main__":
    main(*sys.argv[1:])
