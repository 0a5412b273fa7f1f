"""The names that files and code share: columns, statuses, labels, splits, and their Arrow schemas.

A column name is written once, here. The order of the fields is the order in the files.
"""

from __future__ import annotations

from enum import StrEnum

import pyarrow as pa

SCHEMA_VERSION = 7


class Status(StrEnum):
    """What became of one input file."""

    OK = "ok"
    UNREADABLE = "unreadable"  # the bytes could not be had: missing, no permission, damaged archive
    UNDECODABLE = "undecodable"  # the bytes are no complete image
    CRASHED = "crashed"  # the decoder died of it, ran out of memory or came to no end; twice
    TOO_LARGE = "too_large"  # more bytes or pixels than the config allows
    TOO_SMALL = "too_small"  # too few pixels to judge
    CANNOT_JUDGE = "cannot_judge"  # a photograph that is too unlike the training images; no failure


class Label(StrEnum):
    """Ground truth, and prediction. Crack is the positive class."""

    NORMAL = "normal"
    CRACK = "crack"


class ReviewPart(StrEnum):
    """Why an image is to be looked at."""

    LIST = "list"
    AUDIT = "audit"  # drawn at random of those not listed
    REPEAT = "repeat"  # of another one of the list, which alone is looked at


class Decision(StrEnum):
    """What a person says of an image."""

    CRACK = "crack"
    NO_CRACK = "no crack"
    UNSURE = "unsure"


class Split(StrEnum):
    """What an image is used for."""

    TRAIN = "train"
    VAL = "val"
    TEST = "test"
    EXTERNAL = "external"


BASELINES = ("darkness", "line_filter")
"""Scores of simple image processing that a model has to beat: columns of every image, in gray levels.

Median - 1st percentile, and `images.tile.line_filter`.
"""

LOOKS = ("brightness", "contrast", "sharpness", "texture", "latent")
"""What a survey's images are compared by with those of the calibration: columns of every scored image.

`images.appearance.looks`, and the root mean square of the latent mean over its dimensions.
"""


class EvaluationSet(StrEnum):
    """What the metrics of an evaluation are reported for."""

    INTERNAL = "internal"  # Split.TEST
    EXTERNAL = "external"  # Split.EXTERNAL
    ALL = "all"


MANIFEST = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("size", pa.int64()),  # bytes
        pa.field("mtime", pa.timestamp("us", tz="UTC")),
        pa.field("label", pa.string()),  # Label
        pa.field("group", pa.string()),  # twins of one image share it
        pa.field("split", pa.string()),  # Split
        pa.field("content_hash", pa.string()),  # of the file's bytes; written by `crackvae split`
    ]
)
"""One row per input file."""


class Change(StrEnum):
    """How a listed file compares with the newest snapshot."""

    NEW = "new"
    CHANGED = "changed"
    RETRIED = "retried"  # the same, but unreadable then
    SAME = "same"


LISTING = pa.schema([*MANIFEST, pa.field("change", pa.string(), nullable=False)])
"""What a night found: one row per listed file."""

_PHOTOGRAPH = [
    pa.field("width", pa.int32()),  # pixels, upright
    pa.field("height", pa.int32()),
    pa.field("taken", pa.timestamp("ms")),  # the camera's own clock
    pa.field("utc_offset", pa.int16()),  # minutes of that clock
    pa.field("latitude", pa.float64()),  # degrees, WGS 84
    pa.field("longitude", pa.float64()),
    pa.field("altitude", pa.float64()),  # metres above sea level
    pa.field("camera", pa.string()),
    pa.field("orientation", pa.int8()),  # EXIF, 1..8
    pa.field("relative_altitude", pa.float32()),  # metres above the take-off
    pa.field("gimbal_yaw", pa.float32()),  # degrees
    pa.field("gimbal_pitch", pa.float32()),
    pa.field("gimbal_roll", pa.float32()),
    pa.field("mm_per_pixel", pa.float32()),  # ground sampling distance, given or from EXIF
    pa.field("mm_per_pixel_error", pa.float32()),  # its relative error, about 95%
    pa.field("tiles", pa.int32()),  # that were judged
    pa.field("worst_tile_score", pa.float32()),  # the largest score of one
    pa.field("map_peak", pa.float32()),  # the largest evidence at a place
    pa.field("judged_fraction", pa.float32()),  # of the area
    pa.field("anomalous_fraction", pa.float32()),  # of the judged area, over the model's map limit
]

