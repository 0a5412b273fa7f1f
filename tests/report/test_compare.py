import csv
import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crackvae import storage
from crackvae.errors import InputError, RefusedError
from crackvae.report import compare as comparing
from crackvae.report.compare import COMPARISON, Change, compare
from crackvae.run import directory, finalize, judge
from crackvae.schema import BASELINES, LOOKS, MANIFEST, RESULTS

ALPHA = 0.05
SCORES = ("score", *BASELINES, *LOOKS, "worst_tile_score")
CALIBRATION = pa.table({name: pa.array(np.linspace(0, 1, 99), pa.float32()) for name in SCORES})
CALIBRATION = CALIBRATION.append_column("tiles", pa.array(np.ones(99, np.int32)))
DEGREE = math.pi / 180 * 6_371_008.8  # metres, of a great circle


def photo(image_id, p_value=None, latitude=None, longitude=None, **values):
    """A photograph with a score for its p-value, or one that could not be read."""
    row = {"image_id": image_id, "uri": "file:///x", "status": "undecodable", "latitude": latitude} | values
    row["longitude"] = longitude
    if p_value is None:
        return row
    prediction = "crack" if p_value <= ALPHA else "normal"
    return row | {"status": "ok", "score": 1 - p_value, "p_value": p_value, "prediction": prediction}


def run(location, *rows, model="m"):
    """A finished run of these results; returns its location."""
    manifest = pa.Table.from_pylist([{"image_id": row["image_id"], "uri": row["uri"]} for row in rows], MANIFEST)
    facts = {"model": model, "scoring": {"score": "mse", "alpha": ALPHA}}
    made = directory.create(str(location), [manifest], facts, CALIBRATION)
    half = len(rows) // 2
    for number, part in enumerate((rows[:half], rows[half:])):
        with storage.writing(made.path(finalize.table_file("results", number))) as stream:
            pq.write_table(pa.Table.from_pylist(part, RESULTS), stream)
    storage.write_bytes(made.path(directory.SUCCESS), b"{}")
    return str(location)


def compared(folder, old, new, *, radius=None, other_model=False):
    """The rows of a comparison, as dicts, and what the function returns."""
    runs = run(folder / "old", *old), run(folder / "new", *new)
    found = compare(*runs, str(folder / "out"), radius=radius, other_model=other_model)
    table = pq.read_table(folder / "out" / "compare.parquet")
    assert table.schema.equals(COMPARISON)
    return table.to_pylist(), found


def summary(rows):
    return [(row["image_id_old"], row["image_id_new"], row["change"]) for row in rows]


OLD = [
    photo("a", 0.5),
    photo("b", 0.5),
    photo("c", 0.04),
    photo("d", 0.6),
    photo("e", 0.6),
    photo("f"),
    photo("g", 0.7),
    photo("i", 0.6),
]
NEW = [
    photo("b", 0.01),
    photo("a", 0.05),
    photo("c", 0.06),
    photo("d", 0.6),
    photo("e"),
    photo("f"),
    photo("h", 0.7),
    photo("i", 0.3),
]


def test_every_change_is_told_in_the_order_of_where_to_look(tmp_path):
    rows, found = compared(tmp_path, OLD, NEW)
    assert summary(rows) == [
        ("b", "b", "risen"),
        ("a", "a", "risen"),
        (None, "h", "new"),
        ("e", "e", "not_comparable"),
        ("f", "f", "not_comparable"),
        ("g", None, "gone"),
        ("c", "c", "fallen"),
        ("i", "i", "same"),
        ("d", "d", "same"),
    ]
    changes = [row["score_change"] for row in rows]
    expected = [0.49, 0.45, None, None, None, None, -0.02, 0.3, 0.0]
    assert changes == [change and pytest.approx(change, rel=1e-5) for change in expected]
    assert rows[0] == {
        "image_id_old": "b",
        "image_id_new": "b",
        "distance_m": None,
        "status_old": "ok",
        "status_new": "ok",
        "score_old": 0.5,
        "score_new": pytest.approx(0.99),
        "p_value_old": 0.5,
        "p_value_new": 0.01,
        "prediction_old": "normal",
        "prediction_new": "crack",
        "score_change": pytest.approx(0.49),
        "change": "risen",
    }
    assert found.counts == {"risen": 2, "new": 1, "not_comparable": 2, "gone": 1, "fallen": 1, "same": 2}
    assert [row["image_id_new"] for row in found.risen] == ["b", "a"]


