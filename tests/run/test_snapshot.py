"""Listings against snapshots, on tables alone."""

import json
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crackvae.errors import InputError, RefusedError
from crackvae.run import snapshot
from crackvae.schema import MANIFEST, RESULTS, SNAPSHOT

TIME = datetime(2026, 1, 1, tzinfo=UTC)


def listing(**files):
    """A manifest: name=(size, minutes[, content_hash])."""
    rows = [
        {
            "image_id": name,
            "uri": f"file:///{name}",
            "size": size,
            "mtime": None if minutes is None else TIME + timedelta(minutes=minutes),
            "content_hash": content[0] if content else None,
        }
        for name, (size, minutes, *content) in files.items()
    ]
    return pa.Table.from_pylist(rows, MANIFEST)


def score(listed, failed=()):
    """What a run makes of the files that are to be scored."""
    rows = [
        {"image_id": row["image_id"], "uri": row["uri"], "status": "unreadable"}
        if row["image_id"] in failed
        else {
            "image_id": row["image_id"],
            "uri": row["uri"],
            "status": "ok",
            "score": row["size"],
            "prediction": "crack",
        }
        for row in snapshot.to_score(listed).to_pylist()
    ]
    return [pa.Table.from_pylist(rows, RESULTS)] if rows else []


def night(root, name, found, before=None, failed=()):
    listed = snapshot.compare(found, snapshot.known(root, before))
    told = snapshot.differences(listed, snapshot.known(root, before))
    record = {"night": name, "counts": snapshot.write(root, name, listed, before, score(listed, failed))}
    return record, {key: value for key, value in told.items() if value}


def rows(root, name):
    return {row["image_id"]: row for row in pq.read_table(snapshot.photographs(root, name)).to_pylist()}


@pytest.fixture
def root(tmp_path):
    return str(tmp_path)


def test_every_photograph_keeps_its_newest_row_and_older_snapshots_stay_as_they_are(root):
    first, told = night(root, "1", listing(a=(1, 0), b=(2, 0), c=(3, 0), d=(4, 0)), failed="d")
    assert told == {"listed": 4, "new": 4}
    before = pq.read_table(snapshot.photographs(root, "1"))
    second, told = night(root, "2", listing(a=(1, 0), b=(2, 5), d=(4, 0), e=(9, 0)), first)
    assert told == {"listed": 4, "new": 1, "changed": 1, "retried": 1, "vanished": 1}
    assert second["counts"] == {"photographs": 5, "present": 4, "flagged": 5, "status": {"ok": 5}}
    found = rows(root, "2")
    assert {name: row["night"] for name, row in found.items()} == {"a": "1", "b": "2", "c": "1", "d": "2", "e": "2"}
    assert {name: row["present"] for name, row in found.items() if not row["present"]} == {"c": False}
    assert {name: row["missing_since"] for name, row in found.items() if row["missing_since"]} == {"c": "2"}
    assert found["b"]["mtime"] == TIME + timedelta(minutes=5)
    third, told = night(root, "3", listing(a=(1, 0), b=(2, 5), d=(4, 0), e=(9, 0)), second)
    assert told == {"listed": 4}
    _, told = night(root, "4", listing(a=(1, 0), c=(3, 0), d=(4, 0), e=(9, 0)), third)
    assert told == {"listed": 4, "vanished": 1, "returned": 1}
    assert (rows(root, "4")["c"]["present"], rows(root, "4")["c"]["missing_since"]) == (True, None)
    assert rows(root, "3")["c"]["missing_since"] == "2"
    assert pq.read_table(snapshot.photographs(root, "1")).equals(before)


def test_another_time_with_equal_content_is_not_scored_again_where_the_content_is_known(root):
    first, _ = night(root, "1", listing(a=(1, 0, "x"), b=(1, 0, "x"), c=(1, 0)))
    second, told = night(root, "2", listing(a=(1, 7, "x"), b=(1, 7, "y"), c=(1, 7, "x")), first)
    assert told == {"listed": 3, "changed": 2, "touched": 1}
    assert rows(root, "2")["a"]["mtime"] == TIME + timedelta(minutes=7)
    _, told = night(root, "3", listing(a=(1, 7), b=(1, 7), c=(1, 8)), second)  # asked for no longer
    assert told == {"listed": 3, "changed": 1}
    assert [rows(root, "3")[name]["content_hash"] for name in "abc"] == ["x", "y", None]


