"""What the METU model makes of worse photographs, and of finer and fainter cracks."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import metu
import numpy as np
import pandas as pd
from comparison import Image, cached, percent, resampled, scored, share
from PIL import Image as Pillow

from crackvae.images import synthetic
from crackvae.report.tables import markdown
from crackvae.statistics import calibration

_IMAGES = 400  # of a kind
_ALPHA = 0.05
_WIDTHS, _DEPTHS = (1, 2, 4, 8, 16), (10, 20, 40, 80)  # pixels, gray levels
_PAINTED = 60  # images


def _jpeg(image: Image, quality: int) -> Image:
    buffer = io.BytesIO()
    Pillow.fromarray(image).save(buffer, "jpeg", quality=quality)
    return np.asarray(Pillow.open(buffer))


def _noise(image: Image, deviation: float) -> Image:
    generator = np.random.default_rng(int(image[::7, ::7].sum()))
    return np.clip(image + generator.normal(0, deviation, image.shape), 0, 255).astype(np.uint8)


def _levels(image: Image, gain: float, offset: float) -> Image:
    mean = image.mean()
    return np.clip(np.rint((image - mean) * gain + mean + offset), 0, 255).astype(np.uint8)


def _scale(image: Image, factor: float) -> Image:
    method = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    return cv2.resize(image, None, fx=factor, fy=factor, interpolation=method)


_CHANGES: dict[str, Callable[[Image], Image]] = {
    "as they are": lambda image: image,
    "JPEG quality 30": partial(_jpeg, quality=30),
    "blur, sigma 1.5 px": lambda image: cv2.GaussianBlur(image, (0, 0), 1.5),
    "noise, sd 10 levels": partial(_noise, deviation=10),
    "darker by 40 levels": partial(_levels, gain=1, offset=-40),
    "brighter by 40 levels": partial(_levels, gain=1, offset=40),
    "contrast x 0.6": partial(_levels, gain=0.6, offset=0),
    "contrast x 1.5": partial(_levels, gain=1.5, offset=0),
    "scale x 0.5": partial(_scale, factor=0.5),
    "scale x 2": partial(_scale, factor=2),
}


def robustness(data: Path, work: Path) -> str:
    """Recall at 5% false alarms, and the rate of false alarms at alpha with and without recalibration."""
    parts = [("calibration", "val", "normal"), ("sound", "test", "normal"), ("cracked", "test", "crack")]
    chosen = pd.concat([metu.rows(data, work, part, label, _IMAGES).assign(use=use) for use, part, label in parts])
    rows = []
    for number, (name, change) in enumerate(_CHANGES.items()):
        pixels = map(change, metu.images(data, chosen))
        frame = metu.score_images(metu.train(data, work), pixels, work / f"stress-{number}.parquet")
        frame = frame.assign(use=chosen.use.to_numpy())
        judged = frame[frame.score.notna()]
        sound, cracked = (judged[judged.use == use] for use in ("sound", "cracked"))
        left_out = f"{1 - len(judged) / len(frame):.0%}"
        if cracked.empty:
            rows.append([name, left_out, "-", "-", "-"])
            continue
        tested = pd.concat([sound, cracked]).assign(is_crack=lambda frame: frame.use == "cracked")
        recall = resampled(tested.assign(group=np.arange(len(tested))), "score").intervals()["recall_at_5pct_fpr"]
        flagged = sound.prediction
        undecided = "" if flagged.notna().all() else f" ({flagged.isna().mean():.0%} undecided)"
        again = calibration.threshold(judged[judged.use == "calibration"].score.to_numpy(np.float64), _ALPHA)
        rows.append(
            [name, left_out, percent(recall), share(flagged == "crack") + undecided, share(sound.score > again)]
        )
    header = ["images", "not judged", "recall at 5% false alarms", "false alarms at alpha 5%", "recalibrated"]
    return markdown(header, rows)


def detection(data: Path, work: Path) -> str:
    """The share of synthetic cracks that is flagged at alpha, by width and depth, on sound test images."""

    def make() -> pd.DataFrame:
        sound = list(metu.images(data, metu.rows(data, work, "test", "normal", _PAINTED)))
        painted, told = [], []
        for width in _WIDTHS:
            for number, image in enumerate(sound):
                rng = np.random.default_rng([width, number])
                covered_HW1 = synthetic.crack(rng, *image.shape[:2], width_px=width)[..., None]
                for depth in _DEPTHS:
                    painted.append(np.clip(np.rint(image - depth * covered_HW1), 0, 255).astype(np.uint8))
                    told.append((width, depth))
        return scored(metu.train(data, work), painted).join(pd.DataFrame(told, columns=["width", "depth"]))

    table = cached(work / "detection.parquet", make)
    table["found"] = table.prediction == "crack"
    found = table.groupby(["width", "depth"]).found.agg(partial(share, digits=0)).unstack()
    rows = [[f"{width} px", *shares] for width, shares in found.iterrows()]
    return markdown(["width", *(f"{depth} levels darker" for depth in found.columns)], rows)