def test_a_photograph_that_cannot_be_judged_is_not_comparable(tmp_path):
    unjudged = photo("a", 0.01) | {"status": "cannot_judge", "prediction": None}
    rows, _ = compared(tmp_path, [photo("a", 0.5), photo("b", 0.5)], [unjudged, photo("b", 0.5)])
    assert [(row["change"], row["score_change"]) for row in rows] == [("not_comparable", None), ("same", 0.0)]


def test_pairs_are_each_others_nearest_within_the_radius(tmp_path):
    metre = 1 / DEGREE
    old = [photo("a", 0.5, 0.0, 0.0), photo("b", 0.5, 3 * metre, 0.0), photo("c", 0.5, 50 * metre, 0.0)]
    old.append(photo("d", 0.5, 80 * metre, 0.0))
    new = [photo("x", 0.5, 2 * metre, 0.0), photo("y", 0.5, 5 * metre, 0.0), photo("z", 0.5, 55.1 * metre, 0.0)]
    new.append(photo("v", 0.01, 84.9 * metre, 0.0))
    rows, found = compared(tmp_path, old, new, radius=5)
    singles = [(None, "y", "new"), (None, "z", "new"), ("a", None, "gone"), ("c", None, "gone")]
    assert summary(rows) == [("d", "v", "risen"), *singles, ("b", "x", "same")]
    assert [row["distance_m"] for row in rows] == [pytest.approx(4.9), *[None] * 4, pytest.approx(1)]
    assert found.warnings == []


@pytest.mark.parametrize(
    ("one", "other", "metres"),
    [
        ((0.0, 179.99999), (0.0, -179.99999), 0.00002 * DEGREE),
        ((52.0, 180.0), (52.0, -180.0), 0.0),
        ((90.0, 17.0), (90.0, -120.0), 0.0),
        ((-89.99999, 0.0), (-89.99999, 180.0), 0.00002 * DEGREE),
    ],
)
def test_the_antimeridian_and_the_poles_are_no_seams(tmp_path, one, other, metres):
    rows, _ = compared(tmp_path, [photo("a", 0.5, *one)], [photo("b", 0.5, *other)], radius=3)
    assert summary(rows) == [("a", "b", "same")]
    assert rows[0]["distance_m"] == pytest.approx(metres, abs=1e-6)


def test_photographs_at_one_place_are_paired_in_the_order_of_their_names(tmp_path):
    old = [photo(name, 0.5, 1.0, 1.0) for name in "cab"]
    new = [photo(name, 0.5, 1.0, 1.0) for name in ("b2", "a2")]
    rows, found = compared(tmp_path, old, new, radius=1)
    assert summary(rows) == [("c", None, "gone"), ("a", "a2", "same"), ("b", "b2", "same")]
    assert "warning: 3 old and 2 new photographs share a position" in found.text()


def test_photographs_without_a_position_are_counted_and_not_said_to_be_new_or_gone(tmp_path):
    old = [photo("a", 0.5, 1.0, 1.0), photo("b", 0.5), photo("c", 0.5, float("nan"), 1.0)]
    new = [photo("a", 0.5, 1.0, 1.0), photo("b", 0.01, 91.0, 1.0)]
    rows, found = compared(tmp_path, old, new, radius=1)
    singles = [(None, "b", "not_comparable"), ("b", None, "not_comparable"), ("c", None, "not_comparable")]
    assert summary(rows) == [*singles, ("a", "a", "same")]
    assert "2 old and 1 new photographs have no position" in found.text()