_BASELINES, _LOOKS = ([pa.field(name, pa.float32()) for name in names] for names in (BASELINES, LOOKS))

_REGION = [
    pa.field("x", pa.int32()),  # box in pixels of the upright photograph
    pa.field("y", pa.int32()),
    pa.field("width", pa.int32()),
    pa.field("height", pa.int32()),
    pa.field("outline", pa.list_(pa.field("element", pa.int32()))),  # x, y, x, y, ...
    pa.field("area", pa.int32()),  # pixels
    pa.field("peak", pa.float32()),  # of the anomaly map
    pa.field("length", pa.float32()),  # pixels along the skeleton, null where not line-like
    pa.field("mean_width", pa.float32()),
    pa.field("length_mm", pa.float32()),
    pa.field("length_mm_error", pa.float32()),  # half the interval of about 95%
    pa.field("mean_width_mm", pa.float32()),
    pa.field("mean_width_mm_error", pa.float32()),
]

_TILE = [
    pa.field("x", pa.int32()),  # of its corner, in pixels of the upright photograph
    pa.field("y", pa.int32()),
    pa.field("score", pa.float32()),
    pa.field("reconstruction_error", pa.float32()),
    pa.field("judged", pa.bool_()),
]


def _nested(name: str, fields: list[pa.Field]) -> pa.Field:
    return pa.field(name, pa.list_(pa.field("element", pa.struct(fields))))


PART = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),  # Status
        pa.field("message", pa.string()),
        pa.field("score", pa.float32()),
        pa.field("reconstruction_error", pa.float32()),
        *_BASELINES,
        *_PHOTOGRAPH,
        *_LOOKS,
        _nested("regions", _REGION),
        _nested("tile_errors", _TILE),  # on request
    ]
)
"""What a shard's file holds: one row per file of the shard, in manifest order."""

RESULTS = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),  # Status
        pa.field("message", pa.string()),
        pa.field("label", pa.string()),  # Label
        pa.field("group", pa.string()),
        pa.field("set", pa.string()),  # EvaluationSet
        pa.field("score", pa.float32()),
        pa.field("reconstruction_error", pa.float32()),
        pa.field("p_value", pa.float64()),
        pa.field("prediction", pa.string()),  # Label, null where not scored or not judged
        *_BASELINES,
        pa.field("p_value_is_bound", pa.bool_()),  # from tiles: too few photographs of its size were calibrated
        *_PHOTOGRAPH,
        *_LOOKS,
    ]
)
"""One row per input file, in results/ and results.csv."""

_ID = pa.field("image_id", pa.string(), nullable=False)
REGIONS = pa.schema([_ID, *_REGION])
"""One row per anomalous region, in regions/."""
TILES = pa.schema([_ID, *_TILE])
"""One row per tile of a photograph, in tiles/, where they were asked for."""

REVIEW = pa.schema(
    [
        _ID,
        pa.field("part", pa.string(), nullable=False),  # ReviewPart
        pa.field("score", pa.float32()),
        pa.field("p_value", pa.float64()),
        pa.field("repeat_of", pa.string()),  # image_id
        pa.field("decision", pa.string()),  # Decision; for people to fill in
        pa.field("note", pa.string()),
    ]
)
"""One row per image to look at, in review.csv."""

SNAPSHOT = pa.schema(
    [
        *RESULTS,
        *(MANIFEST.field(name) for name in ("size", "mtime", "content_hash")),  # as listed last
        pa.field("night", pa.string(), nullable=False),  # whose run has scored it
        pa.field("present", pa.bool_(), nullable=False),  # in the newest listing
        pa.field("missing_since", pa.string()),  # the first night whose listing had it no more
    ]
)
"""One row per photograph that was ever scored, its newest, in a nightly survey's snapshots/."""
