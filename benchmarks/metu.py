"""METU: a model from images of concrete as people publish them, on a test without twins of training images."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.compute as pc
from comparison import Image, cached, crackvae, scored, share
from PIL import Image as Pillow

from crackvae.dataset import manifest
from crackvae.model import artifact
from crackvae.report import tables
from crackvae.report.tables import markdown
from crackvae.run import finalize, summary
from crackvae.statistics import calibration

_EPOCHS = 5
_DRAWN, _DRAWS = 1000, 200  # calibration images, and how often they are drawn
_NEAR = 0.001  # how far from alpha the mean rate of false alarms may lie


def split(data: Path, work: Path) -> Path:
    """The manifest with the splits of the reference recipe."""
    planned = work / "metu-split.parquet"
    if not planned.exists():
        crackvae("index", data / "metu-concrete-20k.zip", "--out", work / "metu.parquet")
        crackvae("split", work / "metu.parquet", "--out", planned)
    return planned


def train(data: Path, work: Path, seed: int = 0) -> Path | str:
    """The model that comes with the package, whose seed is 0; trained as it was, by another seed."""
    if seed == 0:
        return artifact.PRETRAINED
    config = work / f"metu-{seed}.toml"
    # In fp32, so that it scores alike on every machine.
    config.write_text(f'[training]\nepochs = {_EPOCHS}\nseed = {seed}\n[scoring]\nprecision = "fp32"\n')
    crackvae("train", split(data, work), "--out", work / f"metu-{seed}", "--config", config)
    return work / f"metu-{seed}"


def evaluate(data: Path, work: Path, seed: int = 0) -> Path:
    """The run of the internal and the external set; the external one is scored by the first seed only."""
    run, planned = work / f"metu-{seed}-run", split(data, work)
    if seed:
        table = manifest.read(str(planned))
        planned = work / "metu-internal.parquet"
        manifest.write(table.filter(pc.not_equal(table["split"], "external").fill_null(False)), str(planned))
    crackvae("evaluate", train(data, work, seed), planned, "--out", run)
    return run


def results(data: Path, work: Path, seed: int = 0) -> pd.DataFrame:
    """The scored images of the run whose score is comparable, as `comparison.beside` takes them."""
    frame = finalize.read_results(str(evaluate(data, work, seed))).to_pandas()
    frame = frame[frame.score.notna() & ~frame.p_value_is_bound.fillna(False).astype(bool)]
    frame = frame.rename(columns={"score": "crackvae", "darkness": "darkness line", "line_filter": "line filter"})
    return frame.assign(is_crack=frame.label == "crack")


def report(data: Path, work: Path) -> str:
    """Everything that metrics.json holds of the first seed."""
    metrics = summary.read(str(evaluate(data, work)))
    counts = "\n".join(tables.counts_lines(metrics))
    return f"```\n{counts}\n```\n\n{tables.metrics_table(metrics)}"


def by_appearance(data: Path, work: Path) -> str:
    """The external set by thirds of brightness and of contrast, one image of each twin group."""
    frame = results(data, work)
    frame = frame[frame["set"] == "external"].drop_duplicates("group")
    rows = []
    for feature in ("brightness", "contrast"):
        # Thirds of the sound images: cracked ones are darker and have more contrast for their cracks.
        edges = [-np.inf, *frame[~frame.is_crack][feature].quantile([1 / 3, 2 / 3]), np.inf]
        for third, group in frame.groupby(pd.cut(frame[feature], edges), observed=True):
            sound, cracked = (group[group.is_crack == label] for label in (False, True))
            flagged = [share(part.prediction == "crack") for part in (sound, cracked)]
            rows.append([f"{feature} {third}", f"{len(sound):,}", flagged[0], f"{len(cracked):,}", flagged[1]])
    return markdown(["gray levels", "sound", "flagged at alpha 5%", "cracked", "found"], rows)


def conformal(data: Path, work: Path) -> str:
    """Whether alpha is the rate of false alarms, over random choices of the calibration images."""
    frame = results(data, work)
    sound = frame[~frame.is_crack].drop_duplicates("group")  # a twin group counts once
    score_N = sound.crackvae.to_numpy(np.float64)
    generator = np.random.default_rng(0)
    rows = []
    for alpha in (0.01, 0.05):
        rates = []
        for _ in range(_DRAWS):
            drawn_N = generator.permutation(score_N)
            p_N = calibration.p_values(drawn_N[_DRAWN:], drawn_N[:_DRAWN])
            rates.append(np.mean(p_N <= alpha))
        promised = calibration.false_alarm_rate(int(alpha * (_DRAWN + 1)) - 1, _DRAWN)
        low, high = np.quantile(rates, [0.025, 0.975])
        if abs(np.mean(rates) - alpha) > _NEAR:
            raise SystemExit(f"at alpha {alpha:.0%} the mean rate of false alarms is {np.mean(rates):.2%}")
        rows.append([f"{alpha:.0%}", f"{promised.expected:.2%}", f"{np.mean(rates):.2%}",
                     f"{low:.2%} to {high:.2%}", f"{promised.low:.2%} to {promised.high:.2%}"])  # fmt: skip
    header = ["alpha", "promised on average", "mean rate", "95% of draws", "promised for 95%"]
    return (
        f"{_DRAWS} draws of {_DRAWN:,} of the {len(sound):,} sound test images for the calibration, the others tested "
        f"(one of each twin group).\n\n{markdown(header, rows)}"
    )


def images(data: Path, rows: pd.DataFrame) -> Iterator[Image]:
    """The pixels of manifest rows, RGB."""
    with zipfile.ZipFile(data / "metu-concrete-20k.zip") as archive:
        for uri in rows.uri:
            with Pillow.open(io.BytesIO(archive.read(uri.partition("!/")[2]))) as image:
                yield np.asarray(image.convert("RGB"))


def gray(data: Path, rows: pd.DataFrame) -> Iterator[Image]:
    """Their gray levels."""
    return (np.asarray(Pillow.fromarray(image).convert("L")) for image in images(data, rows))


def rows(data: Path, work: Path, part: str, label: str, count: int) -> pd.DataFrame:
    """A random choice of manifest rows, one of each twin group."""
    table = manifest.read(str(split(data, work))).to_pandas()
    table = table[(table.split == part) & (table.label == label)].drop_duplicates("group")
    return table.sample(min(count, len(table)), random_state=0)


def development(data: Path, work: Path) -> pd.DataFrame:
    """What scores were chosen on: the validation part and the internal test, of the splits of seed 0."""
    table = manifest.read(str(split(data, work))).to_pandas()
    table = table[table.split.isin(["val", "test"])]
    return table.assign(is_crack=table.label == "crack").reset_index(drop=True)


def score_images(model: Path | str, pixels: Iterable[Image], kept: Path) -> pd.DataFrame:
    """Scores in the units of `comparison`, kept."""
    return cached(kept, lambda: scored(model, pixels))


def worst(data: Path, work: Path, folder: Path) -> None:
    """The ten worst misses and the ten highest false alarms of the external set, as a picture each."""
    frame = results(data, work)
    frame = frame[frame["set"] == "external"].sort_values("crackvae")
    chosen = {"misses": frame[frame.is_crack].head(10), "false-alarms": frame[~frame.is_crack].tail(10)[::-1]}
    for name, part in chosen.items():
        strip = np.hstack([np.pad(image, ((2, 2), (2, 2), (0, 0))) for image in images(data, part)])
        Pillow.fromarray(strip).save(folder / f"metu-{name}.png")
