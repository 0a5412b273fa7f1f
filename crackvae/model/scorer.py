"""Scoring tiles, with no Ray in sight."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from crackvae.model import backend
from crackvae.model.artifact import Artifact
from crackvae.model.network import normalise


class TileScorer:
    """The network in evaluation mode, on a device.

    Every batch has the same shape: the last one of a call is filled up with zeros. With one
    thread, the score of a tile then depends on its pixels and its place in the call alone.

    Args:
        model: What to score with.
        device: `cpu` or `cuda`.
        precision: `fp32` or `bf16`.
    """

    def __init__(self, model: Artifact, device: str, precision: str) -> None:
        self._device = torch.device(device)
        self._precision = precision
        self._batch_size = model.config.scoring.batch_size
        network = model.network().to(self._device)
        self._network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def score(self, tile_NHW: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Mean squared error of each tile against its reconstruction.

        Args:
            tile_NHW: Gray levels.

        Returns:
            error_N: In units of the network's input range [-1, 1], squared.
        """
        error_N = np.empty(len(tile_NHW), np.float32)
        for start, x_B1HW, x_hat_B1HW in self._batches(tile_NHW):
            error_B = (x_hat_B1HW - x_B1HW).square().mean(dim=(1, 2, 3)).cpu().numpy()
            error_N[start : start + len(error_B)] = error_B[: len(tile_NHW) - start]
        return error_N

    def reconstruct(self, tile_NHW: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Reconstructions x_hat_NHW in [-1, 1]; the input is `tile / 127.5 - 1`."""
        parts = [x_hat.squeeze(1).cpu().numpy() for _, _, x_hat in self._batches(tile_NHW)]
        return np.concatenate(parts)[: len(tile_NHW)]

    @torch.inference_mode()
    def _batches(self, tile_NHW: NDArray[np.uint8]) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
        for start in range(0, len(tile_NHW), self._batch_size):
            batch_BHW = np.zeros((self._batch_size, *tile_NHW.shape[1:]), np.uint8)
            taken = tile_NHW[start : start + self._batch_size]
            batch_BHW[: len(taken)] = taken
            x_B1HW = normalise(torch.from_numpy(batch_BHW).to(self._device))
            with backend.autocast(self._device.type, self._precision):
                x_hat_B1HW = self._network.reconstruct(x_B1HW)
            yield start, x_B1HW, x_hat_B1HW.float()
