import datetime
import json

import geopandas
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crackvae.report import geo
from crackvae.schema import RESULTS

TAKEN = datetime.datetime(2026, 5, 1, 9, 30, 0, 250_000)


def row(index, longitude, latitude, **values):
    scored = {"status": "ok", "score": 0.85, "p_value": 0.01, "prediction": "crack", "judged_fraction": 0.9}
    place = {"longitude": longitude, "latitude": latitude, "altitude": 12.5, "taken": TAKEN, "utc_offset": 120}
    return {"image_id": f"{index}.jpg", "uri": f"file:///{index}.jpg", **scored, **place} | values


def blocks(*rows, size=2):
    return [pa.Table.from_pylist(rows[i : i + size], RESULTS) for i in range(0, len(rows), size)]


ROWS = [
    row(0, 13.4, 52.5),
    row(1, None, None),
    row(2, -179.99, -8.25, image_id='Brücke "17"\n.jpg'),
    row(3, 13.5, 52.25, status="undecodable", score=None, p_value=None, prediction=None, judged_fraction=None),
    row(4, float("nan"), 52.0),
    row(5, 13.0, 90.5),
]


@pytest.fixture
def written(tmp_path):
    paths = str(tmp_path / "map.parquet"), str(tmp_path / "map.geojson")
    assert geo.write(blocks(*ROWS), *paths) == 3
    return paths


def test_both_files_are_read_back_as_the_same_points(written):
    frames = [geopandas.read_parquet(written[0]), geopandas.read_file(written[1])]
    for frame in frames:
        assert frame.geometry.x.tolist() == [13.4, -179.99, 13.5]
        assert frame.geometry.y.tolist() == [52.5, -8.25, 52.25]
        assert frame["image_id"].tolist() == ["0.jpg", 'Brücke "17"\n.jpg', "3.jpg"]
        assert frame["status"].tolist() == ["ok", "ok", "undecodable"]
        assert frame["score"].tolist()[:2] == pytest.approx([0.85, 0.85])
        assert np.isnan(frame["score"][2])
        assert frame["taken"].tolist() == [TAKEN] * 3
        assert frame["altitude"].tolist() == [12.5] * 3
    assert [frame.crs.to_string() for frame in frames] == ["OGC:CRS84", "EPSG:4326"]  # as GDAL calls that of GeoJSON
    assert set(frames[0].columns) == set(frames[1].columns) == {*RESULTS.names, "geometry"} - {"longitude", "latitude"}


def test_the_parquet_file_keeps_the_rules_of_geoparquet(written):
    file = pq.ParquetFile(written[0])
    metadata = json.loads(file.metadata.metadata[b"geo"])
    assert metadata.keys() == {"version", "primary_column", "columns"}
    assert metadata["version"] == "1.1.0"
    assert metadata["primary_column"] == "geometry"
    assert metadata["columns"] == {
        "geometry": {"encoding": "WKB", "geometry_types": ["Point"], "bbox": [-179.99, -8.25, 13.5, 52.5]}
    }  # without crs it is OGC:CRS84
    column = file.schema.column(file.schema_arrow.get_field_index("geometry"))
    assert column.physical_type == "BYTE_ARRAY"
    assert column.path == "geometry"  # at the root
    assert column.max_repetition_level == 0
    assert file.read()["geometry"][0].as_py() == bytes.fromhex("0101000000") + np.array([13.4, 52.5], "<f8").tobytes()
    assert file.num_row_groups == 2  # a block without positions is none


def test_the_geojson_file_keeps_the_rules_of_rfc_7946(written):
    with open(written[1], "rb") as stream:
        data = stream.read()
    collection = json.loads(data.decode("utf-8"), parse_constant=pytest.fail)  # no NaN
    assert collection.keys() == {"type", "features"}  # and no crs
    assert collection["type"] == "FeatureCollection"
    feature = collection["features"][0]
    assert feature.keys() == {"type", "geometry", "properties"}
    assert feature["geometry"] == {"type": "Point", "coordinates": [13.4, 52.5]}
    assert feature["properties"]["score"] == 0.85  # and not 0.8500000238418579
    assert feature["properties"]["taken"] == "2026-05-01T09:30:00.250"
    assert collection["features"][2]["properties"]["score"] is None


def test_a_feature_is_a_line(written):
    with open(written[1], encoding="utf-8", newline="\n") as stream:
        head, *features, tail = stream.readlines()
    assert [json.loads(line.rstrip(",\n"))["properties"]["status"] for line in features] == ["ok", "ok", "undecodable"]
    assert json.loads(head + tail) == {"type": "FeatureCollection", "features": []}


def test_numbers_that_are_none_are_null_in_geojson(tmp_path):
    paths = str(tmp_path / "map.parquet"), str(tmp_path / "map.geojson")
    geo.write(blocks(row(0, 0.0, 0.0, altitude=float("inf"), score=float("nan"))), *paths)
    properties = json.loads((tmp_path / "map.geojson").read_bytes())["features"][0]["properties"]
    assert properties["altitude"] is None
    assert properties["score"] is None


@pytest.mark.parametrize("results", [[], blocks(row(0, None, None), row(1, None, 1.0))])
def test_without_any_position_both_files_are_valid_and_empty(tmp_path, results):
    paths = str(tmp_path / "map.parquet"), str(tmp_path / "map.geojson")
    assert geo.write(results, *paths) == 0
    assert len(geopandas.read_parquet(paths[0])) == len(geopandas.read_file(paths[1])) == 0
    assert "bbox" not in json.loads(pq.read_metadata(paths[0]).metadata[b"geo"])["columns"]["geometry"]


def test_nothing_is_visible_where_the_results_break_off(tmp_path):
    def breaking():
        yield blocks(*ROWS)[0]
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        geo.write(breaking(), str(tmp_path / "map.parquet"), str(tmp_path / "map.geojson"))
    assert not list(tmp_path.iterdir())


@given(st.lists(st.tuples(st.floats(-180, 180), st.floats(-90, 90)), min_size=1, max_size=9), st.integers(1, 4))
def test_every_position_comes_back_exactly_within_the_box(tmp_path_factory, points, size):
    folder = tmp_path_factory.mktemp("geo")
    paths = str(folder / "map.parquet"), str(folder / "map.geojson")
    rows = [row(index, *point) for index, point in enumerate(points)]
    assert geo.write(blocks(*rows, size=size), *paths) == len(points)
    frame = geopandas.read_parquet(paths[0])
    assert list(zip(frame.geometry.x, frame.geometry.y, strict=True)) == points
    features = json.loads((folder / "map.geojson").read_bytes())["features"]
    assert [tuple(feature["geometry"]["coordinates"]) for feature in features] == points
    box = json.loads(pq.read_metadata(paths[0]).metadata[b"geo"])["columns"]["geometry"]["bbox"]
    assert box == frame.total_bounds.tolist()
