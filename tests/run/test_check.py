"""What `crackvae check` finds, from files alone."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from runs import create, finished, score

from crackvae import storage
from crackvae.errors import InputError
from crackvae.run import check, directory, finalize, shards
from crackvae.schema import RESULTS, Status


@pytest.fixture
def run(tmp_path):
    return finished(tmp_path / "run", labelled=False)


def problems(run):
    report = check.check(run.location)
    assert report.finished
    return report.problems


def flip(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 4
    path.write_bytes(data)


def test_a_finished_run_is_whole(run):
    report = check.check(run.location)
    assert (report.done, report.rows, report.finished, report.problems) == (3, 700, True, [])


def test_an_unfinished_run_says_how_far_it_is(tmp_path):
    run = create(tmp_path / "run")
    score(run, [0, 2])
    report = check.check(run.location)
    assert (report.done, report.rows, report.finished, report.problems) == (2, 444, False, [])


def test_a_run_whose_retry_is_under_way_is_unfinished(run):
    directory.add_retry(run, Status.UNDECODABLE)
    report = check.check(run.location)
    assert (report.done, report.finished, report.problems) == (0, False, [])


@pytest.mark.parametrize(
    "name",
    [
        "parts/00000/part-00000001.parquet",
        "results/results-00000.parquet",
        "results.csv",
        "metrics.json",
    ],
)
@pytest.mark.parametrize("where", [0.01, 0.5, 0.99])
def test_a_flipped_bit_is_found(run, tmp_path, name, where):
    path = tmp_path / "run" / name
    flip(path, int(path.stat().st_size * where))
    assert any(problem.startswith(name) and "altered" in problem for problem in problems(run))


@pytest.mark.parametrize("name", ["run.json", "manifest.parquet", "calibration.parquet"])
def test_a_flipped_bit_in_what_the_run_rests_on_is_an_error(run, tmp_path, name):
    path = tmp_path / "run" / name
    flip(path, path.stat().st_size // 2)
    with pytest.raises(InputError, match=r"altered|damaged"):
        check.check(run.location)


@pytest.mark.parametrize(
    "name",
    ["parts/00000/part-00000001.parquet", "results/results-00000.parquet", "results.csv", "metrics.json"],
)
def test_a_missing_file_is_found(run, tmp_path, name):
    (tmp_path / "run" / name).unlink()
    assert f"{name}: is missing" in problems(run)


def test_a_file_that_does_not_belong_there_is_found(run, tmp_path):
    for name in ("parts/00000/part-00000003.parquet", "results/results-00001.parquet"):
        (tmp_path / "run" / name).write_bytes(b"")
    found = problems(run)
    assert "parts/00000/part-00000003.parquet: does not belong there" in found
    assert "results/results-00001.parquet: does not belong there" in found


def bless(run, tmp_path):
    """Somebody who edits a result and knows where its SHA-256 is kept."""
    path = tmp_path / "run" / "_SUCCESS"
    success = json.loads(path.read_text())
    for name in success["files"]:
        success["files"][name] = storage.sha256(str(tmp_path / "run" / name))
    path.write_text(json.dumps(success))


def test_an_edited_csv_is_found_by_its_line_even_if_its_hash_was_edited_too(run, tmp_path):
    path = tmp_path / "run" / "results.csv"
    lines = path.read_text().splitlines(keepends=True)
    at = next(i for i, line in enumerate(lines) if ',"crack",9' in line)
    lines[at] = lines[at].replace(',"crack",9', ',"normal",9')
    path.write_text("".join(lines))
    assert problems(run)[0] == "results.csv: was altered: its SHA-256 is another"
    bless(run, tmp_path)
    assert problems(run) == [f"results.csv: line {at + 1} is not what the shards say"]
    path.write_text("".join(lines) + "one,more\n")
    bless(run, tmp_path)
    assert any("results.csv" in problem for problem in problems(run))


def test_an_edited_result_is_found_by_its_row_even_if_its_hash_was_edited_too(run, tmp_path):
    path = tmp_path / "run" / "results" / "results-00000.parquet"
    table = pq.read_table(path).to_pandas()
    table.loc[300, "p_value"] = 0.5
    pq.write_table(pa.Table.from_pandas(table, schema=RESULTS, preserve_index=False), path)
    bless(run, tmp_path)
    assert problems(run) == ["results/: row 301 (300.jpg) is not what the shards say"]


def test_metrics_whose_counts_were_edited_are_found(run, tmp_path):
    path = tmp_path / "run" / "metrics.json"
    metrics = json.loads(path.read_text())
    metrics["counts"]["predicted"]["crack"] -= 1
    path.write_text(json.dumps(metrics))
    bless(run, tmp_path)
    assert problems(run) == ["metrics.json: its counts are not those of the shards"]


def test_results_of_another_run_are_found(run, tmp_path):
    other = create(tmp_path / "other", files=600)
    score(other, range(3))
    finalize.finalize(other)
    for name in ("_SUCCESS", "results.csv", "metrics.json", "results/results-00000.parquet"):
        (tmp_path / "run" / name).write_bytes((tmp_path / "other" / name).read_bytes())
    assert "_SUCCESS: is of another run" in problems(run)


def test_a_superseded_file_that_is_damaged_is_named_though_nothing_rests_on_it(run, tmp_path):
    run = directory.add_retry(run, Status.UNDECODABLE)
    for work in shards.missing(run)[0]:
        table = shards.read_part(run, work.shard, [0]).table
        shards.write_part(run.location, run.identity, work, table)
    finalize.finalize(run)
    assert problems(run) == []
    flip(tmp_path / "run" / shards.part_name(0), 99)
    assert problems(run) == ["parts/00000/part-00000000.parquet: was altered: its SHA-256 is another"]


def test_a_newer_run_is_refused(tmp_path):
    run = finished(tmp_path / "run", labelled=False)
    path = tmp_path / "run" / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema_version": 99}))
    with pytest.raises(InputError, match="newer crackvae; update"):
        check.check(run.location)
