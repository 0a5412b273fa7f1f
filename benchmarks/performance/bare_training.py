"""The ceiling for training: a bare PyTorch loop over tiles in memory.

python bare_training.py SPLIT EPOCHS OUT      writes the seconds of each epoch
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

from crackvae.config import Config
from crackvae.dataset import manifest
from crackvae.dataset.reader import Reader
from crackvae.dataset.tiles import pixels, read_image
from crackvae.model import artifact, backend
from crackvae.model.loss import vae_loss
from crackvae.model.network import normalise


def main(split: str, epochs: int, out: str) -> None:
    """Trains the reference network."""
    config = Config(recipe="reference")
    rows = manifest.rows(manifest.read(split), split="train", label="normal")
    with Reader() as reader:
        tiles = [pixels(read_image(reader, config.image, uri), config.image)[0] for uri in rows["uri"].to_pylist()]
    tile_NHW = torch.from_numpy(np.stack(tiles))
    network = artifact.build_network(config).to(memory_format=torch.channels_last)
    optimiser = torch.optim.Adam(network.parameters(), lr=config.training.learning_rate)
    seconds = []
    for _ in range(epochs):
        start = time.perf_counter()
        for batch_N in torch.randperm(len(tile_NHW)).split(config.training.batch_size):
            with backend.autocast("cpu", backend.resolve("cpu", "auto").precision):
                x_B1HW = normalise(tile_NHW[batch_N])
                loss = vae_loss(network(x_B1HW), x_B1HW, config.training.kl_weight)
            optimiser.zero_grad(set_to_none=True)
            loss.total.backward()
            optimiser.step()
        seconds.append(time.perf_counter() - start)
    Path(out).write_text(json.dumps(seconds))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
