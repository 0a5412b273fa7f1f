"""A photograph at native resolution: what sound concrete would look like there, and where it does not."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import compress
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from crackvae.errors import ArtifactError
from crackvae.images import appearance, evidence
from crackvae.images.decode import Gray
from crackvae.images.evidence import STEP, Scale
from crackvae.images.ground import COARSEST, Ground
from crackvae.images.paths import Map
from crackvae.images.regions import LENGTH_ERROR, WIDTH_ERROR, Region, find_regions, in_millimetres
from crackvae.images.tile import blending, corners, darkness, resample, starts
from crackvae.model.artifact import Artifact, Photographs
from crackvae.model.scorer import TileScorer
from crackvae.schema import Status
from crackvae.statistics.calibration import size_exponent
from crackvae.statistics.domain import Domain

Row = dict[str, Any]
Bools = NDArray[np.bool_]
Keep = Callable[[Map, Bools], None]
"""Is given an anomaly map and where it was judged."""

_CHUNK_TILES = 256  # held as float32: 17 MB
_TOP_SHARE = 0.02  # of a tile: 82 places, as many as a crack along a side of it
_DARKEST_PERCENT = 3  # of a tile; 3 to 8 tell as much on METU
_DARKER_THAN = 0.999  # of the tiles of training normals
_MOST_DARKNESS = 20.0  # gray levels that count


class PhotoScorer:
    """Scores photographs one by one: what comes out depends on the photograph alone.

    Args:
        model: Trained on native tiles.
        device: `cpu` or `cuda`.
        precision: `fp32` or `bf16`.
        keep_tiles: Whether rows hold the score and error of every tile.

    Raises:
        ArtifactError: The model was trained on whole images.
    """

    def __init__(self, model: Artifact, device: str, precision: str, *, keep_tiles: bool = False) -> None:
        if model.photographs is None:
            raise ArtifactError("the model was trained on whole images; photographs need one of tiling 'native'")
        self._photographs = model.photographs
        self._rules, self._pitch = model.config.scoring, model.config.image.mm_per_pixel
        self._size, self._overlap = model.config.image.tile_size, model.config.image.overlap_pixels
        self._most_pixels = model.config.image.max_megapixels * 10**6
        self._tiles = TileScorer(model, device, precision)
        self._keep_tiles = keep_tiles

    def complete(self, row: Row, arrays: Sequence[Gray], keep: Keep | None = None) -> Row:
        """A decoded file's row with what its pixels are worth; that of a failed one as it is.

        A photograph that cannot be scored for whatever reason is `crashed`.

        Args:
            row: As by `Decoder.photographs`.
            arrays: As by `score`; none where the file failed.
            keep: Is given the `anomaly_map` of a photograph that is scored.
        """
        if not arrays:
            return row
        gray_HW, chroma_hw2 = arrays
        pitch = row.get("mm_per_pixel")
        ground = Ground(pitch, row["mm_per_pixel_error"]) if pitch else None
        try:
            return row | self.score(gray_HW, chroma_hw2, ground, keep)
        except Exception as error:  # of a library, at pixels nobody foresaw, or for want of memory: not the job's end
            self._tiles.check_device()  # raises where no later photograph could be scored either
            return row | _failed(Status.CRASHED, " ".join(f"{type(error).__name__}: {error}".split()))

    def anomaly_map(self, gray_HW: Gray, chroma_hw2: Gray, ground: Ground | None) -> tuple[Map, Bools]:
        """The evidence of a photograph, see `evidence.find_lines`, and where it is judged.

        Both are at the resolution of the evidence, at the model's pixel pitch. Arguments as for `score`.
        """
        return self.view(gray_HW, chroma_hw2, ground)[2:]

    def view(self, gray_HW: Gray, chroma_hw2: Gray, ground: Ground | None) -> tuple[Gray, Gray, Map, Bools]:
        """The photograph at the model's pixel pitch, what sound concrete would look like there, and `anomaly_map`.

        Arguments as for `score`.
        """
        gray_HW = resample(gray_HW, self.factor(ground))
        judged_N, _ = self._judged(gray_HW, chroma_hw2)
        judged_hw = self._area(judged_N, gray_HW.shape)
        expected_HW, sigma_HW, _ = self.expect(gray_HW)
        evidence_hw, _ = evidence.find_lines(gray_HW, sigma_HW, self._photographs.scale, judged_hw)
        return gray_HW, expected_HW, evidence_hw, judged_hw

    def score(self, gray_HW: Gray, chroma_hw2: Gray, ground: Ground | None, keep: Keep | None = None) -> Row:
        """Scores a photograph.

        Args:
            gray_HW: Gray levels, upright.
            chroma_hw2: Its Cb and Cr, at any lower resolution.
            ground: Its ground sampling distance, where known.
            keep: As for `complete`.

        Returns:
            Columns of `schema.PART`, without those that the file itself tells. Places and lengths
            are in pixels of gray_HW.
        """
        if self._pitch is not None and ground is None:
            return _failed(Status.CANNOT_JUDGE, f"its pixel pitch is unknown, and the model's is {self._pitch:g} mm")
        known = self._pitch or self._photographs.domain.coarsest
        if ground and known and ground.mm_per_pixel > COARSEST * known:
            return _failed(Status.CANNOT_JUDGE, f"{ground.mm_per_pixel:.2g} mm a pixel; the model knows {known:.2g}")
        factor = self.factor(ground)
        height, width = (round(factor * length) for length in gray_HW.shape)
        if min(height, width) < self._size:
            return _failed(Status.TOO_SMALL, f"{width}x{height} pixels; a tile has {self._size} a side")
        if height * width > self._most_pixels:
            message = f"{width}x{height} pixels at the model's pitch; over {self._most_pixels / 1e6:g} MP"
            return _failed(Status.TOO_LARGE, message)
        row = self._score(resample(gray_HW, factor), chroma_hw2, factor, ground, keep)
        for region in row.get("regions", ()):  # rounded, one may end a pixel beyond the photograph
            for start, side, length in (("x", "width", gray_HW.shape[1]), ("y", "height", gray_HW.shape[0])):
                region[side] = max(1, min(region[side], length - region[start]))
        return row

    def factor(self, ground: Ground | None) -> float:
        """By which the sides of a photograph grow when it is brought to the model's pixel pitch."""
        return ground.mm_per_pixel / self._pitch if self._pitch and ground else 1.0

    def _score(self, gray_HW: Gray, chroma_hw2: Gray, factor: float, ground: Ground | None, keep: Keep | None) -> Row:
        judged_N, feature_NF = self._judged(gray_HW, chroma_hw2)
        judged_hw = self._area(judged_N, gray_HW.shape)
        row: Row = {"tiles": int(judged_N.sum()), "judged_fraction": float(judged_hw.mean())}
        if row["judged_fraction"] < max(self._rules.min_judged_fraction, 1e-9):
            other = self._photographs.domain.strangest(feature_NF[~judged_N], appearance.FEATURES)
            message = f"{row['judged_fraction']:.0%} is like the training images; the rest has {other}"
            return row | _failed(Status.CANNOT_JUDGE, message)
        expected_HW, sigma_HW, latent_N = self.expect(gray_HW)
        row |= appearance.looks(gray_HW, feature_NF[judged_N], None if judged_N.all() else judged_hw)
        row["latent"] = float(latent_N[judged_N].mean())
        error_N = tile_errors(gray_HW, expected_HW, self._size, self._overlap)
        del expected_HW  # of 100 megapixels, 100 MB
        evidence_hw, contrast_HW = evidence.find_lines(gray_HW, sigma_HW, self._photographs.scale, judged_hw)
        del sigma_HW
        if keep is not None:
            keep(evidence_hw, judged_hw)
        score_N = judged_N * tile_scores(evidence_hw, gray_HW, self._photographs.darkness, self._size, self._overlap)
        row["worst_tile_score"] = float(score_N[judged_N].max())
        row["reconstruction_error"] = float(error_N[judged_N].mean())
        row["score"] = row["worst_tile_score"] / row["tiles"] ** self._photographs.size_exponent
        limit = self._photographs.map_limit
        row["map_peak"] = float(evidence_hw.max())
        row["anomalous_fraction"] = np.count_nonzero(evidence_hw > limit) / np.count_nonzero(judged_hw)
        if math.isfinite(limit) and self._rules.regions:
            size = gray_HW.shape[::-1]
            contrast_HW *= cv2.resize(judged_hw.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
            found = find_regions(evidence_hw, contrast_HW, gray_HW, limit=limit, most=self._rules.regions)
            row["regions"] = [_region(region, factor, ground) for region in found]
        if self._keep_tiles:
            places = corners(gray_HW.shape, self._size, self._overlap)
            tiles = zip(places, score_N.tolist(), error_N.tolist(), judged_N.tolist(), strict=True)
            row["tile_errors"] = [
                {"x": round(x / factor), "y": round(y / factor), "score": s, "reconstruction_error": e, "judged": j}
                for (y, x), s, e, j in tiles
            ]
        return row | {"status": str(Status.OK)}

    def _judged(self, gray_HW: Gray, chroma_hw2: Gray) -> tuple[Bools, NDArray[np.float32]]:
        """Which tiles are like the training images', and the features of all."""
        feature_hwF = appearance.cells(gray_HW, chroma_hw2)
        feature_NF = appearance.of_tiles(feature_hwF, gray_HW.shape, self._size, self._overlap)
        return self._photographs.domain.contains(feature_NF), feature_NF

    def expect(self, gray_HW: Gray) -> tuple[Gray, NDArray[np.float16], NDArray[np.float32]]:
        """What sound concrete would look like in the photograph's place, blended from tiles without seams.

        Args:
            gray_HW: Gray levels, at least a tile a side.

        Returns:
            expected_HW and sigma_HW, its standard deviation, in gray levels, and latent_N of the tiles. Of a crop, the
            same inside as far as a reconstruction does not depend on where its tile lies: see docs/photographs.md.
        """
        size, overlap = self._size, self._overlap
        down, across = (starts(length, size, overlap) for length in gray_HW.shape)
        weight_KS, weight_JS = blending(down, size, overlap), blending(across, size, overlap)
        places = [(k, y, j, x) for k, y in enumerate(down) for j, x in enumerate(across)]
        # Half floats: of 100 megapixels, each takes 200 MB. They tell a tenth of a gray level.
        expected_HW, sigma_HW = (np.zeros(gray_HW.shape, np.float16) for _ in range(2))
        latents = []
        for first in range(0, len(places), _CHUNK_TILES):
            chunk = places[first : first + _CHUNK_TILES]
            tile_NSS = np.stack([gray_HW[y : y + size, x : x + size] for _, y, _, x in chunk])
            tiles = (tile for batch in self._tiles.expect(tile_NSS) for tile in zip(*batch, strict=True))
            for (k, y, j, x), (x_hat_SS, s_SS, latent) in zip(chunk, tiles, strict=True):
                latents.append(latent)
                weight_SS = 127.5 * weight_KS[k][:, None] * weight_JS[j]
                expected_HW[y : y + size, x : x + size] += weight_SS * (x_hat_SS + 1)
                sigma_HW[y : y + size, x : x + size] += weight_SS * s_SS
        expected_HW = np.clip(np.rint(expected_HW, out=expected_HW), 0, 255)
        return expected_HW.astype(np.uint8), sigma_HW, np.array(latents, np.float32)

    def _area(self, judged_N: Bools, shape: tuple[int, int]) -> Bools:
        """The places of the evidence that at least one judged tile covers."""
        judged_hw = np.zeros([side // STEP for side in shape], np.bool_)
        for y, x in compress(corners(shape, self._size, self._overlap), judged_N):
            judged_hw[y // STEP : (y + self._size) // STEP, x // STEP : (x + self._size) // STEP] = True
        return judged_hw


def learn(model: Artifact, domain: Domain, normals: Sequence[Gray]) -> Photographs:
    """Learns from training normals what evidence for a line is compared with, and how it grows with an image.

    Args:
        model: Trained on native tiles.
        domain: What the training tiles look like.
        normals: Gray levels of training images, at least a tile a side, at the model's pixel pitch.
    """
    unlearnt = Photographs(domain, Scale(1, 1, 1, 1, 1, 1), darkness=0.0, size_exponent=0.0)
    scorer = PhotoScorer(replace(model, photographs=unlearnt), "cpu", "fp32")
    expected = [(gray_HW, scorer.expect(gray_HW)[1]) for gray_HW in normals]
    scale = evidence.learn(expected)
    size, overlap = model.config.image.tile_size, model.config.image.overlap_pixels
    darknesses = [tile_darkness(gray_HW, size, overlap) for gray_HW in normals]
    darkest = float(np.quantile(np.concatenate(darknesses), _DARKER_THAN))
    scores = []
    for gray_HW, sigma_HW in expected:
        evidence_hw, _ = evidence.find_lines(gray_HW, sigma_HW, scale)
        scores.append(tile_scores(evidence_hw, gray_HW, darkest, size, overlap))
    return Photographs(domain, scale, darkest, size_exponent(np.concatenate(scores)))


def tile_scores(evidence_hw: Map, gray_HW: Gray, darkest: float, size: int, overlap: int) -> NDArray[np.float32]:
    """The score of each tile: the mean of the highest fiftieth of its evidence, and its darkness.

    Darkness counts where it is more than sound concrete shows, `darkest`, by up to 20 gray levels. It tells the
    cracks that are too wide for lines, and sound lines that are not deep.

    Returns:
        score_N, row by row as `tile.cut` orders them.
    """
    side = size // STEP
    top = max(1, round(_TOP_SHARE * side**2))
    places = [(y // STEP, x // STEP) for y, x in corners(gray_HW.shape, size, overlap)]
    views = (evidence_hw[y : y + side, x : x + side].ravel() for y, x in places)
    lines_N = np.array([np.partition(view_P, -top)[-top:].mean() for view_P in views], np.float32)
    return lines_N + np.clip(tile_darkness(gray_HW, size, overlap) - darkest, 0, _MOST_DARKNESS).astype(np.float32)


def tile_darkness(gray_HW: Gray, size: int, overlap: int) -> NDArray[np.float64]:
    """By how many gray levels the darkest 3% of each tile lie below its median.

    Returns:
        darkness_N, row by row as `tile.cut` orders them.
    """
    places = corners(gray_HW.shape, size, overlap)
    return np.array([darkness(gray_HW[y : y + size, x : x + size], _DARKEST_PERCENT) for y, x in places])


def tile_errors(gray_HW: Gray, expected_HW: Gray, size: int, overlap: int) -> NDArray[np.float32]:
    """Mean squared error of each tile, in units of the network's input range [-1, 1], squared.

    Returns:
        error_N, row by row as `tile.cut` orders them.
    """
    down, across = (np.array(starts(length, size, overlap)) for length in gray_HW.shape)
    rows = []
    for y in down:
        difference_SW = cv2.absdiff(gray_HW[y : y + size], expected_HW[y : y + size]).astype(np.int64)
        total_W = np.cumsum(np.pad(np.square(difference_SW).sum(axis=0), (1, 0)))
        rows.append(total_W[across + size] - total_W[across])
    return (np.concatenate(rows) / (size**2 * 127.5**2)).astype(np.float32)


def _region(region: Region, factor: float, ground: Ground | None) -> Row:
    """A region of the photograph resampled by a factor, in its own pixels, and in millimetres where it has a ground."""
    row: Row = {name: round(getattr(region, name) / factor) for name in ("x", "y", "width", "height")}
    row |= {"area": round(region.area / factor**2), "peak": region.peak}
    row["outline"] = [round(value / factor) for point in region.outline for value in point]
    if region.length is None or region.mean_width is None:
        return row
    sizes = {
        "length": (region.length, LENGTH_ERROR * region.length),
        "mean_width": (region.mean_width, WIDTH_ERROR * max(1, factor)),
    }
    for name, (pixels, error) in sizes.items():
        row[name] = pixels / factor
        if ground:
            pitch = ground.mm_per_pixel / factor
            row[f"{name}_mm"], row[f"{name}_mm_error"] = in_millimetres(pixels, pitch, ground.relative_error, error)
    return row


def _failed(status: Status, message: str) -> Row:
    return {"status": str(status), "message": message}