def test_a_table_without_sizes_and_times_tells_new_files_only(root):
    first, _ = night(root, "1", listing(a=(None, None), b=(5, 0)))
    _, told = night(root, "2", listing(a=(None, None), b=(None, None), c=(None, None)), first)
    assert told == {"listed": 3, "new": 1}
    assert rows(root, "2")["b"]["size"] == 5


def test_what_lies_below_a_folder_that_cannot_be_listed_has_not_vanished(root):
    found = listing(**{"in/a": (1, 0), "in/b": (1, 0), "inn": (1, 0)})
    first, _ = night(root, "1", found)
    second, told = night(root, "2", listing(**{"in/": (None, None)}), first, failed=["in/"])
    assert told == {"listed": 1, "new": 1, "vanished": 1}
    assert {name: row["present"] for name, row in rows(root, "2").items()} == {
        "in/a": True, "in/b": True, "inn": False, "in/": True
    }  # fmt: skip
    _, told = night(root, "3", found, second)
    assert told == {"listed": 3, "vanished": 1, "returned": 1}
    assert set(rows(root, "3")) == {"in/a", "in/b", "inn"}  # a folder is no photograph


files = st.dictionaries(st.sampled_from("abcdefgh"), st.tuples(st.integers(1, 2), st.integers(0, 1)))


@given(history=st.lists(files, min_size=1, max_size=6), block=st.integers(1, 5))
def test_any_history_is_as_a_dictionary_would_have_it(history, block, tmp_path_factory):
    root, before, expected = str(tmp_path_factory.mktemp("root")), None, {}
    was, snapshot._BLOCK = snapshot._BLOCK, block
    try:
        for number, found in enumerate(history):
            before, _ = night(root, str(number), listing(**found), before)
            for name, row in expected.items():
                row["missing_since"] = None if name in found else row.get("missing_since") or str(number)
            for name, file in found.items():
                if expected.get(name, {}).get("file") != file:
                    expected[name] = {"file": file, "night": str(number)}
        table = pq.read_table(snapshot.photographs(root, str(len(history) - 1)))
    finally:
        snapshot._BLOCK = was
    assert table.schema.equals(SNAPSHOT)
    assert table.num_rows == len(expected)
    for row in table.to_pylist():
        of = expected[row["image_id"]]
        assert row["size"] == row["score"] == of["file"][0]
        assert row["night"] == of["night"]
        assert row["missing_since"] == of.get("missing_since")
        assert row["present"] == (of.get("missing_since") is None)


def test_a_night_under_way_is_kept_and_ends_with_latest_json(root, tmp_path):
    assert snapshot.latest(root) is None
    assert snapshot.begun(root) is None
    listed = snapshot.compare(listing(a=(1, 0)), snapshot.known(root, None))
    record = {"night": "1", "source": "s"}
    snapshot.begin(root, listed, record)
    assert snapshot.latest(root) is None
    kept, told = snapshot.begun(root)
    assert kept.equals(listed)
    assert told == record
    snapshot.write(root, "1", listed, None, score(listed))
    snapshot.finish(root, record)
    assert snapshot.latest(root) == record == json.loads((tmp_path / "snapshots/1/night.json").read_bytes())
    assert snapshot.begun(root) is None


def test_foreign_and_damaged_files_are_refused_with_a_cure(root, tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"")
    with pytest.raises(RefusedError, match="holds something that is no nightly survey"):
        snapshot.latest(root)
    (tmp_path / "latest.json").write_text("{")
    with pytest.raises(InputError, match=r"is damaged; copy snapshots/NIGHT/night\.json"):
        snapshot.latest(root)
    (tmp_path / "listing.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="is damaged; delete it"):
        snapshot.begun(root)
    (tmp_path / "snapshots/1").mkdir(parents=True)
    (tmp_path / "snapshots/1/photographs.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"cannot be read .*; restore it, or copy night\.json of an older night"):
        snapshot.known(root, {"night": "1"})


def test_a_first_night_whose_listing_is_damaged_begins_anew_once_it_is_deleted(root, tmp_path):
    for name in ("listing.parquet", "nights/2026-01-01/run.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"PAR1")
    with pytest.raises(InputError, match="is damaged; delete it, and the night begins anew"):
        snapshot.begun(root)
    (tmp_path / "listing.parquet").unlink()
    assert snapshot.latest(root) is None
    assert snapshot.begun(root) is None
