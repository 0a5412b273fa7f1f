import shutil

import numpy as np
import pytest

from crackvae import cli
from crackvae.cluster import planning, session
from crackvae.dataset import manifest
from crackvae.errors import InputError

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def estimate(model, survey, tmp_path_factory):
    """Of the survey and a file that is no image."""
    folder = tmp_path_factory.mktemp("plan") / "images"
    shutil.copytree(survey, folder)
    (folder / "normal" / "broken.jpg").write_bytes(b"no image")
    return planning.estimate(str(model), [str(folder)], device="cpu")


def test_a_plan_counts_what_the_run_will_hold(estimate):
    assert (estimate.files, estimate.shards) == (161, 1)
    assert estimate.sample.statuses == {"ok": 160, "undecodable": 1}
    assert set(estimate.sample.megapixels) == {0.096**2}
    assert estimate.bytes > 161 * 100


def test_time_is_that_of_the_sample_for_all_files_over_the_workers(estimate):
    expected, low, high = estimate.hours()
    assert low <= expected <= high
    assert expected == pytest.approx(161 * np.mean(estimate.sample.seconds) / estimate.workers / 3600)
    assert f"on {estimate.workers} CPU workers" in estimate.lines()[2]


def test_unequal_photographs_make_the_estimate_uncertain():
    sample = planning.Sample({"ok": 4}, [20.0] * 4, [1.0, 2.0, 3.0, 4.0], 100.0)
    expected, low, high = planning.Estimate(3600, 0, 1, sample, 1, "cpu").hours()
    assert (expected, high - expected) == (2.5, pytest.approx(3.182 * np.std([1, 2, 3, 4], ddof=1) / 2, rel=1e-3))
    assert low == pytest.approx(expected - (high - expected))


def test_the_command_prints_the_plan_and_writes_nothing(model, survey, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["plan", str(model), str(survey)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("files       160 ")
    assert printed[-1].startswith("nothing was scored; for that: crackvae score ")
    assert not list(tmp_path.iterdir())


def test_a_source_that_is_missing_is_an_error(model):
    with pytest.raises(InputError, match="no such file"):
        planning.estimate(str(model), ["/no/such/folder"])


def test_files_that_are_named_twice_are_planned_once(survey):
    """Of the second source, a block without rows is left."""
    with manifest.listing([str(survey)] * 2) as (blocks, found):
        chosen, shards = planning._sampled(blocks, found.images, 5)
    assert (found.images, len(chosen), shards) == (160, 5, 1)


@pytest.mark.parametrize(
    ("tiling", "memory", "workers"), [("resize", 80e9, 2), ("native", 80e9, 8), ("native", 2e9, 4), ("native", 1e8, 2)]
)
def test_the_workers_of_a_machine_with_gpus_are_those_that_share_them(monkeypatch, tiling, memory, workers):
    monkeypatch.setattr(session, "gpus", lambda: 2)
    monkeypatch.setattr(session, "_gpu_bytes", lambda: int(memory))
    monkeypatch.setattr(session, "cpus", lambda: 16)
    monkeypatch.setattr(session, "_MOST_SHARERS", 4)
    assert planning._workers("cuda", tiling) == workers
    assert planning._workers("cpu", tiling) == 16
