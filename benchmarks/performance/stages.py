"""Where the time of a job goes, stage by stage on one core, and how much of it arithmetic needs."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import cv2
import pyarrow as pa
import pyarrow.compute as pc
import scipy.stats  # noqa: F401  finalize imports it late: half a second of start-up
import torch
from PIL import Image
from torch import Tensor

from crackvae.dataset import manifest
from crackvae.dataset.decoder import Decoder
from crackvae.dataset.reader import Reader
from crackvae.dataset.tiles import describe, pixels, read_image
from crackvae.images import evidence
from crackvae.images.appearance import looks_of_tiles
from crackvae.model import artifact, backend
from crackvae.model.artifact import Artifact
from crackvae.model.photograph import PhotoScorer
from crackvae.model.scorer import TileScorer
from crackvae.report.tables import markdown
from crackvae.run import directory, finalize, shards

FLOP = 424e6  # a tile, multiplications and additions, of the reference network
_GEMM = 1024  # rows and columns: its operands fit the cache


def megapixels(path: Path) -> float:
    """Of a photograph."""
    with Image.open(path) as image:
        return image.width * image.height / 1e6


def training_tiles(split: Path) -> int:
    """Tiles of an epoch, where each image is one."""
    return manifest.rows(manifest.read(str(split)), split="train", label="normal").num_rows


def gemm_peak(precision: str) -> float:
    """Operations per second of one core, the best of several products of square matrices."""
    values = torch.randn(_GEMM, _GEMM)
    if precision == "int8":
        (a, weight), scales_N = (values.to(dtype) for dtype in (torch.uint8, torch.int8)), torch.ones(_GEMM)
        packed, zeros_N = torch.ops.onednn.qlinear_prepack(weight, None), torch.zeros(_GEMM, dtype=torch.int64)
        to_uint8 = (1.0, 0, torch.uint8, "none", [], "")

        def product() -> Tensor:
            return torch.ops.onednn.qlinear_pointwise(a, 1.0, 0, packed, scales_N, zeros_N, None, *to_uint8)
    else:
        b = values.to(torch.bfloat16 if precision == "bf16" else torch.float32)

        def product() -> Tensor:
            return torch.mm(b, b)

    return 2 * _GEMM**3 / min(_timed(product)[0] for _ in range(20))


def report(model: Path, folder: Path, rate: float) -> tuple[str, dict[str, Any]]:
    """A table of the stages, and the roofline.

    Args:
        model: The reference network.
        folder: Images.
        rate: Files per second of the whole job, on all cores.
    """
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    cores = len(os.sched_getaffinity(0))
    microseconds = _measure(model, folder)
    whole = 1e6 * cores / rate
    microseconds["the rest"] = whole - sum(microseconds.values())
    rows = [[name, f"{value:,.0f}", f"{value / whole:.0%}"] for name, value in microseconds.items()]
    rows.append(["whole, start-up apart", f"{whole:,.0f}", "100%"])
    precision = _precision(artifact.load(str(model)))
    peak = gemm_peak(precision)
    ceiling = cores * peak / FLOP
    line = (
        f"{precision} products of matrices reach {peak / 1e9:,.0f} G operations/s on a core; the network needs "
        f"{FLOP / 1e6:.0f} M a tile. So no job could do more than {ceiling:,.0f} tiles/s on {cores} cores, and "
        f"this one does {rate:,.0f}, {rate / ceiling:.0%}."
    )
    table = markdown(["stage", "microseconds a file, one core", "share"], rows)
    return f"{table}\n\n{line}", {"microseconds": microseconds, "whole": whole, "gemm_flops": peak, "ceiling": ceiling}


def of_photograph(path: Path) -> str:
    """Where the time of a photograph goes with the pretrained model, on one core."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    loaded = artifact.load("pretrained")
    assert loaded.photographs is not None
    scorer = PhotoScorer(loaded, "cpu", _precision(loaded))
    image = loaded.config.image
    with Reader() as reader:
        decoded_seconds, decoded = _timed(lambda: read_image(reader, image, path.resolve().as_uri()))
    told, row = _timed(lambda: describe(decoded))
    arrays = pixels(decoded, image)
    scorer.expect(arrays[0][:512, :512].copy())  # the first pass is slow
    seconds = {"read and decode": decoded_seconds, "baselines": told}

    def timed(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def act(*arguments: Any) -> Any:
            seconds[name], value = _timed(lambda: call(*arguments))
            return value

        return act

    with (
        patch.object(scorer, "expect", timed("network", scorer.expect)),
        patch.object(evidence, "find_lines", timed("lines and paths", evidence.find_lines)),
    ):
        whole, _ = _timed(lambda: scorer.complete(row, arrays))
    seconds["domain, looks, tiles, regions"] = whole - seconds["network"] - seconds["lines and paths"]
    total = sum(seconds.values())
    millions = arrays[0].size / 1e6
    rows = [[name, f"{value / millions * 1e3:,.0f}", f"{value / total:.0%}"] for name, value in seconds.items()]
    rows.append(["whole", f"{total / millions * 1e3:,.0f}", "100%"])
    return markdown([f"{millions:.1f} megapixels", "milliseconds a megapixel, one core", "share"], rows)


def _precision(model: Artifact) -> str:
    return backend.resolve("cpu", model.config.scoring.precision).precision


def _measure(model: Path, folder: Path) -> dict[str, float]:
    """Microseconds a file, by stage."""
    loaded = artifact.load(str(model))
    image = loaded.config.image
    listed, table = _timed(lambda: manifest.build([str(folder)])[0])
    count = table.num_rows
    uris = table["uri"].to_pylist()
    with Reader() as reader:
        read, _ = _timed(lambda: [reader.read(uri, 10**9) for uri in uris])
        decoded_seconds, decoded = _timed(lambda: [read_image(reader, image, uri) for uri in uris])
    tile_seconds, _ = _timed(lambda: [pixels(one, image) for one in decoded])
    told, _ = _timed(lambda: [describe(one) for one in decoded])
    with Decoder(image) as decoder:
        decoder.read(table.slice(0, 8))  # starts the child
        in_child, (tile_NSS, part) = _timed(lambda: decoder.read(table))
    scorer = TileScorer(loaded, "cpu", _precision(loaded))
    scorer.measure(tile_NSS[:64])
    network, (error_N, latent_N) = _timed(lambda: scorer.measure(tile_NSS))
    looked, looks = _timed(lambda: looks_of_tiles(tile_NSS))
    for name, value_N in {"score": error_N, "reconstruction_error": error_N, "latent": latent_N, **looks}.items():
        part = part.set_column(part.schema.get_field_index(name), name, pa.array(value_N))
    written, finalized = _commit(model, table, part)
    seconds = {
        "list": listed,
        "read": read,
        "decode to a tile": decoded_seconds - read + tile_seconds,
        "baselines: darkness and line filter": told,
        "a process of its own for the decoder": in_child - decoded_seconds - tile_seconds - told,
        "network and error": network,
        "brightness, contrast, sharpness, texture": looked,
        "write parts": written,
        "finalize": finalized,
    }
    return {name: 1e6 * value / count for name, value in seconds.items()}


def _commit(model: Path, table: pa.Table, part: pa.Table) -> tuple[float, float]:
    """Seconds of writing a run's parts, and of finalize."""
    loaded = artifact.load(str(model))
    assert loaded.calibration is not None
    facts = {"scoring": {"score": "mse", "alpha": 0.05, "max_failed_fraction": 0.05}}
    with tempfile.TemporaryDirectory() as out:
        normals = loaded.calibration.as_table().drop_columns("image_id")
        run = directory.create(out, [table], facts, normals)
        work, _ = shards.missing(run)

        def write() -> None:
            for item in work:
                ids = run.plan.shard(item.shard)["image_id"]
                rows = part.filter(pc.is_in(part["image_id"], ids.combine_chunks()))
                shards.write_part(out, run.identity, item, rows)

        written, _ = _timed(write)
        finalized, _ = _timed(lambda: finalize.finalize(run))
    return written, finalized


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    value = call()
    return time.perf_counter() - start, value
