"""deploy/kuberay/ against KubeRay's and Kubernetes' schemas; the night's script with a kubectl beside it."""

import copy
import os
import shlex
import subprocess
from importlib import metadata
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from crackvae import cli

ROOT = Path(__file__).parents[2]
KUBERAY = ROOT / "deploy" / "kuberay"
SCHEMA = yaml.safe_load(Path(__file__).with_name("rayjob.schema.yaml").read_text())
KUBERNETES = "1.33"

KUBECTL = """\
#!/bin/sh
case $1 in
  create) cat > "$HERE/created.yaml"; echo rayjob.ray.io/crackvae-x7 ;;
  get) [ "$2" = rayjob.ray.io/crackvae-x7 ] || exit 9
    n=$(cat "$HERE/asked" 2>/dev/null || echo 0); n=$((n + 1)); echo $n > "$HERE/asked"
    [ $n = 2 ] && exit 1  # the API server is away for a moment
    [ $n -lt 4 ] && echo "Running RUNNING " || echo "$END" ;;
esac
"""


@pytest.fixture
def job():
    return yaml.safe_load((KUBERAY / "rayjob.yaml").read_text())


@pytest.fixture
def night():
    return {item["kind"]: item for item in yaml.safe_load_all((KUBERAY / "nightly.yaml").read_text())}


def groups(job):
    cluster = job["spec"]["rayClusterSpec"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def validate(job):
    """As the API server: the CRD's schema, and each pod template."""
    jsonschema.Draft202012Validator(SCHEMA).validate(job)
    for group in groups(job):
        pod = {"apiVersion": "v1", "kind": "Pod", **group["template"]}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def test_the_api_server_takes_the_job(job):
    validate(job)


@pytest.mark.parametrize(
    "path",
    [
        ("spec", "entryPoint"),
        ("spec", "rayClusterSpec", "authOptions", "tokens"),
        ("spec", "rayClusterSpec", "workerGroupSpecs", 1, "minReplica"),
        ("spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "container"),
        ("spec", "rayClusterSpec", "workerGroupSpecs", 0, "template", "spec", "containers", 0, "resources", "request"),
    ],
)
def test_a_slip_of_the_pen_is_found(job, path):
    wrong = copy.deepcopy(job)
    place = wrong
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = {}
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        validate(wrong)


@pytest.mark.parametrize("kind", ["ServiceAccount", "Role", "RoleBinding", "CronJob"])
def test_the_api_server_takes_the_night(night, kind):
    kubernetes_validate.validate(night[kind], KUBERNETES, strict=True)


def test_pods_ask_for_what_they_need_and_may_do_nothing_else(job, night):
    templates = [group["template"]["spec"] for group in groups(job)]
    templates.append(night["CronJob"]["spec"]["jobTemplate"]["spec"]["template"]["spec"])
    for pod in templates:
        assert pod["securityContext"]["runAsNonRoot"] is True
        for container in pod["containers"]:
            assert container["resources"]["requests"].keys() >= {"cpu", "memory"}
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_every_ray_pod_has_the_secrets_and_none_is_written_down(job):
    for group in groups(job):
        (container,) = group["template"]["spec"]["containers"]
        assert container["envFrom"] == [{"secretRef": {"name": "crackvae-store"}}]
        assert "env" not in container


def test_gpus_are_there_only_when_asked_for_and_idle_workers_go(job):
    cluster = job["spec"]["rayClusterSpec"]
    by_name = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    assert by_name["gpu"]["minReplicas"] == by_name["gpu"]["replicas"] == 0
    (container,) = by_name["gpu"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert cluster["enableInTreeAutoscaling"]
    assert cluster["autoscalerOptions"]["idleTimeoutSeconds"] > 0
    assert cluster["authOptions"] == {"mode": "token"}


def test_versions_are_those_of_the_package(job):
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == metadata.version("ray")
    images = {group["template"]["spec"]["containers"][0]["image"] for group in groups(job)}
    version = f"crackvae:{metadata.version('crackvae')}"
    assert images == {version, f"{version}-gpu"}


def test_what_runs_are_commands_that_crackvae_knows(job, night):
    (container,) = night["CronJob"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    for entrypoint in (job["spec"]["entrypoint"], container["env"][0]["value"]):
        program, *arguments = shlex.split(entrypoint)
        assert program == "crackvae"
        assert cli._parser().parse_args(arguments).out.startswith("s3://")


def test_a_night_that_fails_is_not_tried_again_behind_its_exit_code(job, night):
    assert job["spec"]["backoffLimit"] == night["CronJob"]["spec"]["jobTemplate"]["spec"]["backoffLimit"] == 0
    assert night["CronJob"]["spec"]["concurrencyPolicy"] == "Forbid"
    seconds = night["CronJob"]["spec"]["jobTemplate"]["spec"]["activeDeadlineSeconds"]
    assert job["spec"]["activeDeadlineSeconds"] < seconds < 24 * 3600


@pytest.mark.parametrize(
    ("end", "code"),
    [("Complete SUCCEEDED ", 0), ("Failed FAILED Job failed: exit code 5", 1), ("Complete STOPPED ", 1)],
)
def test_the_night_makes_a_job_waits_for_it_and_ends_as_it_did(night, tmp_path, end, code):
    (container,) = night["CronJob"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(KUBECTL)
    kubectl.chmod(0o755)
    (script,) = container["args"]
    script = script.replace("/rayjob/", f"{KUBERAY}/")
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run(
        [*container["command"], script],
        env=environment | {"PATH": path, "HERE": str(tmp_path), "END": end, "POLL_SECONDS": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert done.stderr == ("" if code == 0 else f"{end}\n")
    assert (tmp_path / "asked").read_text() == "4\n"
    created = yaml.safe_load((tmp_path / "created.yaml").read_text())
    validate(created)
    assert created["spec"]["entrypoint"] == environment["ENTRYPOINT"]
