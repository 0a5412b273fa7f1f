"""cluster.yaml and deploy/hosts.yaml by Ray's own validation, and by a check of what Ray passes through unseen."""

import copy
import runpy
import sys
from importlib import metadata
from pathlib import Path

import botocore.session
import pytest
import yaml
from botocore.validate import ParamValidator
from ray.autoscaler._private.aws import config as aws
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[1]
FILES = ("cluster.yaml", "deploy/hosts.yaml")


def load(name):
    return yaml.safe_load((ROOT / name).read_text())


@pytest.fixture
def cluster():
    return load("cluster.yaml")


@pytest.fixture(scope="module")
def ec2():
    return botocore.session.Session().get_service_model("ec2")


@pytest.mark.parametrize(("name", "head"), list(zip(FILES, ("head", "local.cluster.node"), strict=True)))
def test_ray_accepts_it(name, head):
    prepared = prepare_config(load(name))
    validate_config(prepared)
    assert prepared["head_node_type"] == head


def test_it_has_a_head_cpu_workers_and_gpu_workers_from_none(cluster):
    types = cluster["available_node_types"]
    assert types.keys() == {"head", "cpu_worker", "gpu_worker"}
    assert types["gpu_worker"]["max_workers"] == 0  # where there are some, a job on CPUs grows onto them
    assert sum(t.get("max_workers", 0) for t in types.values()) <= cluster["max_workers"]
    assert cluster["idle_timeout_minutes"] == 10
    for name in ("cpu_worker", "gpu_worker"):
        assert types[name]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}


def ec2_says(ec2, node):
    """What AWS would refuse in a node_config: unknown names, wrong types, values that no enumeration has."""
    asked = {name: value for name, value in node.items() if name != "SubnetIds"} | {"MinCount": 1, "MaxCount": 1}
    shape = ec2.operation_model("RunInstances").input_shape
    report = ParamValidator().validate(asked, shape)
    return ([report.generate_report()] if report.has_errors() else []) + list(not_enumerated(asked, shape))


def not_enumerated(value, shape, path=""):
    if shape.type_name == "structure":
        for name, inner in value.items():
            if name in shape.members:
                yield from not_enumerated(inner, shape.members[name], f"{path}.{name}")
    elif shape.type_name == "list":
        for item in value:
            yield from not_enumerated(item, shape.member, path)
    elif getattr(shape, "enum", []) and value not in shape.enum:
        yield f"{path}: {value!r}"


def test_fields_that_ray_does_not_check_are_as_ec2_wants_them(cluster, ec2):
    for node in cluster["available_node_types"].values():
        assert ec2_says(ec2, node["node_config"]) == []
    assert cluster["provider"].keys() == {"type", "region"}
    assert cluster["provider"]["region"] in botocore.session.Session().get_available_regions("ec2")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("InstanceTyp",), "c7i.4xlarge"),
        (("InstanceType",), "c7i.5xlarge"),
        (("InstanceMarketOptions", "MarketType"), "spott"),
        (("BlockDeviceMappings", 0, "Ebs", "VolumeSize"), "140"),
        (("MetadataOptions", "HttpToken"), "required"),
    ],
)
def test_a_slip_of_the_pen_in_them_is_found(cluster, ec2, path, value):
    node = copy.deepcopy(cluster["available_node_types"]["gpu_worker"]["node_config"])
    place = node
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    assert ec2_says(ec2, node)


def test_no_security_group_is_made_by_ray_whose_own_is_open_to_ssh_from_everywhere(cluster):
    before = copy.deepcopy(cluster)
    assert aws._configure_security_group(cluster) == before  # it asks AWS for nothing
    assert aws._create_default_ssh_inbound_rules()[0]["IpRanges"] == [{"CidrIp": "0.0.0.0/0"}]


def test_hosts_are_named_as_ray_looks_for_them():
    assert load("deploy/hosts.yaml")["provider"].keys() == {"type", "head_ip", "worker_ips"}


@pytest.mark.parametrize("name", FILES)
def test_nodes_have_the_token_the_code_and_the_ray_and_python_of_the_constraints(name):
    cluster = load(name)
    assert "--env=RAY_AUTH_MODE=token" in cluster["docker"]["run_options"]
    assert cluster["file_mounts"] == {"/home/ray/crackvae": ".", "/home/ray/.ray/auth_token": "~/.ray/auth_token"}
    version = f"{metadata.version('ray')}-py{sys.version_info.major}{sys.version_info.minor}"
    images = [cluster["docker"]["image"]]
    images += [t["docker"]["worker_image"] for t in cluster.get("available_node_types", {}).values() if "docker" in t]
    assert [image.removesuffix("-gpu") for image in images] == [f"rayproject/ray:{version}"] * len(images)
    for commands in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert "--metrics-export-port=8080" in cluster[commands][-1]


@pytest.mark.parametrize("job", ["train", "calibrate", "evaluate", "score", "nightly"])
def test_a_job_is_the_command_of_its_name(job, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"jobs/{job}.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "jobs" / f"{job}.py"), run_name="__main__")
    assert ended.value.code == 0
    assert f"usage: crackvae {job}" in capsys.readouterr().out
