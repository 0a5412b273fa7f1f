"""What crackvae is worth on photographs, from real data: `make photographs`.

    python benchmarks/photographs.py DATA WORK      writes WORK/page.md

DATA holds metu-concrete-20k.zip, sdnet2018-decks/ and drone-gps/; WORK keeps what was made, so that
the same call goes on where it stopped.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import exifread
import numpy as np
import pandas as pd
import pyarrow as pa
from PIL import Image
from scipy.stats import binom
from sklearn.metrics import roc_auc_score

from crackvae.dataset import manifest
from crackvae.images.tile import darkness
from crackvae.report.tables import markdown
from crackvae.run import finalize

PHOTOS = ("7001", "7002", "7003", "7004")
ALPHAS = (0.05, 0.1)

_METU = "[training]\nepochs = 5\n"
_DECKS = "[training]\nepochs = 10\n"  # of fewer tiles
_TRAINED = 3000  # METU normals
_PITCH, _SIDE = 200, 227  # a METU image is blended with the next over 27 pixels
_SMALL, _LARGE = (6, 4), (12, 8)  # images a mosaic, across and down
_CALIBRATION = 150  # small mosaics
_BLOCK = 3  # cells a side, of the spatial bootstrap
_DRAWS = 2000


def crackvae(*arguments: object) -> None:
    """Runs a command as a user would."""
    done = subprocess.run(
        [sys.executable, "-m", "crackvae", *map(str, arguments)], stdout=subprocess.DEVNULL, check=False
    )
    if done.returncode:
        sys.exit(f"crackvae {' '.join(map(str, arguments))} ended with exit code {done.returncode}")


# Mosaics: photographs of sound concrete whose number is not limited by what was photographed.


def mosaic(images: Sequence[Image.Image], across: int, down: int) -> Image.Image:
    """Joins images of 227x227 into one, each blended with its neighbours."""
    ramp_P = np.minimum(1, (np.arange(_SIDE) + 1) / (_SIDE - _PITCH + 1))
    weight_PP = np.outer(np.minimum(ramp_P, ramp_P[::-1]), np.minimum(ramp_P, ramp_P[::-1]))[..., None]
    shape = (_PITCH * (down - 1) + _SIDE, _PITCH * (across - 1) + _SIDE)
    sum_HW3, weight_HW1 = np.zeros((*shape, 3)), np.zeros((*shape, 1))
    for index, image in enumerate(images):
        y, x = _PITCH * (index // across), _PITCH * (index % across)
        pixels_PP3 = np.asarray(image.convert("RGB"), np.float64)
        # All have the mean brightness of the first: a photograph has one exposure.
        pixels_PP3 += np.asarray(images[0].convert("RGB")).mean() - pixels_PP3.mean()
        sum_HW3[y : y + _SIDE, x : x + _SIDE] += weight_PP * pixels_PP3
        weight_HW1[y : y + _SIDE, x : x + _SIDE] += weight_PP
    return Image.fromarray(np.clip(np.rint(sum_HW3 / weight_HW1), 0, 255).astype(np.uint8))


def write_mosaics(data: Path, work: Path) -> Path:
    """Trains on METU normals, calibrates and tests on mosaics of others; no twin is in two places."""
    out = work / "mosaics.parquet"
    if out.exists():
        return out
    archive = data / "metu-concrete-20k.zip"
    crackvae("index", archive, "--out", work / "metu.parquet")
    crackvae("split", work / "metu.parquet", "--out", work / "metu-split.parquet")
    table = manifest.read(str(work / "metu-split.parquet")).to_pandas()
    normals = table[table.label == "normal"].drop_duplicates("group").sample(frac=1, random_state=0)
    cracks = table[table.label == "crack"].drop_duplicates("group").sample(frac=1, random_state=0)
    rows = [{"uri": uri, "label": "normal", "split": "train"} for uri in normals.uri[:_TRAINED]]
    free, crack_uris = iter(normals.uri[_TRAINED:]), iter(cracks.uri)
    with zipfile.ZipFile(archive) as images:

        def take(uris: Iterator[str], count: int) -> list[Image.Image]:
            names = [next(uris).partition("!/")[2] for _ in range(count)]
            return [Image.open(io.BytesIO(images.read(name))) for name in names]

        def add(split: str, size: tuple[int, int], number: int, crack: bool) -> None:
            chosen = take(free, size[0] * size[1])
            if crack:
                chosen[number % len(chosen)] = take(crack_uris, 1)[0]
            name = f"{split}-{size[0]}x{size[1]}-{'crack' if crack else 'normal'}-{number:03d}.png"
            path = work / "mosaics" / name
            path.parent.mkdir(exist_ok=True)
            mosaic(chosen, *size).save(path)
            label = "crack" if crack else "normal"
            rows.append({"uri": path.as_uri(), "label": label, "split": split, "group": name})

        for number in range(_CALIBRATION):
            add("val", _SMALL, number, crack=False)
        for number in range(40):
            add("test", _LARGE, number, crack=False)
        for number in range(40):
            add("test", _SMALL, number, crack=True)
        for number in range(10**6):
            try:
                add("test", _SMALL, number, crack=False)
            except (StopIteration, RuntimeError):
                break
    named = [{**row, "image_id": row["uri"].rpartition("/")[2]} for row in rows]
    manifest.write(pa.Table.from_pylist(named, manifest.MANIFEST), str(out))
    return out


def mosaics(data: Path, work: Path) -> str:
    """False alarms on photographs of sound concrete."""
    planned = write_mosaics(data, work)
    (work / "metu.toml").write_text(_METU)
    crackvae("train", planned, "--out", work / "mosaic-model", "--config", work / "metu.toml")
    crackvae("evaluate", work / "mosaic-model", planned, "--out", work / "mosaic-run")
    found = finalize.read_results(str(work / "mosaic-run")).to_pandas()
    found["size"] = found.image_id.str.split("-").str[1]
    rows = []
    for (size, label), group in found.groupby(["size", "label"], sort=False):
        for alpha in ALPHAS:
            flagged, count = int((group.p_value <= alpha).sum()), int(group.p_value.notna().sum())
            low, high = binom.interval(0.95, count, alpha)
            inside = f"{low / count:.1%} to {high / count:.1%}" if label == "normal" else ""
            kind = "bound" if group.p_value_is_bound.fillna(False).any() else "calibrated"
            rows.append([f"{size} images, {label}", f"{int(group.tiles.median())}", kind, f"{count}",
                         f"{alpha:.0%}", f"{flagged / max(1, count):.1%}", inside])  # fmt: skip
    header = ["mosaics", "tiles", "p-value", "judged", "alpha", "flagged", "95% of draws at alpha"]
    normal = found[(found.label == "normal") & (found["size"] == "{}x{}".format(*_SMALL))]
    return f"{markdown(header, rows)}\n\n{_redrawn(normal, work)}"


def _redrawn(tested: pd.DataFrame, work: Path) -> str:
    """The mean rate over random choices of which mosaics calibrate and which are tested."""
    from crackvae.model import artifact
    from crackvae.statistics import calibration

    kept = artifact.load(str(work / "mosaic-model")).calibration
    assert kept is not None
    score_N = np.concatenate([kept.normals.score_n, tested.score.dropna()]).astype(np.float64)
    generator = np.random.default_rng(0)
    lines = []
    for alpha in ALPHAS:
        rates = []
        for _ in range(_DRAWS):
            drawn_N = generator.permutation(score_N)
            rates.append(np.mean(calibration.p_values(drawn_N[_CALIBRATION:], drawn_N[:_CALIBRATION]) <= alpha))
        lines.append(f"{np.mean(rates):.2%} at {alpha:.0%}")
    return (
        f"Over {_DRAWS:,} random choices of {_CALIBRATION} of the {len(score_N)} small normal mosaics for the "
        f"calibration, the mean share of the others that is flagged: {', '.join(lines)}."
    )


# Decks: each photograph scored by a model of the other three.


def decks(data: Path, work: Path) -> str:
    """Cells of bridge decks, from the tiles of whole photographs."""
    labels = pd.read_csv(data / "sdnet2018-decks" / "tiles.csv")
    (work / "decks.toml").write_text(_DECKS)
    frames = []
    for photo in PHOTOS:
        others = work / f"without-{photo}"
        _write_cells(data, labels[~labels.photo.str.startswith(photo)], others)
        planned, model, run = (work / f"{photo}-{name}" for name in ("split.parquet", "model", "run"))
        if not planned.exists():
            crackvae("index", others, "--out", work / f"{photo}.parquet")
            none = ("--external-normal", 0, "--external-crack", 0)
            crackvae("split", work / f"{photo}.parquet", "--out", planned, *none)
        crackvae("train", planned, "--out", model, "--config", work / "decks.toml")
        crackvae("score", model, data / "sdnet2018-decks" / f"{photo}.jpg", "--out", run)  # its picture is looked at
        cells = labels[labels.photo.str.startswith(photo)].copy()
        frames.append(_cell_scores(cells, data / "sdnet2018-decks" / f"{photo}.jpg", model))
    return _deck_table(pd.concat(frames, ignore_index=True))


def _write_cells(data: Path, cells: pd.DataFrame, folder: Path) -> None:
    if folder.exists():
        return
    for photo, rows in cells.groupby("photo"):
        with Image.open(data / "sdnet2018-decks" / str(photo)) as image:
            image.load()
        for cell in rows.itertuples():
            path = folder / ("crack" if cell.cracked else "normal") / f"{photo}-{cell.row:02d}-{cell.col:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.crop((cell.x, cell.y, cell.x + cell.width, cell.y + cell.height)).save(path)


def _cell_scores(cells: pd.DataFrame, photo: Path, model: Path) -> pd.DataFrame:
    """The worst tile of each cell, from the evidence of the whole photograph, beside two baselines."""
    from crackvae.images.evidence import STEP
    from crackvae.model import artifact
    from crackvae.model.photograph import PhotoScorer, tile_scores
    from crackvae.statistics import calibration

    with Image.open(photo) as image:
        ycc_HW3 = np.asarray(image.convert("YCbCr"))
    gray_HW = np.ascontiguousarray(ycc_HW3[..., 0])
    chroma_hw2 = np.ascontiguousarray(ycc_HW3[::8, ::8, 1:])
    loaded = artifact.load(str(model))
    assert loaded.calibration is not None
    evidence_hw, judged_hw = PhotoScorer(loaded, "cpu", "fp32").anomaly_map(gray_HW, chroma_hw2, None)
    line_HW = _line_filter(gray_HW)
    scores = []
    for cell in cells.itertuples():
        rows, columns = slice(cell.y, cell.y + cell.height), slice(cell.x, cell.x + cell.width)
        places = tuple(slice(side.start // STEP, side.stop // STEP) for side in (rows, columns))
        response_P = np.sort(line_HW[rows, columns], axis=None)
        score_N = tile_scores(evidence_hw[places], (cell.height, cell.width), size=128, overlap=32)
        scores.append(
            {
                "crackvae": float(score_N.max()),
                "darkness line": darkness(np.ascontiguousarray(gray_HW[rows, columns])),
                "raw line filter": float(response_P[-response_P.size // 100 :].mean()),
                "judged": bool(judged_hw[places].all()),
            }
        )
    table = cells.reset_index(drop=True).join(pd.DataFrame(scores))
    # The calibration's images are cells too.
    p_N = calibration.p_values(table.crackvae.to_numpy(), loaded.calibration.normals.worst_tile_n)
    return table.assign(flagged=p_N <= 0.05)


def _line_filter(gray_HW: np.ndarray) -> np.ndarray:
    """Oriented 21-pixel means of blur minus photograph: the largest over 12 directions."""
    x_HW = gray_HW.astype(np.float32)
    darker_HW = cv2.GaussianBlur(x_HW, (0, 0), 15) - x_HW
    responses = []
    for angle in np.arange(12) * 15:
        kernel = np.zeros((21, 21), np.float32)
        kernel[10] = 1
        turn = cv2.getRotationMatrix2D((10, 10), float(angle), 1)
        kernel = cv2.warpAffine(kernel, turn, (21, 21))
        responses.append(cv2.filter2D(darker_HW, -1, kernel / kernel.sum()))
    return np.asarray(np.maximum.reduce(responses))


def _deck_table(cells: pd.DataFrame) -> str:
    names = ("crackvae", "darkness line", "raw line filter")
    cells["block"] = cells.photo + (cells.row // _BLOCK).astype(str) + "-" + (cells.col // _BLOCK).astype(str)
    rows = []
    for photo, group in [*cells.groupby("photo"), ("pooled", cells)]:
        for name in names:
            row = [f"{photo}, {name}", f"{int(group.cracked.sum())} of {len(group)}"]
            for metric in (_auc, _recall_at_5):
                row.append(_interval(group, partial(metric, name=name)))
                ahead = partial(_ahead, metric=metric, name=name)
                row.append("" if name == "crackvae" else _interval(group, ahead))
            rows.append(row)
    judged = cells.groupby("cracked").judged.mean()
    note = f"Judged: {judged[0]:.1%} of the sound cells, {judged[1]:.1%} of the cracked ones; all are in the table."
    header = ["photograph, score", "cracked", "ROC-AUC", "crackvae is ahead by", "recall at 5% false alarms", "by"]
    shares = cells.groupby(["photo", "cracked"]).flagged.mean().unstack()
    flagged = [[photo, f"{shares.loc[photo, 0]:.1%}", f"{shares.loc[photo, 1]:.1%}"] for photo in shares.index]
    rates = markdown(["flagged at alpha 5%", "sound cells", "cracked cells"], flagged)
    return f"{markdown(header, rows)}\n\n{note}\n\n{rates}"


def _auc(cells: pd.DataFrame, name: str) -> float:
    return float(roc_auc_score(cells.cracked, cells[name]))


def _recall_at_5(cells: pd.DataFrame, name: str) -> float:
    is_crack_N = cells.cracked.to_numpy(bool)
    score_N = cells[name].to_numpy(np.float64)
    return float(np.mean(score_N[is_crack_N] > np.quantile(score_N[~is_crack_N], 0.95, method="higher")))


def _ahead(cells: pd.DataFrame, metric: Callable[[pd.DataFrame, str], float], name: str) -> float:
    return metric(cells, "crackvae") - metric(cells, name)


def _interval(cells: pd.DataFrame, metric: Callable[[pd.DataFrame], float]) -> str:
    """With the interval of a bootstrap of blocks of 3x3 cells, within each photograph."""
    members = [
        [np.flatnonzero(cells.block == block) for block in blocks] for blocks in cells.groupby("photo").block.unique()
    ]
    generator, values = np.random.default_rng(0), []
    for _ in range(500):
        drawn = [blocks[i] for blocks in members for i in generator.integers(len(blocks), size=len(blocks))]
        taken = cells.iloc[np.concatenate(drawn)]
        if taken.cracked.nunique() == 2:
            values.append(metric(taken))
    low, high = np.quantile(values, [0.025, 0.975])
    return f"{metric(cells):.3f} [{low:.3f}, {high:.3f}]"


def seams(data: Path, work: Path) -> str:
    """How much the evidence of a crop differs from that of the photograph, where tiles lie otherwise."""
    from crackvae.model import artifact
    from crackvae.model.photograph import PhotoScorer

    rows = []
    for photo in PHOTOS:
        model = artifact.load(str(work / f"{photo}-model"))
        assert model.photographs is not None
        scorer = PhotoScorer(model, "cpu", "fp32")
        gray_HW = np.asarray(Image.open(data / "sdnet2018-decks" / f"{photo}.jpg").convert("L"))[:1600, :1600]
        chroma_hw2 = np.full((100, 100, 2), 128, np.uint8)
        map_hw, _ = scorer.anomaly_map(gray_HW, chroma_hw2, None)
        for y, x in ((96, 96), (38, 54)):
            crop_map_hw, _ = scorer.anomaly_map(np.ascontiguousarray(gray_HW[y:, x:]), chroma_hw2, None)
            inside = np.s_[128:-128, 128:-128]
            whole_P, crop_P = map_hw[y // 2 :, x // 2 :][inside].ravel(), crop_map_hw[inside].ravel()
            difference_P = np.abs(whole_P - crop_P) / model.photographs.map_limit
            median, high = np.quantile(difference_P, [0.5, 0.99])
            agree = np.corrcoef(whole_P, crop_P)[0, 1]
            rows.append([f"{photo}, shifted by {x}, {y}", f"{median:.2%}", f"{high:.1%}", f"{agree:.4f}"])
    return markdown(["crop", "median difference, of the limit", "99% of places", "correlation"], rows)


def drone(data: Path, work: Path) -> str:
    """Positions of photographs from a drone beside another reader's; what a model of concrete says of a park."""
    run = work / "drone"
    crackvae("score", work / "mosaic-model", data / "drone-gps", "--out", run)
    rows = []
    for row in finalize.read_results(str(run)).to_pylist():
        if not row["uri"].lower().endswith((".jpg", ".jpeg")):
            continue
        with open(row["uri"].removeprefix("file://"), "rb") as file:
            latitude, longitude = exifread.utils.get_gps_coords(exifread.process_file(file, details=False))
        apart = max(abs(row["latitude"] - latitude), abs(row["longitude"] - longitude))
        judged = f"{row['judged_fraction']:.0%}"
        rows.append([row["image_id"], f"{row['latitude']:.6f}", f"{row['longitude']:.6f}", f"{apart:.0e}",
                     row["status"], judged, row["prediction"] or "none"])  # fmt: skip
    header = ["photograph", "latitude", "longitude", "exifread differs by", "status", "judged", "prediction"]
    return markdown(header, rows)


