"""What the VAE is worth: the same path evidence over the image alone, the VAE alone, and both."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import decks
import metu
import numpy as np
import pandas as pd
from comparison import beside, cached, resampled, shown, workers
from numpy.typing import NDArray
from PIL import Image as Pillow

from crackvae.images import evidence
from crackvae.images.evidence import STEP
from crackvae.model import artifact, backend
from crackvae.model.photograph import PhotoScorer, tile_scores
from crackvae.report.tables import markdown

Gray = NDArray[np.uint8]

SEEDS = (0, 1, 2)

_VARIANCES = {  # what a place is compared with
    "both": evidence.variance,
    "image alone": lambda expected_hW, around_hW: 1 + around_hW,
    "VAE alone": lambda expected_hW, around_hW: 1 + expected_hW,
}
_LEARNT, _CHOSEN = 300, 1250  # images


def report(data: Path, work: Path) -> str:
    """METU's development images and the decks, three seeds of each."""
    made = []
    for name, table in (("METU", _metu), ("Decks, photograph left out", _decks)):
        with workers() as pool:
            frames = list(pool.map(partial(table, data, work), SEEDS))
        for seed, frame in zip(SEEDS, frames, strict=True):
            others = ["image alone", "VAE alone", "joined by p-values"]
            made.append(f"{name}, seed {seed}:\n\n{beside(frame, 'both', others)}")
            if table is _decks:
                made.append(_by_photograph(frame, others))
        mean = frames[0].assign(**{"mean of three seeds": np.mean([frame["both"] for frame in frames], axis=0)})
        made.append(f"{name}, an ensemble:\n\n{beside(mean, 'mean of three seeds', ['both'])}")
    return "\n\n".join(made)


def _by_photograph(frame: pd.DataFrame, others: list[str]) -> str:
    rows = []
    for photo, cells in frame.groupby(frame.group.str[: len(decks.PHOTOS[0])]):
        of_both = resampled(cells, "both")
        ahead = [shown((of_both - resampled(cells, other)).intervals()["roc_auc"], "+") for other in others]
        rows.append([str(photo), shown(of_both.intervals()["roc_auc"]), *ahead])
    return markdown(["ROC-AUC", "both", *(f"ahead of {other} by" for other in others)], rows)


def _metu(data: Path, work: Path, seed: int) -> pd.DataFrame:
    def make() -> pd.DataFrame:
        rows = metu.development(data, work).groupby("is_crack").sample(_CHOSEN, random_state=0)
        normals = metu.gray(data, metu.rows(data, work, "train", "normal", _LEARNT))
        scores, normal_scores = _scores(metu.train(data, work, seed), normals, metu.gray(data, rows))
        return _joined(rows[["is_crack", "group"]].reset_index(drop=True).join(scores), normal_scores)

    return cached(work / f"ablation-metu-{seed}.parquet", make)


def _decks(data: Path, work: Path, seed: int) -> pd.DataFrame:
    def make() -> pd.DataFrame:
        frames = []
        for photo in decks.PHOTOS:
            paths = sorted((work / f"without-{photo}" / "normal").glob("*.png"))
            chosen = np.random.default_rng(0).permutation(len(paths))[:_LEARNT]
            normals = [np.asarray(Pillow.open(paths[k]).convert("L")) for k in chosen]
            image_HW = np.asarray(Pillow.open(data / "sdnet2018-decks" / f"{photo}.jpg").convert("L"))
            cells = decks.cells(data, work, f"left-out-{seed}", {})
            cells = cells[cells.photo == photo].reset_index(drop=True)
            scores, normal_scores = _scores(work / f"{photo}-{seed}", normals, [image_HW], cells)
            frames.append(_joined(cells[["is_crack", "group"]].join(scores), normal_scores))
        return pd.concat(frames, ignore_index=True)

    return cached(work / f"ablation-decks-{seed}.parquet", make)


def _scores(
    model: Path | str, normals: Iterable[Gray], images: Iterable[Gray], cells: pd.DataFrame | None = None
) -> tuple[pd.DataFrame, dict[str, NDArray[np.float64]]]:
    """The worst tile of each image, or of each cell of one, by variant; and of each of the normals."""
    loaded = artifact.load(str(model))
    assert loaded.photographs is not None
    worst = partial(_worst, darkest=loaded.photographs.darkness)
    scorer = PhotoScorer(loaded, "cpu", backend.resolve("cpu", "auto").precision)
    learnt, asked = ([(gray_HW, scorer.expect(gray_HW)[1]) for gray_HW in some] for some in (normals, images))
    scores, normal_scores = {}, {}
    for name, variance in _VARIANCES.items():
        evidence.variance = variance  # no option: nobody should choose it
        scale = evidence.learn(learnt)
        maps = [(evidence.find_lines(*image, scale)[0], image[0]) for image in asked]
        if cells is not None:
            maps = [tuple(_cut(image, cell, step) for image, step in zip(maps[0], (STEP, 1), strict=True))
                    for cell in cells.itertuples()]  # fmt: skip
        scores[name] = [worst(*of_image) for of_image in maps]
        normal_scores[name] = np.array([worst(evidence.find_lines(*image, scale)[0], image[0]) for image in learnt])
    return pd.DataFrame(scores), normal_scores


def _cut(image: NDArray[Any], cell: Any, step: int) -> NDArray[Any]:
    return image[cell.y // step : (cell.y + cell.height) // step, cell.x // step : (cell.x + cell.width) // step]


def _worst(evidence_hw: NDArray[np.float32], gray_HW: Gray, darkest: float) -> float:
    return float(tile_scores(evidence_hw, gray_HW, darkest, size=128, overlap=32).max())


def _joined(frame: pd.DataFrame, normal_scores: dict[str, NDArray[np.float64]]) -> pd.DataFrame:
    """Fisher's sum of the logarithms of both maps' p-values on training normals, its ties ranked by the mean score."""
    log_p = [np.log(_p_values(frame[name], normal_scores[name])) for name in ("image alone", "VAE alone")]
    ties = frame[["image alone", "VAE alone"]].mean(axis=1)
    return frame.assign(**{"joined by p-values": -np.sum(log_p, axis=0) + 1e-6 * ties})


def _p_values(score_N: pd.Series, normal_n: NDArray[np.float64]) -> NDArray[np.float64]:
    at_least_N = len(normal_n) - np.searchsorted(np.sort(normal_n), score_N.to_numpy())
    return np.asarray((1 + at_least_N) / (len(normal_n) + 1))
