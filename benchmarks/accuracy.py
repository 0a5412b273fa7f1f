"""What crackvae is worth, from real data: `make accuracy`.

    python benchmarks/accuracy.py DATA WORK      writes WORK/accuracy.md and WORK/pictures/

DATA holds metu-concrete-20k.zip and sdnet2018-decks/; WORK keeps what was made, so that the same call
goes on where it stopped. It does not know by which code: after a change of the score, take another WORK.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
from collections.abc import Callable
from datetime import date
from pathlib import Path

import ablation
import decks
import metu
import numpy as np
import pandas as pd
import stress
from ablation import SEEDS
from comparison import RANKING, crackvae, flagged, values

from crackvae.report.tables import markdown

_ALPHA = 0.05


def left_out(data: Path, work: Path, seed: int = 0) -> pd.DataFrame:
    """Each deck scored by a model of the other three."""
    models = {photo: decks.train(data, work, photo, seed) for photo in decks.PHOTOS}
    return decks.cells(data, work, f"left-out-{seed}", models)


def _left_out(data: Path, work: Path) -> str:
    return decks.report(data, left_out(data, work))


def pretrained(data: Path, work: Path) -> str:
    """The model that comes with the package, which has seen no deck, on all four; and recalibrated."""
    recalibrated: dict[str, Path | str] = {}
    for photo in decks.PHOTOS:
        recalibrated[photo] = work / f"{photo}-recalibrated"
        normals = decks.write_cells(data, work, photo) / "normal"
        crackvae("calibrate", "pretrained", normals, "--out", recalibrated[photo])
    unchanged = decks.cells(data, work, "pretrained", dict.fromkeys(decks.PHOTOS, "pretrained"))
    again = decks.cells(data, work, "recalibrated", recalibrated)
    rates = []
    for is_crack, kind in ((False, "sound"), (True, "cracked")):
        for name, frame in (("as it comes", unchanged), ("recalibrated on the other three", again)):
            of_kind = frame[frame.is_crack == is_crack]
            by_photo = [f"{(cells.p_value <= _ALPHA).mean():.1%}" for _, cells in of_kind.groupby("photo")]
            rates.append([f"{kind}, {name}", flagged(frame, is_crack, _ALPHA), *by_photo])
    header = ["cells flagged at alpha 5%", "all", *decks.PHOTOS]
    return f"{decks.report(data, unchanged)}\n\n{markdown(header, rates)}"


def seeds(data: Path, work: Path) -> str:
    """Three trainings of each model, by another seed."""
    of_metu = [metu.results(data, work, seed) for seed in SEEDS]
    frames = {
        "METU, internal": [frame[frame["set"] == "internal"] for frame in of_metu],
        "decks, photograph left out": [left_out(data, work, seed) for seed in SEEDS],
    }
    rows = []
    for name, of_seeds in frames.items():
        found = [values(frame, "crackvae") for frame in of_seeds]
        rows.append([name, *(_spread([value[metric] for value in found]) for metric in RANKING)])
    return markdown(["mean (lowest to highest) of three", *RANKING.values()], rows)


def _spread(found: list[float]) -> str:
    return f"{np.mean(found):.4f} ({min(found):.4f} to {max(found):.4f})"


_SECTIONS: tuple[tuple[str, Callable[[Path, Path], str]], ...] = (
    ("METU (internal: development; external: evaluated once)", metu.report),
    ("METU by brightness and contrast", metu.by_appearance),
    ("False alarms over calibrations", metu.conformal),
    (
        "Bridge decks, each scored by a model of the other three (development)",
        lambda d, w: decks.report(d, left_out(d, w)),
    ),
    ("Bridge decks, scored by the pretrained model (development)", pretrained),
    ("Three trainings (development)", seeds),
    ("What the VAE is worth (development)", ablation.report),
    ("Synthetic cracks by width and depth (development)", stress.detection),
    ("Worse photographs (development)", stress.robustness),
)


def main() -> None:
    """Writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    options = parser.parse_args()
    pictures = options.work / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    cores = f"{len(os.sched_getaffinity(0))} cores, {platform.machine()}"
    text = [f"Written by `make accuracy` on {date.today()}, commit {commit.stdout.strip()}; {cores}."]
    for title, section in _SECTIONS:
        text.append(f"## {title}\n\n{section(options.data, options.work)}")
        (options.work / "accuracy.md").write_text("\n\n".join(text) + "\n")
    metu.worst(options.data, options.work, pictures)
    decks.worst(options.data, left_out(options.data, options.work), pictures)
    print(options.work / "accuracy.md")


if __name__ == "__main__":
    main()
