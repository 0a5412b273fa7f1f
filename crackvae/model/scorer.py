"""Scoring: tiles to anomaly maps and scores, with no Ray in sight."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from crackvae import storage
from crackvae.dataset.sources import Reader
from crackvae.dataset.tiles import read_tile
from crackvae.errors import ArtifactError, ImageError
from crackvae.images.decode import Gray
from crackvae.images.tile import darkness, to_tile
from crackvae.model import artifact, backend
from crackvae.model.artifact import Artifact
from crackvae.model.network import normalise
from crackvae.schema import Label, Status
from crackvae.statistics import calibration


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


class AnomalyScorer:
    """Scores images in one process: the same numbers as a scoring job, to 1e-5 relative.

    Example:
        >>> from crackvae import AnomalyScorer
        >>> AnomalyScorer.load("model").score(["bridge.jpg"])  # doctest: +SKIP

    Args:
        model: A calibrated model.
        device: `cpu`, `cuda` or `auto`.

    Raises:
        ArtifactError: The model is not calibrated.
    """

    def __init__(self, model: Artifact, device: str = "auto") -> None:
        if model.calibration is None:
            raise ArtifactError("the model is not calibrated; `crackvae train` does it at its end")
        self.config = model.config
        self.calibration = model.calibration
        self.threshold = calibration.threshold(model.calibration.score_N, model.config.scoring.alpha)
        self.backend = backend.resolve(device, model.config.scoring.precision)
        self.tiles = TileScorer(model, self.backend.device, self.backend.precision)

    @classmethod
    def load(cls, model: str | os.PathLike[str], device: str = "auto") -> AnomalyScorer:
        """Reads a model artifact.

        Args:
            model: Its directory, a path or a URI.
            device: `cpu`, `cuda` or `auto`.

        Raises:
            ArtifactError: There is no usable model.
        """
        return cls(artifact.load(os.fspath(model)), device)

    def score(self, images: Iterable[str | Path | Gray]) -> pd.DataFrame:
        """Scores images one by one file, each in its own row.

        Args:
            images: Paths or URIs, or arrays: gray_HW (uint8) of any size.

        Returns:
            One row per image, in order: status, message, score, reconstruction_error, p_value,
            prediction, darkness. An image that cannot be scored has a status and a message.
        """
        size = self.config.image.tile_size
        tiles, rows = [], []
        with Reader() as reader:
            for image in images:
                row: dict[str, object] = {"status": Status.OK.value, "message": None}
                tile = np.zeros((size, size), np.uint8)
                try:
                    tile, row["darkness"] = self._prepare(image, reader)
                except ImageError as error:
                    row["status"], row["message"] = error.status.value, error.message
                tiles.append(tile)
                rows.append(row)
        columns = [
            "status",
            "message",
            "score",
            "reconstruction_error",
            "p_value",
            "prediction",
            "darkness",
        ]
        frame = pd.DataFrame(rows, columns=columns)
        if not rows:
            return frame
        score_N = self.tiles.score(np.stack(tiles)).astype(np.float64)
        score_N[frame["status"] != Status.OK] = np.nan
        frame["score"] = frame["reconstruction_error"] = score_N
        frame["p_value"] = calibration.p_values(score_N, self.calibration.score_N)
        crack_N = calibration.is_anomalous(score_N, self.threshold)
        frame["prediction"] = np.where(crack_N, Label.CRACK.value, Label.NORMAL.value)
        frame.loc[frame["status"] != Status.OK, "prediction"] = None
        return frame

    def _prepare(self, image: str | Path | Gray, reader: Reader) -> tuple[Gray, float]:
        if isinstance(image, np.ndarray):
            if image.ndim != 2 or image.dtype != np.uint8 or min(image.shape) < self.config.image.min_side:
                raise ImageError(
                    Status.UNDECODABLE,
                    f"an array must be gray_HW uint8, not {image.dtype} {image.shape}",
                )
            return to_tile(image, self.config.image.tile_size), darkness(image)
        return read_tile(reader, self.config.image, storage.to_uri(os.fspath(image)))