def sizes(data: Path, work: Path) -> str:
    """The errors of length and width, from the tests of the regions."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from images import test_regions

    table = test_regions.measure(cracks=20)
    return "\n\n".join(
        markdown([by, *summary.columns], [[str(key), *(f"{v:.3f}" for v in row)] for key, row in summary.iterrows()])
        for by, summary in ((by, test_regions.summary(table, by)) for by in ("width", "kind", "surface"))
    )


# Speed and memory.


def speed(data: Path, work: Path) -> str:
    """One process, one core: megapixels per second and the peak of memory."""
    deck = data / "sdnet2018-decks" / "7001.jpg"
    large = work / "large.jpg"
    if not large.exists():
        with Image.open(deck) as image:
            image.resize((11520, 8960)).save(large, quality=90)  # 103 megapixels
    rows = []
    for photo in (deck, large):
        done = subprocess.run(
            [sys.executable, __file__, "--one", str(work / "7001-model"), str(photo)],
            stdout=subprocess.PIPE,
            check=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        told = json.loads(done.stdout)
        rows.append([photo.name, f"{told['megapixels']:.1f}", f"{told['megapixels'] / told['seconds']:.2f}",
                     f"{told['model_mb']:.0f}", f"{told['peak_mb'] - told['model_mb']:.0f}"])  # fmt: skip
    return markdown(["photograph", "megapixels", "MP/s", "MB before it", "MB more at the peak"], rows)


def _peak_mb() -> float:
    """Of this program: what getrusage tells begins with the process that forked it."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1e3


