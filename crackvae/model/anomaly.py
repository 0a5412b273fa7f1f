"""`AnomalyScorer`: images to scores and predictions in one process."""

from __future__ import annotations

import os
from collections.abc import Iterable

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from crackvae import storage
from crackvae.dataset.reader import Reader
from crackvae.dataset.tiles import describe, pixels, read_image
from crackvae.errors import ImageError
from crackvae.images.appearance import looks_of_tiles
from crackvae.images.decode import Decoded, of_array
from crackvae.images.exif import Metadata
from crackvae.model import artifact, backend
from crackvae.model.artifact import Artifact
from crackvae.model.photograph import PhotoScorer, Row
from crackvae.model.scorer import TileScorer
from crackvae.schema import PART, Label, Status

Image = str | os.PathLike[str] | NDArray[np.uint8]

_BATCHES = 8  # of tiles, that are held before they are scored


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
        self.config = model.config
        self.normals = model.calibrated.normals
        self.backend = backend.resolve(device, model.precision)
        scorer = TileScorer if model.photographs is None else PhotoScorer
        self._scorer = scorer(model, self.backend.device, self.backend.precision)

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

    def score(self, images: Iterable[Image]) -> pd.DataFrame:
        """Scores images one by one file, each in its own row.

        Args:
            images: Paths or URIs, or arrays of uint8: gray_HW or rgb_HW3.

        Returns:
            One row per image, in order: the columns of `schema.PART` after image_id, then p_value,
            p_value_is_bound and prediction. An image that cannot be scored has a status and a message.

        Raises:
            TypeError: It is a single image.
        """
        if isinstance(images, str | os.PathLike | np.ndarray):
            raise TypeError("score takes a list of images; for a single one, [image]")
        rows: list[Row] = []
        waiting: list[tuple[Row, NDArray[np.uint8]]] = []
        with Reader() as reader:
            for image in images:
                row, arrays = self._read(image, reader)
                if isinstance(self._scorer, PhotoScorer):
                    row = self._scorer.complete(row, arrays)
                elif arrays:
                    waiting.append((row, arrays[0]))
                    if len(waiting) == _BATCHES * self.config.scoring.batch_size:
                        self._score_tiles(waiting)
                rows.append(row)
        self._score_tiles(waiting)
        frame = pd.DataFrame(rows, columns=PART.names[1:])
        # As a run keeps them, and the calibration: in float64 a score could miss one of the calibration that it equals.
        score_N, worst_N = (frame[name].to_numpy(np.float32, na_value=np.nan) for name in ("score", "worst_tile_score"))
        tiles_N = frame["tiles"].fillna(1).to_numpy(np.float64)
        verdict = self.normals.judge(score_N, worst_N, tiles_N, self.config.scoring.alpha)
        prediction_N = np.where(verdict.is_anomalous_N, Label.CRACK.value, Label.NORMAL.value).astype(object)
        prediction_N[~verdict.is_decided_N] = None
        is_bound_N = verdict.is_bound_N.astype(object)
        is_bound_N[np.isnan(score_N)] = None
        return frame.assign(p_value=verdict.p_N, p_value_is_bound=is_bound_N, prediction=prediction_N)

    def _score_tiles(self, waiting: list[tuple[Row, NDArray[np.uint8]]]) -> None:
        """Scores the tiles that wait, into their rows."""
        if not waiting or not isinstance(self._scorer, TileScorer):
            return
        tile_NSS = np.stack([tile_SS for _, tile_SS in waiting])
        error_N, latent_N = self._scorer.measure(tile_NSS)
        measured = {"score": error_N, "reconstruction_error": error_N, "latent": latent_N, **looks_of_tiles(tile_NSS)}
        for number, (row, _) in enumerate(waiting):
            row.update({name: float(value_N[number]) for name, value_N in measured.items()})
        waiting.clear()

    def _read(self, image: Image, reader: Reader) -> tuple[Row, list[NDArray[np.uint8]]]:
        try:
            if isinstance(image, np.ndarray):
                gray_HW, chroma_hw2 = of_array(image, color=self.config.image.tiling == "native")
                if min(gray_HW.shape) < self.config.image.min_side:
                    raise ImageError(Status.TOO_SMALL, f"{self.config.image.min_side} pixels a side are needed")
                decoded = Decoded(gray_HW, chroma_hw2, Metadata())
            else:
                decoded = read_image(reader, self.config.image, storage.to_uri(os.fspath(image)))
        except ImageError as error:
            return {"status": str(error.status), "message": error.message}, []
        return {"status": str(Status.OK), **describe(decoded)}, pixels(decoded, self.config.image)
