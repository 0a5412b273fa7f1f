import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import runs
from hypothesis import given
from hypothesis import strategies as st

from crackvae.errors import InputError
from crackvae.report import excerpt, findings, galleries, page, photographs
from crackvae.run import finalize


def results(seed, rows):
    """As a page reads them, with many ties."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({"image_id": [f"{n}.jpg" for n in range(rows)], "score": rng.integers(0, 9, rows) / 9.0})
    frame["p_value"] = 1 - frame["score"]
    frame["prediction"] = np.where(frame["score"] > 0.5, "crack", "normal")
    frame["label"] = rng.choice(np.array(["normal", "crack", None], object), rows) if seed % 2 else None
    frame["review"] = rng.choice(["", "list", "audit"], rows, p=[0.85, 0.1, 0.05])
    undecided, failed = rng.random((2, rows)) < 0.1
    frame.loc[undecided, "prediction"] = None
    frame.loc[failed, ["score", "p_value"]] = np.nan
    frame.loc[failed, "prediction"] = None
    return frame


def of_page(rows, labelled):
    made = findings.galleries(rows, 0.5, labelled=labelled)
    return [findings.listed(rows).index.tolist(), *((some.title, some.note, some.rows.index.tolist()) for some in made)]


def of_galleries(rows, labelled):
    members = galleries._members(rows[rows["score"].notna()])
    return {name: some.index[: galleries._MOST].tolist() for name, some in members.items()}


def of_photographs(rows, labelled):
    return photographs.highest(rows[rows["score"].notna()]).tolist()


@pytest.mark.parametrize(
    ("shown", "choose"),
    [
        (of_page, lambda rows: findings.candidates(rows, 0.5)),
        (of_galleries, lambda rows: galleries.candidates(rows[rows["score"].notna()])),
        (of_photographs, lambda rows: photographs.highest(rows[rows["score"].notna()])),
    ],
)
@given(seed=st.integers(0, 10_000), rows=st.integers(1, 200), size=st.integers(1, 100))
def test_what_is_shown_does_not_depend_on_the_blocks(shown, choose, seed, rows, size):
    whole = results(seed, rows)
    labelled = bool(whole["label"].notna().any())
    blocks = (whole[start : start + size].reset_index(drop=True) for start in range(0, rows, size))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(findings, "MOST_ROWS", 25)
        patch.setattr(findings, "MOST_FAILED", 5)
        patch.setattr(galleries, "_MOST", 3)
        found = excerpt.take(blocks, choose)
        assert shown(found.chosen, labelled) == shown(whole, labelled)
    pd.testing.assert_frame_equal(found.sample, whole, check_index_type=False, check_dtype=False)
    assert found.one_in == 1
    assert found.all().index.tolist() == list(range(rows))


def test_a_sample_is_bounded_at_random_and_the_same_for_any_blocks(monkeypatch):
    monkeypatch.setattr(excerpt, "MOST_SAMPLED", 1000)
    whole = pd.DataFrame({"score": np.arange(20_000.0)})
    found, other = (
        excerpt.take(
            (whole[start : start + size] for start in range(0, len(whole), size)), lambda rows: rows.index[-2:]
        )
        for size in (20_000, 777)
    )
    assert found.chosen["score"].tolist() == [19_998.0, 19_999.0]
    assert found.sample["score"].tolist() == found.sample.index.tolist() == other.sample["score"].tolist()
    assert found.one_in == other.one_in
    assert 400 < len(found.sample) <= 1000
    assert len(found.sample) * found.one_in == pytest.approx(20_000, rel=0.2)
    assert found.sample["score"].mean() == pytest.approx(10_000, rel=0.1)
    assert len(found.all()) <= len(found.sample) + 2


def test_a_page_of_many_rows_says_that_its_figures_are_of_a_sample_and_counts_all(tmp_path, monkeypatch):
    run = runs.finished(tmp_path / "run").location
    whole = Path(page.write(run)).read_text()
    monkeypatch.setattr(excerpt, "MOST_SAMPLED", 200)
    monkeypatch.setattr(findings, "MOST_ROWS", 30)
    text = Path(page.write(run)).read_text()
    said = re.search(r"drawn from ([0-9]+) of the files, taken at random", text)
    assert 50 < int(said[1]) <= 200
    assert "taken at random" not in whole
    rows, of_whole = (json.loads(re.search(r'id="rows">(.*?)</script>', each, re.S)[1]) for each in (text, whole))
    assert rows == of_whole[:30]
    scores = finalize.read_results(run, ["score", "prediction"]).to_pandas()
    failed, flagged = int(scores["score"].isna().sum()), int((scores["prediction"] == "crack").sum())
    assert failed < 30 < failed + flagged
    assert f"{flagged - (30 - failed):,} of {flagged:,} flagged" in text


def test_results_that_are_gone_are_named(tmp_path):
    run = runs.finished(tmp_path / "run", files=20).location
    shutil.rmtree(f"{run}/results")
    with pytest.raises(InputError, match=r"run/results: is gone; remove _SUCCESS from the run"):
        page.write(run)
