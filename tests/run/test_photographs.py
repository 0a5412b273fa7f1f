"""Runs of photographs: regions and tiles lie nested in the shards and become tables."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from runs import create, part

from crackvae.run import check, finalize, shards
from crackvae.run.shards import Work
from crackvae.schema import PART


def native_part(run, number):
    """A shard of photographs: regions and tiles nested in their rows."""
    table = part(run, number)
    rows = table.to_pylist()
    for index, row in enumerate(rows):
        if row["status"] == "ok":
            row |= {"tiles": 40, "worst_tile_score": 2 * row["score"], "judged_fraction": 0.9}
            row["regions"] = [{"x": k, "y": index, "width": 9, "height": 9, "outline": [0, 0, 9, 9], "area": 50}
                              for k in range(index % 3)]  # fmt: skip
            row["tile_errors"] = [{"x": 96 * k, "y": 0, "reconstruction_error": 0.1, "judged": True} for k in range(4)]
    return pa.Table.from_pylist(rows, PART)


@pytest.fixture
def photographs(tmp_path):
    run = create(tmp_path / "run", labelled=False, facts={"tables": ["results", "regions", "tiles"]})
    for number in range(run.plan.shards):
        shards.write_part(run.location, run.identity, Work(number, 0), native_part(run, number))
    finalize.finalize(run)
    return run


def test_regions_and_tiles_of_photographs_become_tables(photographs):
    results = finalize.read_results(photographs.location)
    regions = finalize.read_table(photographs.location, "regions")
    tiles = finalize.read_table(photographs.location, "tiles")
    expected = [
        (row["image_id"], region["x"], region["y"])
        for number in range(photographs.plan.shards)
        for row in native_part(photographs, number).to_pylist()
        for region in row["regions"] or []
    ]
    found = list(zip(*(regions[name].to_pylist() for name in ("image_id", "x", "y")), strict=True))
    assert found == expected
    assert regions["outline"][0].as_py() == [0, 0, 9, 9]
    ok = pc.equal(results["status"], "ok")
    assert tiles.num_rows == 4 * pc.sum(ok).as_py()
    assert results.filter(ok)["p_value_is_bound"].null_count == 0


def test_a_table_of_regions_that_was_edited_or_lost_is_found(photographs):
    assert check.check(photographs.location).problems == []
    path = Path(photographs.location, "regions", "regions-00000.parquet")
    kept = path.read_bytes()
    table = finalize.read_table(photographs.location, "regions")
    pq.write_table(table.slice(1), path)
    assert any("regions" in problem for problem in check.check(photographs.location).problems)
    path.unlink()
    assert any("regions-00000.parquet: is missing" in problem for problem in check.check(photographs.location).problems)
    path.write_bytes(kept)
    assert check.check(photographs.location).problems == []
