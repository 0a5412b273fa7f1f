"""Which files of a shard count, and what each attempt still has to do."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from runs import FACTS, create, everything, finished, missing, part, score

from crackvae import storage
from crackvae.run import directory, finalize, shards
from crackvae.run.shards import Work
from crackvae.schema import LOOKS, PART, Status


def path_of(run, number, attempt=0):
    return run.path(shards.part_name(number, attempt))


def damage_of(run):
    return {name.rpartition("/")[2]: why for name, why in shards.missing(run)[1].items()}


def test_a_file_says_whose_it_is_and_what_is_in_it(tmp_path):
    run = finished(tmp_path / "run")
    metadata = pq.read_metadata(path_of(run, 1)).metadata
    assert metadata[b"crackvae.run"] == run.identity.encode()
    assert (metadata[b"crackvae.shard"], metadata[b"crackvae.attempt"]) == (b"1", b"0")
    assert metadata[b"crackvae.rows"] == b"256"
    assert len(metadata[b"crackvae.sha256"]) == 64
    assert pq.read_table(path_of(run, 1)).replace_schema_metadata(None).schema.equals(PART)


def test_one_flipped_bit_anywhere_is_found(tmp_path, monkeypatch):
    run = create(tmp_path / "run", files=3)
    score(run, [0])
    path = tmp_path / "run" / shards.part_name(0)
    whole = path.read_bytes()
    assert missing(run) == []
    for position in range(len(whole)):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << position % 8
        if position % 100:  # from memory: a file takes three times as long
            with monkeypatch.context() as patch:
                patch.setattr(storage, "read_bytes", lambda _, data=bytes(flipped): data)
                assert shards.read_part(run, 0, [0]).attempt == -1, position
        else:
            path.write_bytes(flipped)
            assert missing(run) == [(0, 0)], position


def test_every_way_in_which_a_file_does_not_count_is_named(tmp_path):
    run = create(tmp_path / "run", files=256 * 6)
    score(run, range(5))
    other = directory.create(
        str(tmp_path / "other"), [run.plan.shard(0).drop_columns("shard")], {**FACTS, "model": "another"}
    )
    with open(path_of(run, 0), "r+b") as stream:
        stream.truncate(500)
    shards.write_part(run.location, other.identity, Work(1, 0), part(run, 1))
    shards.write_part(run.location, run.identity, Work(2, 0), part(run, 2).slice(1))
    with open(path_of(run, 3), "wb") as stream, open(path_of(run, 4), "rb") as source:
        stream.write(source.read())
    shards.write_part(run.location, run.identity, Work(4, 1), part(run, 4))
    assert damage_of(run) == {
        "part-00000000.parquet": "is truncated, or no file of a run",
        "part-00000001.parquet": "is of another run",
        "part-00000002.parquet": "has other rows than the manifest",
        "part-00000003.parquet": "is of another shard or attempt",
        "part-00000004.a1.parquet": "is of an attempt that this run never made",
    }
    assert missing(run) == [(0, 0), (1, 0), (2, 0), (3, 0), (5, 0)]


def test_files_with_other_names_are_told_apart(tmp_path):
    run = finished(tmp_path / "run")
    names = [
        "notes.txt",
        "00000/part-00000003.parquet",
        "00001/part-00000001.parquet",
        "00000/part-00000000.a0.parquet",
    ]
    for name in names:
        target = tmp_path / "run" / "parts" / name
        target.parent.mkdir(exist_ok=True)
        target.touch()
    attempts, foreign = shards.list_parts(run)
    assert foreign == sorted(f"parts/{name}" for name in names)
    assert attempts[:3] == [(0,)] * 3
    assert not any(attempts[3:])


def try_again(run, number, attempt, cured):
    """What a worker does in a further attempt; `cured` of the failed rows can be scored now."""
    rows = shards.read_part(run, number, range(attempt)).table.to_pylist()
    for row in rows:
        if row["status"] == run.retries[attempt - 1] and cured:
            row.update(status="ok", message=None, score=0.25, reconstruction_error=0.25, darkness=1.0, line_filter=1.0)
            row.update(dict.fromkeys(LOOKS, 0.0))
            cured -= 1
    table = pa.Table.from_pylist(rows, PART)
    shards.write_part(run.location, run.identity, Work(number, attempt), table)


def test_a_retry_asks_for_the_shards_that_hold_its_status_and_no_others(tmp_path):
    run = create(tmp_path / "run")
    for number, failed in enumerate((0, 0.1, 0.1)):
        shards.write_part(run.location, run.identity, Work(number, 0), part(run, number, failed))
    before = finalize.finalize(run)["counts"]["status"]["undecodable"]
    run = directory.add_retry(run, Status.UNDECODABLE)
    assert not run.finished
    assert directory.open_run(run.location).retries == (Status.UNDECODABLE,)
    assert missing(run) == [(1, 1), (2, 1)]
    try_again(run, 1, 1, cured=2)
    assert missing(run) == [(2, 1)]
    with pytest.raises(Exception, match="shard 2 is not scored"):
        finalize.finalize(run)
    try_again(run, 2, 1, cured=0)
    assert missing(run) == []
    assert finalize.finalize(run)["counts"]["status"]["undecodable"] == before - 2
    assert run.finished


def test_a_late_writer_of_an_earlier_attempt_changes_no_result(tmp_path):
    run = create(tmp_path / "run")
    score(run, range(3))
    run = directory.add_retry(run, Status.UNDECODABLE)
    for number, _ in missing(run):
        try_again(run, number, 1, cured=1)
    finalize.finalize(run)
    before = everything(tmp_path / "run")
    late = part(run, 1, failed=0.5)
    shards.write_part(run.location, run.identity, Work(1, 0), late)
    finalize.finalize(run)
    after = everything(tmp_path / "run")
    name = shards.part_name(1)
    assert before.pop(name) != after.pop(name)
    assert before == after


def test_a_second_retry_of_the_same_status_is_an_attempt_of_its_own(tmp_path):
    run = create(tmp_path / "run")
    score(run, range(3))
    run = directory.add_retry(run, Status.UNDECODABLE)
    for number, _ in missing(run):
        try_again(run, number, 1, cured=1)
    run = directory.add_retry(run, Status.UNDECODABLE)
    assert missing(run) == [(0, 2), (1, 2), (2, 2)]
    for number, _ in missing(run):
        try_again(run, number, 2, cured=1000)
    assert finalize.finalize(run)["counts"]["status"] == {"ok": 700}


def test_where_a_later_attempt_is_damaged_it_is_made_again_from_the_earlier_one(tmp_path):
    run = create(tmp_path / "run")
    score(run, range(3))
    run = directory.add_retry(run, Status.UNDECODABLE)
    for number, _ in missing(run):
        try_again(run, number, 1, cured=1)
    finalize.finalize(run)
    before = everything(tmp_path / "run")
    with open(path_of(run, 1, 1), "r+b") as stream:
        stream.truncate(99)
    assert missing(run) == [(1, 1)]
    try_again(run, 1, 1, cured=1)
    finalize.finalize(run)
    assert everything(tmp_path / "run") == before