def test_photographs_matched_by_name_tell_how_far_apart_they_were_taken(tmp_path):
    rows, _ = compared(tmp_path, [photo("a", 0.5, 1.0, 1.0)], [photo("a", 0.5, 2.0, 1.0)])
    assert rows[0]["distance_m"] == pytest.approx(DEGREE)


@pytest.mark.parametrize("radius", [0.0, -1.0, math.nan, math.inf])
def test_a_radius_that_is_no_positive_number_is_refused(tmp_path, radius):
    with pytest.raises(InputError, match=r"--radius .*: must be a positive number of metres"):
        compared(tmp_path, OLD, NEW, radius=radius)


def test_a_radius_needs_positions(tmp_path):
    with pytest.raises(InputError, match="old: no photograph has a position; leave out --radius"):
        compared(tmp_path, OLD, NEW, radius=5)


def test_runs_of_different_models_are_compared_by_p_values_alone_and_on_request(tmp_path):
    old, new = run(tmp_path / "old", *OLD), run(tmp_path / "new", *NEW, model="n")
    with pytest.raises(RefusedError, match=r"model was 'm', is 'n'.*--other-model"):
        compare(old, new, str(tmp_path / "out"), radius=None, other_model=False)
    found = compare(old, new, str(tmp_path / "out"), radius=None, other_model=True)
    table = pq.read_table(tmp_path / "out" / "compare.parquet")
    assert table["score_change"].null_count == len(table)
    assert table["score_new"].null_count == 3  # two unreadable, one gone
    assert [row["image_id_new"] for row in found.risen] == ["b", "a"]


def test_runs_judged_by_different_thresholds_are_refused(tmp_path):
    old, new = run(tmp_path / "old", *OLD), run(tmp_path / "new", *NEW)
    judge.set_threshold(directory.open_run(new), quantile=None, value=0.5)
    storage.write_bytes(storage.join(new, directory.SUCCESS), b"{}")
    with pytest.raises(RefusedError, match=r"threshold\.value was .*, is 0\.5"):
        compare(old, new, str(tmp_path / "out"), radius=None, other_model=False)


def test_the_file_tells_which_runs_it_is_of(tmp_path):
    compared(tmp_path, OLD, NEW)
    facts = json.loads(pq.read_schema(tmp_path / "out" / "compare.parquet").metadata[b"crackvae.compare"])
    identities = [directory.open_run(str(tmp_path / name)).identity for name in ("old", "new")]
    assert facts == {"old": identities[0], "new": identities[1], "radius": None, "differs": []}


def test_a_run_that_is_not_finished_is_an_error(tmp_path):
    old, new = run(tmp_path / "old", *OLD), run(tmp_path / "new", *NEW)
    storage.remove(storage.join(new, directory.SUCCESS))
    with pytest.raises(InputError, match="new: is not finished"):
        compare(old, new, str(tmp_path / "out"), radius=None, other_model=False)


def test_a_directory_that_holds_something_else_is_refused_and_an_earlier_comparison_replaced(tmp_path):
    compared(tmp_path, OLD, NEW)
    old, new = str(tmp_path / "old"), str(tmp_path / "new")
    compare(new, old, str(tmp_path / "out"), radius=None, other_model=False)
    assert pq.read_table(tmp_path / "out" / "compare.parquet")["image_id_new"][0].as_py() == "c"
    with pytest.raises(RefusedError, match="holds something that is no comparison"):
        compare(old, new, old, radius=None, other_model=False)


def test_the_csv_has_every_row_and_runs_no_formula(tmp_path, monkeypatch):
    monkeypatch.setattr(comparing, "_CSV_ROWS", 2)
    rows, _ = compared(tmp_path, [*OLD, photo("=cmd", 0.5)], NEW)
    with open(tmp_path / "out" / "compare.csv", newline="") as stream:
        found = list(csv.DictReader(stream))
    assert list(found[0]) == COMPARISON.names
    assert [row["image_id_old"].removeprefix("'") for row in found] == [row["image_id_old"] or "" for row in rows]
    assert "'=cmd" in [row["image_id_old"] for row in found]


