"""The small pictures that a page carries: thumbnails, and triptychs of image, expected surface and heat map.

Every heat map of a run is on one scale: of evidence that of `overlay`, whose middle is the model's limit;
of squared errors 0 to `overlay.SCALE` times the threshold.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import cv2
import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from crackvae import processes
from crackvae.dataset.decoder import Decoder
from crackvae.dataset.reader import Reader
from crackvae.dataset.sources import SEQUENTIAL_SUFFIXES
from crackvae.errors import UnavailableError
from crackvae.images.appearance import CELL
from crackvae.images.decode import FORMATS, Gray
from crackvae.images.ground import Ground
from crackvae.model.artifact import Artifact
from crackvae.model.photograph import PhotoScorer
from crackvae.model.scorer import TileScorer
from crackvae.report import overlay
from crackvae.report.overlay import SCALE

Boxes = Mapping[str, Sequence[Sequence[int]]]
"""x, y, width and height of the regions of an image, the strongest first, by image_id."""

SIDE = 384
"""Pixels that a triptych shows of a photograph, around its most anomalous region."""

_MARGIN = 128  # computed around them: the evidence is then within 1% of that of the whole photograph
_THUMBNAIL = 96
_MOST_FILE_BYTES = 500_000_000
_FEW = 512  # thumbnails take a process half as long as it takes to begin
_REASON_LETTERS = 120
_CHANGED = "changed since it was scored"
_INFERNO_L3 = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], cv2.COLORMAP_INFERNO)[:, 0, ::-1]


class Triptych(NamedTuple):
    """JPEGs; or the reason why there is none.

    Attributes:
        pictures: Image, expected surface and heat map; before them the whole photograph, where these are
            of a part of it.
        gone: The reason.
    """

    pictures: tuple[bytes, ...] = ()
    gone: str = ""


def triptychs(rows: pd.DataFrame, boxes: Boxes, model: Artifact, threshold: float) -> Iterator[Triptych]:
    """Draws rows one by one; an image that can no longer be had is no reason to stop.

    Args:
        rows: Of the results, in manifest order, which is quick in an archive.
        boxes: Of regions; what is shown of a photograph lies around the first, or in its middle.
        model: What scored them.
        threshold: Of the run; the scale of squared errors.
    """
    records = rows.to_dict("records")
    with Decoder(model.config.image) as decoder:
        read = _read(decoder, records)
        if model.photographs is None:
            yield from _of_tiles(list(read), model, threshold)
            return
        scorer = PhotoScorer(model, "cpu", "fp32")
        for row, (arrays, gone) in zip(records, read, strict=True):
            try:
                own = boxes.get(row["image_id"], ())
                yield Triptych(gone=gone) if gone else _of_photograph(arrays, row, own, scorer, model)
            except Exception as error:  # the page says so in its place
                yield Triptych(gone=_reason(error))


def _read(decoder: Decoder, rows: Sequence[Mapping[Any, Any]]) -> Iterator[tuple[list[Gray], str]]:
    """The pixels of files, or why there are none; where an object store gives no answer, it is not asked again."""
    files, left = pa.table({"uri": [row["uri"] for row in rows]}), iter(rows)
    try:
        for (found, arrays), row in zip(decoder.photographs(files), left, strict=True):
            if not arrays:
                yield [], str(found["message"])[:_REASON_LETTERS]
            else:
                is_same = (found["width"], found["height"]) == (row["width"], row["height"])
                yield arrays, "" if is_same else _CHANGED
    except UnavailableError as error:
        for _ in left:
            yield [], str(error)[:_REASON_LETTERS]


def _of_tiles(read: Sequence[tuple[list[Gray], str]], model: Artifact, threshold: float) -> Iterator[Triptych]:
    """Of images of one tile each, reconstructed together: one by one, 50 took 9 s on two busy cores."""
    tiles = [arrays[0] for arrays, gone in read if not gone]
    scorer = TileScorer(model, "cpu", "fp32")
    x_hats: Iterator[NDArray[np.float32]] = iter(scorer.reconstruct(np.stack(tiles)) if tiles else ())
    for arrays, gone in read:
        if gone:
            yield Triptych(gone=gone)
            continue
        tile_SS, x_hat_SS = arrays[0], next(x_hats)
        error_SS = np.square(x_hat_SS - (tile_SS.astype(np.float32) / 127.5 - 1))
        level_SS: Gray = np.clip(255 * error_SS / (SCALE * threshold), 0, 255).astype(np.uint8)
        expected_SS: Gray = np.clip(np.rint(127.5 * (x_hat_SS + 1)), 0, 255).astype(np.uint8)
        yield Triptych((_jpeg(tile_SS), _jpeg(expected_SS), _jpeg(_INFERNO_L3[level_SS].astype(np.uint8))))


def _of_photograph(
    arrays: Sequence[Gray], row: Mapping[Any, Any], boxes: Sequence[Sequence[int]], scorer: PhotoScorer, model: Artifact
) -> Triptych:
    assert model.photographs is not None
    gray_HW, chroma_hw2 = arrays
    pitch = row["mm_per_pixel"]
    ground = None if pd.isna(pitch) else Ground(pitch, row["mm_per_pixel_error"])
    factor = scorer.factor(ground)
    x, y, width, height = boxes[0] if boxes else (0, 0, *gray_HW.shape[::-1])
    down, across = _span(gray_HW.shape[0], y + height // 2, factor), _span(gray_HW.shape[1], x + width // 2, factor)
    part_HW = gray_HW[down.start : down.stop, across.start : across.stop]
    colors_hw2 = chroma_hw2[down.of(chroma_hw2.shape[0]), across.of(chroma_hw2.shape[1])]
    part_HW, expected_HW, map_hw, judged_hw = scorer.view(part_HW, colors_hw2, ground)
    part_HW3 = np.repeat(part_HW[..., None], 3, axis=2)
    heat_HW3 = np.asarray(overlay.heat(part_HW3, map_hw, judged_hw, model.photographs.map_limit))
    inner = down.shown(factor), across.shown(factor)
    pictures = [_jpeg(picture[inner]) for picture in (part_HW, expected_HW, heat_HW3)]
    part = (across.first, down.first, across.last, down.last)
    if part != (0, 0, *gray_HW.shape[::-1]):
        pictures.insert(0, _overview(gray_HW, boxes, part))
    return Triptych(tuple(pictures))


class _Span(NamedTuple):
    """Of an axis of a photograph: what is computed, start to stop, and what of it is shown, first to last."""

    start: int
    stop: int
    first: int
    last: int
    length: int

    def of(self, length: int) -> slice:
        """What is computed, of an image of the same at another resolution."""
        scale = length / self.length
        return slice(int(self.start * scale), math.ceil(self.stop * scale))

    def shown(self, factor: float) -> slice:
        """What is shown of what was computed, resampled by a factor."""
        return slice(round((self.first - self.start) * factor), round((self.last - self.start) * factor))


def _span(length: int, middle: int, factor: float) -> _Span:
    wanted, margin = round(SIDE / factor), round(_MARGIN / factor)
    first = max(0, min(middle - wanted // 2, length - wanted))
    last = min(length, first + wanted)
    start = max(0, first - margin) // CELL * CELL
    return _Span(start, min(length, last + margin), first, last, length)


def _overview(gray_HW: Gray, boxes: Sequence[Sequence[int]], part: tuple[int, int, int, int]) -> bytes:
    """The whole photograph with its regions, and with the part of it that is shown beside it."""
    scale = SIDE / max(gray_HW.shape)
    size = (max(1, round(gray_HW.shape[1] * scale)), max(1, round(gray_HW.shape[0] * scale)))
    picture = Image.fromarray(cv2.resize(gray_HW, size, interpolation=cv2.INTER_AREA)).convert("RGB")
    _outline(picture, boxes, scale)
    ImageDraw.Draw(picture).rectangle([edge * scale for edge in part], outline="white", width=2)
    return _jpeg(np.asarray(picture))


def scale(model: Artifact, threshold: float) -> tuple[bytes, tuple[str, str, str], str]:
    """The one scale of a run's heat maps.

    Returns:
        The colors from left to right as a PNG; what stands at their left end, middle and right end; of what they are.
    """
    if model.photographs is None:
        ticks = ("0", f"{SCALE / 2:g}x threshold", f"{SCALE:g}x and more")
        caption = f"squared error of a pixel (gray levels from -1 to 1), in multiples of the threshold {threshold:.4g}"
        picture = Image.fromarray(np.tile(_INFERNO_L3, (12, 1, 1)))
    else:
        ticks = overlay.ticks(model.photographs.map_limit)
        caption = (
            f"evidence for a long, dark line through a place; {model.config.scoring.alpha:.0%} of the calibration's "
            "normals exceed the limit somewhere; dark: not judged"
        )
        picture = overlay.ramp(256, 12)
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue(), ticks, caption


def _jpeg(picture: NDArray[np.uint8]) -> bytes:
    return _saved(Image.fromarray(np.ascontiguousarray(picture)))


def _saved(picture: Image.Image, quality: int = 75) -> bytes:
    """A JPEG without EXIF or comment, and so without a position."""
    file = io.BytesIO()
    picture.info.clear()  # a comment is taken over otherwise; one of over 64 kB is an error
    picture.save(file, "JPEG", quality=quality, optimize=True)
    return file.getvalue()


def thumbnails(rows: pd.DataFrame, boxes: Boxes) -> Iterator[tuple[bytes, str]]:
    """Thumbnails of files that were decoded when they were scored.

    Args:
        rows: Of the results.
        boxes: Of regions, drawn where an image is larger than a triptych.

    Yields:
        A JPEG and no reason, or no JPEG and the reason.
    """
    rows = rows[["image_id", "uri", "width", "height"]]
    parts = min(processes.cores(), len(rows) // _FEW)
    if parts < 2 or any(f"{suffix}!/" in uri.lower() for uri in rows["uri"] for suffix in SEQUENTIAL_SUFFIXES):
        yield from _thumbnails(rows, boxes)
        return
    ends = np.linspace(0, len(rows), parts + 1).astype(int)
    with processes.pool(parts) as pool:
        drawn = [
            pool.submit(_thumbnails, part, {name: boxes[name] for name in part["image_id"] if name in boxes})
            for part in (rows[start:end] for start, end in pairwise(ends))
        ]
        for made in drawn:
            yield from made.result()


def _thumbnails(rows: pd.DataFrame, boxes: Boxes) -> list[tuple[bytes, str]]:
    made = []
    shown = small_pictures(rows, _THUMBNAIL)
    for row, (picture, scale, gone) in zip(rows.to_dict("records"), shown, strict=True):
        if picture is not None and max(row["width"], row["height"]) > SIDE:
            _outline(picture, boxes.get(row["image_id"], ()), scale)
        made.append((b"", gone) if picture is None else (_saved(picture, 60), ""))
    return made


def small_pictures(rows: pd.DataFrame, side: int) -> Iterator[tuple[Image.Image | None, float, str]]:
    """Upright pictures of at most so many pixels a side, with their scale; or none, and why. Arguments as above."""
    unavailable = ""
    with Reader() as reader:
        reader.expect((uri, None) for uri in rows["uri"])
        for row in rows.to_dict("records"):
            try:
                if unavailable:  # asked again and again, it would take hours
                    raise OSError(unavailable)
                data = reader.read(row["uri"], _MOST_FILE_BYTES)
                with Image.open(io.BytesIO(data), formats=FORMATS) as photo:
                    if sorted(photo.size) != sorted((row["width"], row["height"])):
                        raise OSError(_CHANGED)
                    yield *overlay.upright(photo, side, data), ""
            except Exception as error:
                unavailable = str(error) if isinstance(error, UnavailableError) else unavailable
                yield None, 1.0, _reason(error)


def _outline(picture: Image.Image, boxes: Iterable[Sequence[int]], scale: float) -> None:
    pen = ImageDraw.Draw(picture)
    for x, y, width, height in boxes:
        box = [x * scale - 1, y * scale - 1, (x + width) * scale + 1, (y + height) * scale + 1]
        pen.rectangle(box, outline=(255, 80, 0))


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:_REASON_LETTERS] or type(error).__name__
