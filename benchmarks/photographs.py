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
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import cv2
import decks
import exifread
import numpy as np
import pandas as pd
import pyarrow as pa
from comparison import crackvae
from PIL import Image
from scipy.stats import binom

from crackvae.dataset import manifest
from crackvae.report.tables import markdown
from crackvae.run import finalize

ALPHAS = (0.05, 0.1)

_METU = "[training]\nepochs = 5\n"
_TRAINED = 3000  # METU normals
_PITCH, _SIDE = 200, 227  # a METU image is blended with the next over 27 pixels
_SMALL, _LARGE = (6, 4), (12, 8)  # images a mosaic, across and down
_CALIBRATION = 150  # small mosaics
_DRAWS = 2000


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


def seams(data: Path, work: Path) -> str:
    """How much the evidence of a crop differs from that of the photograph, where tiles lie otherwise."""
    from crackvae.model import artifact
    from crackvae.model.photograph import PhotoScorer

    rows = []
    for photo in decks.PHOTOS:
        model = artifact.load(str(decks.train(data, work, photo)))
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
    tables = []
    for by in ("width", "kind", "surface"):
        summary = test_regions.summary(table, by)
        rows = [
            [str(key), f"{cracks:.0f}", *(f"{error:.3f}" for error in row)]
            for key, cracks, *row in summary.itertuples()
        ]
        tables.append(markdown([by, *summary.columns], rows))
    return "\n\n".join(tables)


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
            [sys.executable, __file__, "--one", str(decks.train(data, work, "7001")), str(photo)],
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