def one(model: str, photo: str) -> None:
    """Scores a photograph twice in this process, prints time and memory."""
    import torch

    from crackvae import AnomalyScorer

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    scorer = AnomalyScorer.load(model, "cpu")
    scorer.score([np.random.default_rng(0).integers(100, 200, (512, 512, 3)).astype(np.uint8)])
    before = _peak_mb()
    start = time.perf_counter()
    row = scorer.score([photo]).iloc[0]
    seconds = time.perf_counter() - start
    peak = _peak_mb()
    told: dict[str, Any] = {"megapixels": float(row.width * row.height / 1e6), "seconds": seconds}
    print(json.dumps(told | {"model_mb": before, "peak_mb": peak}))


_SECTIONS = (
    ("False alarms on mosaics of METU normals", mosaics),
    ("Bridge decks, each scored by a model of the other three", decks),
    ("Seams", seams),
    ("Drone photographs of a park and a shore", drone),
    ("Length and width of synthetic cracks", sizes),
    ("Speed and memory, one core", speed),
)


def main() -> None:
    """Writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one(str(options.data), str(options.work))
        return
    options.work.mkdir(parents=True, exist_ok=True)
    cores = f"{len(os.sched_getaffinity(0))} cores, {platform.machine()}"
    text = [f"Written by `make photographs` on {date.today()}; {cores}."]
    for title, section in _SECTIONS:
        text.append(f"## {title}\n\n{section(options.data, options.work)}")
        (options.work / "page.md").write_text("\n\n".join(text) + "\n")
    print(options.work / "page.md")


if __name__ == "__main__":
    main()
