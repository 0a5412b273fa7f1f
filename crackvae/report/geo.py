"""The photographs of a run on a map: GeoParquet 1.1 and GeoJSON (RFC 7946), side by side."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from crackvae import storage
from crackvae.schema import RESULTS

GEOMETRY = "geometry"

_POSITION = {"longitude": 180.0, "latitude": 90.0}  # and the largest value of each, in degrees
# A point in WKB (OGC 06-103r4, 8.2.9): byte order, geometry type, x, y.
_WKB = np.dtype([("little_endian", "u1"), ("type", "<u4"), ("x", "<f8"), ("y", "<f8")])


def any_position(latitudes: Iterable[pa.Table]) -> bool:
    """Whether any row of the results has a latitude."""
    return any(block["latitude"].null_count < len(block) for block in latitudes)


def write(results: Iterable[pa.Table], parquet: str, geojson: str) -> int:
    """Writes the photographs that have a position as points, in memory that does not grow.

    Both files have every column of the results but longitude and latitude, which are the point, in
    WGS 84 with longitude first (OGC:CRS84, the default of both formats, which is why neither names it).
    Altitude is a column and no third coordinate: cameras write it above the sea, the formats mean it
    above the ellipsoid. A photograph without a score is there with its status and a null score.

    The bounding box in the GeoParquet is the range of the coordinates, so that of a survey across the
    antimeridian spans the globe. In the GeoJSON a feature is a line; `taken` is text in ISO 8601, of
    the camera's own clock.

    Args:
        results: Blocks of rows of `schema.RESULTS`; each becomes a row group.
        parquet: Location of the GeoParquet.
        geojson: Location of the GeoJSON.

    Returns:
        How many photographs have a position.
    """
    schema = _with_geometry(RESULTS.empty_table()).schema
    count, corners = 0, []
    with (
        storage.writing(parquet) as stream,
        pq.ParquetWriter(stream, schema, compression="zstd") as writer,
        storage.writing(geojson) as text,
    ):
        text.write(b'{"type":"FeatureCollection","features":[')
        for block in filter(len, map(_located, results)):
            writer.write_table(_with_geometry(block))
            for feature in _features(block):
                text.write(f"{',' if count else ''}\n{feature}".encode())
                count += 1
            point_N2 = np.stack(list(_coordinates(block)), axis=1)
            corners += [point_N2.min(axis=0), point_N2.max(axis=0)]
        text.write(b"\n]}\n")
        # What the key `geo` says: https://geoparquet.org/releases/v1.1.0/
        column: dict[str, Any] = {"encoding": "WKB", "geometry_types": ["Point"]}
        if corners:
            column["bbox"] = [*np.min(corners, axis=0).tolist(), *np.max(corners, axis=0).tolist()]
        metadata = {"version": "1.1.0", "primary_column": GEOMETRY, "columns": {GEOMETRY: column}}
        writer.add_key_value_metadata({"geo": json.dumps(metadata)})
    return count


def _located(block: pa.Table) -> pa.Table:
    """The rows with a position on Earth."""
    for name, most in _POSITION.items():
        block = block.filter(pc.less_equal(pc.abs(block[name]), most))  # drops nulls, and NaN is not less
    return block


def _coordinates(block: pa.Table) -> Iterator[NDArray[np.float64]]:
    return (block[name].to_numpy() for name in _POSITION)


def _with_geometry(block: pa.Table) -> pa.Table:
    """Longitude and latitude replaced by a column of WKB points."""
    point_N = np.empty(len(block), _WKB)
    point_N["little_endian"], point_N["type"] = 1, 1
    point_N["x"], point_N["y"] = _coordinates(block)
    fixed = pa.Array.from_buffers(pa.binary(_WKB.itemsize), len(block), [None, pa.py_buffer(point_N)])
    # The format wants BYTE_ARRAY, which a fixed size is not.
    return block.drop_columns(list(_POSITION)).append_column(
        pa.field(GEOMETRY, pa.binary(), nullable=False), fixed.cast(pa.binary())
    )


def _features(block: pa.Table) -> Iterator[str]:
    """A GeoJSON feature per row."""
    encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
    table = pa.table([_json_column(column) for column in block.columns], names=block.schema.names)
    for batch in table.to_batches(max_chunksize=1024):
        for properties in batch.to_pylist():
            point = {"type": "Point", "coordinates": [properties.pop(name) for name in _POSITION]}
            yield encode({"type": "Feature", "geometry": point, "properties": properties})


def _json_column(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Values that JSON knows: times as text, numbers that are none as null."""
    if pa.types.is_timestamp(column.type):
        return pc.strftime(column, format="%Y-%m-%dT%H:%M:%S")
    if pa.types.is_floating(column.type):
        finite = pc.if_else(pc.is_finite(column), column, pa.scalar(None, column.type))
        return finite.cast(pa.string()).cast(pa.float64())  # 0.85, not the 0.8500000238418579 of a float32
    return column
