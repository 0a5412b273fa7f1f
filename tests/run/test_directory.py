import json

import numpy as np
import pyarrow as pa
import pytest
import runs
from hypothesis import given
from hypothesis import strategies as st

from crackvae.errors import InputError, RefusedError
from crackvae.run import directory
from crackvae.run.directory import SHARD_BYTES, SHARD_FILES, Sharding
from crackvae.schema import MANIFEST

FACTS = {"model": "abc", "backend": {"device": "cpu"}}


def plan(count):
    rows = [{"image_id": f"{i}.jpg", "uri": f"file:///{i}.jpg", "size": 10} for i in range(count)]
    return pa.Table.from_pylist(rows, MANIFEST)


def create(location, count=3, facts=FACTS):
    return directory.create(str(location), [plan(count)], facts)


@given(st.lists(st.none() | st.integers(0, SHARD_BYTES * 2), min_size=1, max_size=1200), st.integers(0, 1200))
def test_shards_are_neighbours_within_both_limits_however_the_files_are_told(sizes, cut):
    sharding = Sharding()
    shard_N = np.concatenate([sharding.assign(part) for part in (sizes[:cut], sizes[cut:])])
    assert shard_N[0] == 0
    assert set(np.diff(shard_N)) <= {0, 1}
    for shard in range(shard_N[-1] + 1):
        held = [4 * 2**20 if size is None else size for size, s in zip(sizes, shard_N, strict=True) if s == shard]
        assert len(held) <= SHARD_FILES
        assert sum(held) <= SHARD_BYTES or len(held) == 1


def test_few_photographs_have_a_shard_each_and_many_fill_theirs():
    photograph = 7 * 2**20
    assert Sharding().assign([photograph] * 60).tolist() == list(range(60))
    files_S = np.bincount(Sharding().assign([photograph] * 60_000))
    assert (np.diff(files_S)[:-1] >= 0).all()
    assert files_S.max() == 128 // 7
    assert len(files_S) < 1.1 * 60_000 / files_S.max()


def test_a_large_surveys_shards_grow_so_that_their_number_hardly_does():
    sharding, photograph = Sharding(), 8 * 10**6
    shard_N = np.concatenate([sharding.assign([photograph] * 100_000) for _ in range(20)])
    held_S = np.bincount(shard_N)[:-1] * photograph
    assert (np.diff(held_S) >= 0).all()
    assert held_S[4000] <= SHARD_BYTES < held_S[4200]
    assert 0.98 < held_S[-1] / (8 * SHARD_BYTES) <= 1
    assert shard_N[10**6] < 17_000
    assert len(held_S) < 25_000


def test_a_run_is_opened_as_it_was_created(tmp_path):
    created = create(tmp_path / "run", 600)
    opened = directory.open_run(str(tmp_path / "run"))
    assert opened == created
    assert (opened.plan.shards, opened.plan.rows) == (3, 600)
    ids = [i for n in range(3) for i in opened.plan.shard(n)["image_id"].to_pylist()]
    assert ids == plan(600)["image_id"].to_pylist()


@pytest.mark.parametrize("before", [16, 64])
def test_any_shard_of_a_plan_in_many_row_groups_is_found(before, tmp_path, monkeypatch):
    monkeypatch.setattr(directory, "_GROUP_SHARDS", before)  # a run may have been begun with others
    run = create(tmp_path / "run", 129 * SHARD_FILES + 1)
    monkeypatch.undo()
    for number in (129, 0, 65, 64, 63, 128):
        ids = run.plan.shard(number)["image_id"].to_pylist()
        assert ids[0] == f"{number * SHARD_FILES}.jpg"
        assert len(ids) == (1 if number == 129 else SHARD_FILES)


def test_the_same_inputs_have_the_same_identity(tmp_path):
    assert create(tmp_path / "a").identity == create(tmp_path / "b").identity
    assert create(tmp_path / "c", 4).identity != create(tmp_path / "d").identity
    other = create(tmp_path / "e", facts={**FACTS, "model": "abd"})
    assert other.identity != create(tmp_path / "f").identity


def test_another_run_is_refused_by_what_differs(tmp_path):
    run = create(tmp_path / "run")
    directory.check_same(run, FACTS)
    with pytest.raises(RefusedError, match="model was 'abc', is 'xyz'") as caught:
        directory.check_same(run, {**FACTS, "model": "xyz"})
    assert "backend" not in str(caught.value)


def test_a_directory_that_holds_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(RefusedError, match="no run"):
        create(tmp_path)


@pytest.mark.parametrize("name", ["run.json", "manifest.parquet", "calibration.parquet"])
def test_an_altered_run_is_refused(tmp_path, name):
    runs.create(tmp_path)
    if name == "run.json":
        header = json.loads((tmp_path / name).read_text())
        header["facts"]["model"] = "another"
        (tmp_path / name).write_text(json.dumps(header))
    else:
        data = bytearray((tmp_path / name).read_bytes())
        data[100] ^= 1
        (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match="altered"):
        directory.open_run(str(tmp_path))


def test_an_older_run_is_refused(tmp_path):
    create(tmp_path)
    header = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**header, "schema_version": 1}))
    with pytest.raises(InputError, match="older crackvae; score again in a new directory"):
        directory.open_run(str(tmp_path))


@pytest.mark.parametrize("text", ["", "{}", '{"format": "crackvae run"}'])
def test_a_foreign_run_json_is_refused(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(InputError, match="no run of crackvae"):
        directory.open_run(str(tmp_path))


def test_a_newer_run_is_refused(tmp_path):
    create(tmp_path)
    header = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**header, "schema_version": 99}))
    with pytest.raises(InputError, match="newer"):
        directory.open_run(str(tmp_path))
