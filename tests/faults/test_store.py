"""An object store that fails and stalls costs time, and nothing else."""

import shutil
import time

import pytest
from faults import flaky_store

pytestmark = [pytest.mark.ray, pytest.mark.faults, pytest.mark.timeout(1800)]


@pytest.mark.parametrize("seed", [1, 2])
def test_a_store_that_fails_and_stalls_loses_nothing(seed, site, tmp_path, tally):
    counts = tally("object store fails or stalls", "10.5% of the requests", bound=None)
    some = tmp_path / "some"
    for path in sorted(site.survey.rglob("*.jpg"))[::4]:
        (some / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, some / path.parent.name)
    began = time.monotonic()
    found = flaky_store.trial(site.model, some, tmp_path / "runs", share=0.1, stall_share=0.005, seed=seed)
    counts.seconds = time.monotonic() - began
    counts.faults, counts.runs = found["failed"] + found["stalled"], 1
    counts.difference = found["difference"]
    assert found["exit_code"] == 0, found["said"]
    counts.check()
