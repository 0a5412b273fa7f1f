"""cluster.yaml under Ray's own validation, and under a check of what Ray passes through unseen."""

import runpy
import sys
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def cluster():
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def test_ray_accepts_it(cluster):
    prepared = prepare_config(cluster)
    validate_config(prepared)
    assert prepared["head_node_type"] == "head"


def test_it_has_a_head_cpu_workers_and_gpu_workers_from_none(cluster):
    types = cluster["available_node_types"]
    assert types.keys() == {"head", "cpu_worker", "gpu_worker"}
    assert types["gpu_worker"]["min_workers"] == 0
    assert sum(t.get("max_workers", 0) for t in types.values()) <= cluster["max_workers"]


def test_fields_that_ray_does_not_check_are_spelled_as_aws_wants_them(cluster):
    known = {"InstanceType", "InstanceMarketOptions", "BlockDeviceMappings"}
    for node in cluster["available_node_types"].values():
        assert node["node_config"].keys() <= known
    assert cluster["provider"].keys() == {"type", "region"}


def test_its_images_hold_the_ray_and_python_of_the_constraints(cluster):
    images = [cluster["docker"]["image"]]
    images.append(cluster["available_node_types"]["gpu_worker"]["docker"]["worker_image"])
    version = f"{metadata.version('ray')}-py{sys.version_info.major}{sys.version_info.minor}"
    assert all(image.startswith(f"rayproject/ray:{version}") for image in images)


@pytest.mark.parametrize("job", ["train", "calibrate", "evaluate", "score", "nightly"])
def test_a_job_is_the_command_of_its_name(job, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"jobs/{job}.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "jobs" / f"{job}.py"), run_name="__main__")
    assert ended.value.code == 0
    assert f"usage: crackvae {job}" in capsys.readouterr().out
