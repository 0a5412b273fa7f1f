"""The names that files and code share: columns, statuses, labels, splits, and their Arrow schemas.

A column name is written once, here. The order of the fields is the order in the files.
"""

from __future__ import annotations

from enum import StrEnum

import pyarrow as pa

SCHEMA_VERSION = 2


class Status(StrEnum):
    """What became of one input file."""

    OK = "ok"
    UNREADABLE = "unreadable"  # the bytes could not be had: missing, no permission, damaged archive
    UNDECODABLE = "undecodable"  # the bytes are no complete image
    CRASHED = "crashed"  # the decoder died of it, ran out of memory or came to no end; twice
    TOO_LARGE = "too_large"  # more bytes or pixels than the config allows
    TOO_SMALL = "too_small"  # too few pixels to judge


class Label(StrEnum):
    """Ground truth, and prediction. Crack is the positive class."""

    NORMAL = "normal"
    CRACK = "crack"


class Split(StrEnum):
    """What an image is used for."""

    TRAIN = "train"
    VAL = "val"
    TEST = "test"
    EXTERNAL = "external"


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

PART = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),  # Status
        pa.field("message", pa.string()),
        pa.field("score", pa.float32()),
        pa.field("reconstruction_error", pa.float32()),
        pa.field("darkness", pa.float32()),  # the baseline: median - 1st percentile of gray level
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
        pa.field("prediction", pa.string()),  # Label, null where not scored
        pa.field("darkness", pa.float32()),
    ]
)
"""One row per input file, in results/ and results.csv."""
