"""Speed of decoding and of the network on one core, each beside named alternatives.

    python benchmarks/speed.py metu.zip

Rounds are interleaved, so that a machine that slows down slows all of them down; ratios are of
medians. Without a source it decodes synthetic photographs of METU's size.
"""

from __future__ import annotations

import argparse
import io
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from crackvae.config import Config
from crackvae.dataset import manifest
from crackvae.dataset.sources import Reader
from crackvae.images import synthetic
from crackvae.images.tile import prepare
from crackvae.model import artifact, backend
from crackvae.model.network import normalise
from crackvae.report.tables import markdown

ROUNDS, IMAGES, SIZE = 5, 200, 128


def pillow(data: bytes) -> object:
    """As most scripts do it."""
    image = Image.open(io.BytesIO(data)).convert("L")
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR))


def pillow_draft(data: bytes) -> object:
    """Pillow, decoding luma only."""
    image = Image.open(io.BytesIO(data))
    image.draft("L", (SIZE, SIZE))
    return np.asarray(image.convert("L").resize((SIZE, SIZE), Image.Resampling.BILINEAR))


def opencv(data: bytes) -> object:
    """OpenCV, which fills what is missing of a truncated file with gray."""
    gray_HW = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    return cv2.resize(gray_HW, (SIZE, SIZE), interpolation=cv2.INTER_AREA)


def ours(data: bytes) -> object:
    """What crackvae does, with the checks and the darkness baseline."""
    return prepare(data, Config().image)


def inference(precision: str, batch: int, layout: torch.memory_format) -> Callable[[], int]:
    """Reconstructs random tiles; returns how many."""
    network = artifact.build_network(Config(recipe="reference")).eval()
    network = network.to(memory_format=layout)  # type: ignore[call-overload]
    x_B1HW = normalise(torch.randint(0, 256, (batch, SIZE, SIZE), dtype=torch.uint8))

    def run() -> int:
        with torch.inference_mode(), backend.autocast("cpu", precision):
            network.reconstruct(x_B1HW)
        return batch

    return run


def rate(run: Callable[[], int], seconds: float) -> float:
    """Images per second, for at least so many seconds."""
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        count += run()
    return count / (time.perf_counter() - start)


def compare(title: str, alternatives: dict[str, Callable[[], int]], seconds: float) -> None:
    """Prints minimum, median and maximum rate of each, and the ratio to the first."""
    rates: dict[str, list[float]] = {name: [] for name in alternatives}
    for run in alternatives.values():
        run()
    for _ in range(ROUNDS):
        for name, run in alternatives.items():
            rates[name].append(rate(run, seconds))
    base = statistics.median(next(iter(rates.values())))
    rows = []
    for name, measured in rates.items():
        middle = statistics.median(measured)
        figures = [f"{value:,.0f}" for value in (min(measured), middle, max(measured))]
        rows.append([name, *figures, f"{middle / base:.2f}"])
    print(markdown([title, "min", "median", "max", "ratio to the first"], rows) + "\n")


def files(source: str | None) -> list[bytes]:
    """The bytes of up to IMAGES files of a source, spread over it."""
    with tempfile.TemporaryDirectory() as folder:
        if source is None:
            synthetic.write_survey(Path(folder), normals=IMAGES, cracks=0)
        table, _ = manifest.build([source or folder])
        with Reader() as reader:
            uris = table["uri"].to_pylist()[:: max(1, len(table) // IMAGES)]
            return [reader.read(uri, 10**8) for uri in uris]


def main() -> None:
    """Runs both comparisons."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", nargs="?", help="images to decode; default: synthetic ones")
    data = files(parser.parse_args().source)
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    machine = f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"
    print(f"{machine}, torch {torch.__version__}, {datetime.now(UTC):%Y-%m-%d}; one core\n")

    def each(decode: Callable[[bytes], object]) -> Callable[[], int]:
        return lambda: len([decode(one) for one in data])

    decoders = (pillow, pillow_draft, opencv, ours)
    compare(f"decode {len(data)} files, images/s", {d.__name__: each(d) for d in decoders}, seconds=0.5)
    last = torch.channels_last
    compare(
        "reference network, tiles/s",
        {
            "fp32, batch 32": inference("fp32", 32, torch.contiguous_format),
            "fp32, batch 32, channels last": inference("fp32", 32, last),
            "fp32, batch 256, channels last": inference("fp32", 256, last),
            "bf16, batch 32, channels last": inference("bf16", 32, last),
        },
        seconds=2,
    )


if __name__ == "__main__":
    main()
