"""How fast crackvae is, beside named alternatives on the same files: `make bench`.

    python benchmarks/performance/throughput.py DATA WORK      writes WORK/performance.md and .json, plots beside them

DATA holds metu-concrete-20k.zip and sdnet2018-decks/. Whole processes are timed, in rounds in which each
contender has its turn, so that a machine that slows down slows all of them down. A contender's start-up is its
time over a few files, in some of these rounds; its rate is that of the files beyond those. Training is measured
once, by the last epochs, of a bare loop, of crackvae and of the bare loop again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import decoding
import stages
import torch
from machine import described
from PIL import Image

from crackvae.model import artifact, backend
from crackvae.report.tables import markdown

ROUNDS = 5
FEW_ROUNDS = 1  # of what is beside the point: one core, for the plot, and the bare loop in int8
STARTS = (0, 2, 4)  # rounds of these in which start-ups have their turn
FEW, SOME, MANY = 512, 2_000, 20_000  # files
PHOTOGRAPHS = 2
EPOCHS, COUNTED = 4, 2  # of which the last ones count: Ray's processes are busy during the first
NORMALS = 1_200  # of which 960 are trained on
HERE = Path(__file__).parent

Times = dict[str, list[float]]


@dataclass(frozen=True)
class Contender:
    """A script of this folder, or `crackvae` itself, over a number of files."""

    script: str
    files: int
    on_one_core: bool = False
    options: tuple[str, ...] = ()


def run(script: str, *arguments: object, on_one_core: bool = False) -> float:
    """Seconds of a whole process."""
    what = ["-m", "crackvae"] if script == "crackvae" else [str(HERE / script)]
    command = [*("taskset", "-c", "0") * on_one_core, sys.executable, *what, *map(str, arguments)]
    start = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
    if done.returncode:
        sys.exit(f"{script}: exit code {done.returncode}\n{done.stderr.decode()}")
    return time.perf_counter() - start


def interleaved(contenders: Mapping[str, Callable[[], float]], starts: Collection[str], rounds: int) -> Times:
    """Seconds of each contender, round by round; of those that are start-ups in some rounds only."""
    times: Times = {name: [] for name in contenders}
    for number in range(rounds):
        for name, measure in contenders.items():
            if number in STARTS or name not in starts:
                times[name].append(measure())
                print(f"round {number + 1}/{rounds}  {name}  {times[name][-1]:.1f} s", file=sys.stderr)
    return times


def files(data: Path, work: Path) -> dict[int, Path]:
    """Folders of METU's JPEGs, one of each size."""
    folders = {count: work / f"jpegs-{count}" for count in (FEW, SOME, MANY)}
    with zipfile.ZipFile(data / "metu-concrete-20k.zip") as archive:
        names = [name for name in archive.namelist() if name.endswith(".jpg")]
        for count, folder in folders.items():
            if folder.exists():
                continue
            part = folder.with_suffix(".part")
            part.mkdir(parents=True, exist_ok=True)
            for name in names[:: len(names) // count][:count]:
                (part / name.replace("/", "-")).write_bytes(archive.read(name))
            part.rename(folder)
    return folders


def photographs(data: Path, work: Path) -> dict[int, Path]:
    """Folders of a crop for each core, for the start-up, and of some whole photographs besides."""
    decks = sorted((data / "sdnet2018-decks").glob("*.jpg"))
    folders = {count: work / f"photographs-{count}" for count in (0, PHOTOGRAPHS)}
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
        for deck in decks[:2]:
            with Image.open(deck) as image:  # stored as they are: over 4 MiB each, and so in a shard each
                image.crop((0, 0, 1536, 1024)).save(folder / f"{deck.stem}.png", compress_level=0)
    for deck in decks[:PHOTOGRAPHS]:
        shutil.copy(deck, folders[PHOTOGRAPHS])
    return folders


def normals(data: Path, work: Path) -> Path:
    """A manifest of some of METU's normals, split."""
    folder, table, planned = work / "normal", work / "normal.parquet", work / "split.parquet"
    if not planned.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(data / "metu-concrete-20k.zip") as archive:
            names = [name for name in archive.namelist() if "Negative/" in name and name.endswith(".jpg")]
            for name in names[:NORMALS]:
                (folder / Path(name).name).write_bytes(archive.read(name))
        run("crackvae", "index", folder, "--out", table)
        run("crackvae", "split", table, "--out", planned, "--external-normal", 0, "--external-crack", 0)
    return planned


def scoring(
    work: Path,
    model: object,
    folders: Mapping[int, Path],
    contenders: Mapping[str, Contender],
    few: int,
    rounds: int = ROUNDS,
) -> Times:
    """Seconds of each contender over few files and over its number of them, by "name, files"."""

    def score(contender: Contender, folder: Path) -> float:
        out = work / "out"
        shutil.rmtree(out, ignore_errors=True)
        if contender.script == "crackvae":
            return run("crackvae", "score", model, folder, "--out", out, on_one_core=contender.on_one_core)
        return run(contender.script, model, folder, out, *contender.options, on_one_core=contender.on_one_core)

    measured = {
        f"{name}, {number}": partial(score, contender, folders[number])
        for name, contender in contenders.items()
        for number in (few, contender.files)
    }
    return interleaved(measured, {f"{name}, {few}" for name in contenders}, rounds)


def rates(times: Times, contenders: Mapping[str, Contender], few: int, unit: float = 1) -> dict[str, list[float]]:
    """Units per second beyond the start-up, round by round."""
    found = {}
    for name, contender in contenders.items():
        start = statistics.median(times[f"{name}, {few}"])
        beyond = (contender.files - few) * unit
        found[name] = [beyond / (seconds - start) for seconds in times[f"{name}, {contender.files}"]]
    return found


def table(title: str, found: Mapping[str, Sequence[float]], first: str, digits: int = 0) -> str:
    """Minimum, median and maximum, and the first one's multiple of each."""
    rows = []
    for name, values in found.items():
        spread = [f"{value:,.{digits}f}" for value in (min(values), statistics.median(values), max(values))]
        rows.append([name, *spread, f"{statistics.median(found[first]) / statistics.median(values):.2f}"])
    return markdown([title, "min", "median", "max", f"{first} is this many times as fast"], rows)


CONTENDERS = {
    "crackvae": Contender("crackvae", MANY),
    "bare loop": Contender("bare_loop.py", MANY),
    "DataLoader, fp32": Contender("dataloader.py", SOME),
    "Ray Data": Contender("ray_data.py", SOME),
}
IN_INT8 = {"bare loop, int8": Contender("bare_loop.py", MANY, options=("int8",))}
ON_ONE_CORE = {
    "crackvae, one core": Contender("crackvae", SOME, on_one_core=True),
    "bare loop, one core": Contender("bare_loop.py", SOME, on_one_core=True),
}
OF_PHOTOGRAPHS = {
    "crackvae": Contender("crackvae", PHOTOGRAPHS),
    "bare loop": Contender("bare_photographs.py", PHOTOGRAPHS),
}


def training(work: Path, split: Path) -> tuple[Path, str, dict[str, list[float]]]:
    """The reference model, whose speed does not depend on its weights; and how fast it was trained.

    Those are the last epochs of `crackvae train` beside a bare loop's, which does not validate, before and after it: a
    machine may be a sixth slower a minute later.
    """
    config = work / "epochs.toml"
    config.write_text(f'recipe = "reference"\n[training]\nepochs = {EPOCHS}\n')
    tiles, model = stages.training_tiles(split), work / "model"
    shutil.rmtree(model, ignore_errors=True)

    def bare() -> list[float]:
        run("bare_training.py", split, EPOCHS, work / "epochs.json")
        return [tiles / seconds for seconds in json.loads((work / "epochs.json").read_text())[-COUNTED:]]

    before = bare()
    run("crackvae", "train", split, "--out", model, "--config", config)
    ours = artifact.load(str(model)).history[-COUNTED:]
    found = {
        "crackvae": [epoch["images_per_second"] for epoch in ours],
        "bare loop": [*before, *bare()],
        "crackvae, with validation": [epoch["images"] / epoch["seconds"] for epoch in ours],
    }
    return model, table(f"tiles trained per second, {tiles:,} an epoch", found, "crackvae"), found


def main() -> None:
    """Measures everything and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    options = parser.parse_args()
    work = options.work
    jpegs = files(options.data, work)
    machine = described()
    facts: dict[str, Any] = {"machine": machine, "rounds": ROUNDS}
    fewer = f"{len(STARTS)} of start-ups, {FEW_ROUNDS} on one core and of the bare loop in int8"
    text = [f"{machine}; {ROUNDS} interleaved rounds of whole processes ({fewer}), start-up apart. Training: once."]

    model, of_training, facts["training"] = training(work, normals(options.data, work))

    beside = (IN_INT8 if backend.resolve("cpu", "int8").precision == "int8" else {}) | ON_ONE_CORE
    contenders = CONTENDERS | beside
    times = scoring(work, model, jpegs, CONTENDERS, FEW)
    times |= scoring(work, model, jpegs, beside, FEW, FEW_ROUNDS)
    found = rates(times, contenders, FEW)
    starts = {name: times[f"{name}, {FEW}"] for name in contenders}
    plot(found, work / "performance.png")
    whole = {name: [MANY / seconds for seconds in times[f"{name}, {MANY}"]] for name in ("crackvae", "bare loop")}
    facts |= {"seconds": times, "files_per_second": found}
    text += ["## Reference network, METU's JPEGs", table("files per second, start-up apart", found, "crackvae")]
    text += [table(f"files per second, whole process, {MANY:,} files", whole, "crackvae")]
    text += [_seconds(f"seconds for {FEW} files: start-up", starts)]

    deck = photographs(options.data, work)
    photograph = next(deck[PHOTOGRAPHS].glob("*.jpg"))
    pixels = stages.megapixels(photograph)
    times = scoring(work, "pretrained", deck, OF_PHOTOGRAPHS, 0)
    found = rates(times, OF_PHOTOGRAPHS, 0, pixels)
    facts |= {"photograph_seconds": times, "megapixels_per_second": found}
    text += ["## Default model, photographs of 16 megapixels", table("megapixels per second", found, "crackvae", 2)]

    text += ["## Training", of_training]
    made, facts["stages"] = stages.report(model, jpegs[SOME], statistics.median(facts["files_per_second"]["crackvae"]))
    text += [
        "## Where the time goes",
        made,
        stages.of_photograph(photograph),
        "## Decoding",
        decoding.report(jpegs[SOME]),
    ]
    (work / "performance.json").write_text(json.dumps(facts, indent=1))
    (work / "performance.md").write_text("\n\n".join(text) + "\n")
    print(work / "performance.md")


def plot(found: Mapping[str, Sequence[float]], path: Path) -> None:
    """Rate against workers, one per core."""
    from matplotlib import pyplot

    cores = len(os.sched_getaffinity(0))
    figure, axis = pyplot.subplots(figsize=(5, 3.5), layout="constrained")
    for name in ("crackvae", "bare loop"):
        measured = [statistics.median(found[key]) for key in (f"{name}, one core", name)]
        axis.plot((1, cores), measured, marker="o", label=name)
    axis.set(xlabel="cores, a worker each", ylabel="files per second", xlim=0, ylim=0)
    axis.legend()
    figure.savefig(path, dpi=120)


def _seconds(title: str, found: Mapping[str, Sequence[float]]) -> str:
    rows = [[n, *(f"{s:.1f}" for s in (min(v), statistics.median(v), max(v)))] for n, v in found.items()]
    return markdown([title, "min", "median", "max"], rows)


if __name__ == "__main__":
    # One thread per process, as Ray's workers have it; what a contender sets itself holds for it.
    os.environ.setdefault("RAY_worker_niceness", "0")
    torch.set_num_threads(1)
    main()