def test_the_text_shows_the_counts_and_what_has_risen(tmp_path):
    counts, risen = compared(tmp_path, OLD, NEW)[1].text().split("\n\n")
    assert [line.split()[1] for line in counts.split("\n")[2:]] == list(Change)
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in risen.split("\n")]
    assert cells[2] == ["b", "b", "-", "0.99", "0.5", "0.0100", "0.5000"]


def sides():
    """Photographs on a coarse grid, so that places, distances and names are shared."""
    grid = st.one_of(st.none(), st.integers(0, 3).map(lambda n: n * 1e-5))
    row = st.tuples(st.sampled_from("abcdefgh"), st.sampled_from([None, 0.01, 0.04, 0.5]), grid, grid)
    return st.lists(row, min_size=1, max_size=7, unique_by=lambda row: row[0])


@given(sides(), sides(), st.sampled_from([None, 0.5, 1.2, 5.0]))
def test_each_photograph_appears_once_and_swapping_the_runs_swaps_the_changes(tmp_path_factory, old, new, radius):
    folder = tmp_path_factory.mktemp("compare")
    # One with a position in each, far from all others, so that there is any.
    old, new = ([photo(*row) for row in rows] + [photo("far", 0.5, 45.0, 45.0)] for rows in (old, new))
    forth, _ = compared(folder / "forth", old, new, radius=radius)
    back, _ = compared(folder / "back", new, old, radius=radius)
    for side, rows in (("old", old), ("new", new)):
        appearing = [row[f"image_id_{side}"] for row in forth if row[f"image_id_{side}"] is not None]
        assert sorted(appearing) == sorted(row["image_id"] for row in rows)
    swapped = {"new": "gone", "gone": "new", "risen": "fallen", "fallen": "risen"}
    mirrored = {(new, old, swapped.get(change, change)) for old, new, change in summary(back)}
    assert set(summary(forth)) == mirrored
    paired = [row["distance_m"] for row in forth if row["image_id_old"] and row["image_id_new"]]
    assert radius is None or all(distance <= radius for distance in paired)


def mutual(old, new, radius):
    """Each other's nearest, by trying all pairs."""

    def metres(a, b):
        return math.hypot(a["latitude"] - b["latitude"], a["longitude"] - b["longitude"]) * DEGREE

    def is_pair(a, b):
        nearest = metres(a, b) == min(metres(a, other) for other in new) == min(metres(other, b) for other in old)
        return nearest and metres(a, b) <= radius

    return {(a["image_id"], b["image_id"]) for a in old for b in new if is_pair(a, b)}


@given(seed=st.integers(0, 2**32 - 1))
def test_pairs_are_those_of_trying_all(tmp_path_factory, seed):
    rng = np.random.default_rng(seed)
    old, new = ([photo(f"{i}", 0.5, *rng.uniform(0, 1e-4, 2)) for i in range(12)] for _ in range(2))
    rows, _ = compared(tmp_path_factory.mktemp("compare"), old, new, radius=4)
    pairs = {(row["image_id_old"], row["image_id_new"]) for row in rows if row["change"] == "same"}
    assert pairs == mutual(old, new, 4)


def test_names_that_sources_share_are_told_not_to_be_those_of_before(tmp_path):
    """With pier A's first photograph gone, DJI_1.jpg is pier B's."""
    old, new = [photo("DJI_1.jpg", 0.5), photo("DJI_1.jpg#2", 0.5)], [photo("DJI_1.jpg", 0.5)]
    _, found = compared(tmp_path, old, new)
    assert found.warnings[0].startswith("1 names are numbered (#2, ...), as sources shared them")
    _, plain = compared(tmp_path / "plain", OLD, NEW)
    assert plain.warnings == []
