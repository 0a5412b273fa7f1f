"""Fixtures that several rooms share: a survey, a tiny model, one Ray for all Ray tests."""

import os
import shutil
import signal
from pathlib import Path

import filelock
import hypothesis
import pytest
from tiny import TINY

import crackvae.cluster  # noqa: F401  says where Ray listens, before a test imports it
from crackvae.dataset import manifest, splitting
from crackvae.images import synthetic

# A shell's background job ignores SIGINT, and so would every process that a test interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Two test processes with a thread for each core would wait for each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# By default, Ray hands on its metrics every 10 seconds: nobody waits that long for a test.
os.environ.setdefault("RAY_metrics_report_interval_ms", "1000")
# Ray Train asks its workers every 2 seconds how far they are, and a report waits for that.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")

# A quarter of the usual examples: with 100 the pure rooms take 16 s, with 25 11 s, imports included.
hypothesis.settings.register_profile("quick", max_examples=25, deadline=None)
hypothesis.settings.load_profile("quick")


def pytest_collection_modifyitems(items):
    """Files that wait for Ray first: where two run at a time, the quick ones at the end keep both at work."""
    waiting = {item.path for item in items if item.get_closest_marker("ray")}
    items.sort(key=lambda item: item.path not in waiting)


@pytest.fixture(scope="session")
def survey(tmp_path_factory):
    """120 normals and 40 cracks in folders that name them."""
    folder = tmp_path_factory.mktemp("survey") / "images"
    synthetic.write_survey(folder, normals=120, cracks=40, size=96)
    return folder


@pytest.fixture(scope="session")
def split_manifest(survey, tmp_path_factory):
    """The survey's manifest with splits: a path."""
    path = tmp_path_factory.mktemp("split") / "split.parquet"
    table, _ = manifest.build([str(survey)])
    manifest.write(splitting.split(table).table, str(path))
    return path


@pytest.fixture(scope="session")
def ray_session():
    """One local Ray for the whole test run."""
    from crackvae.cluster.session import session

    with session():
        yield


@pytest.fixture(scope="session")
def model(split_manifest, tmp_path_factory, ray_session):
    """A tiny model, trained and calibrated by the real job: a path."""
    from crackvae.cluster import training

    path = tmp_path_factory.mktemp("model") / "model"
    if "PYTEST_XDIST_WORKER" not in os.environ:
        training.train(str(split_manifest), str(path), TINY)
        return path
    shared = tmp_path_factory.getbasetemp().parent / "model"  # of all test processes: the first one trains
    with filelock.FileLock(f"{shared}.lock"):
        if not shared.exists():
            training.train(str(split_manifest), str(path), TINY)
            shutil.copytree(path, shared)
            return path
    return shutil.copytree(shared, path)


@pytest.fixture(scope="session")
def real_data():
    """The folder of real photographs; tests that need it are skipped without."""
    folder = os.environ.get("CRACKVAE_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("CRACKVAE_DATA names no folder of real photographs")
    return Path(folder)
