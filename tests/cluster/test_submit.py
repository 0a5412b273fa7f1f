"""Jobs sent to a real cluster on loopback: a head and a node, token authentication, no crackvae of its own."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import loopback
import pytest
from faults import harness

from crackvae.cluster import submit as submission
from crackvae.images import synthetic
from crackvae.run import check, finalize

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """A folder that the node has not, only the head: a local disk."""
    return tmp_path_factory.mktemp("local")


@pytest.fixture(scope="module")
def cluster(local):
    root = subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode == 0
    with loopback.Cluster(nodes=1, elsewhere=local if root else None) as cluster:
        cluster.has_local_disk = root
        yield cluster


def submit(cluster, *arguments, **environment):
    command = [sys.executable, "-m", "crackvae", "submit", *map(str, arguments), "--address", cluster.address]
    ours = (
        os.environ | loopback.CLIENT | {"RAY_ADDRESS": "127.0.0.1:1"} | environment
    )  # --address goes before RAY_ADDRESS
    return subprocess.Popen(command, env=ours, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(job):
    out, said = job.communicate()
    assert "Traceback" not in out + said
    return job.returncode, out, said


def test_on_one_machine_nothing_listens_beyond_loopback(ray_session):
    listening = loopback.listening(harness.processes(os.getsid(0)))
    assert listening
    assert [address for address in listening if not address.startswith(loopback.PREFIXES)] == []


@pytest.mark.parametrize("option", [["--config", "{}"], ["--config={}"], ["--conf={}"]])
def test_a_file_travels_however_its_option_is_written(option, tmp_path, monkeypatch):
    config, sent = tmp_path / "my config.toml", {}
    config.write_text("")
    (tmp_path / "sent").mkdir()
    client = SimpleNamespace(submit_job=lambda **job: sent.update(job))
    monkeypatch.setattr(submission, "JobSubmissionClient", lambda address: client)
    words = ["train", "s3://b/split.parquet", *(word.format(config) for word in option)]
    submission._send("http://cluster", words, {"config": str(config)}, tmp_path / "sent", True)
    assert str(tmp_path) not in sent["entrypoint"]
    assert (tmp_path / "sent" / config.name).is_file()


def test_a_survey_is_scored_on_the_cluster_and_the_log_and_exit_code_come_back(cluster, model, survey, tmp_path):
    run, structures = tmp_path / "run", tmp_path / "parts of it.csv"  # a file that is only here travels with the job
    structures.write_text("pattern,structure,element\n**,pier,1\n")
    code, out, said = ended(submit(cluster, "score", model, survey, "--out", run, f"--structures={structures}"))
    assert code == 0, out + said
    assert "2 nodes see" in out
    assert "scoring: 160 of 160 images" in out
    assert out.splitlines()[-1] == f"results: {run}"
    assert (run / "structures.csv").exists()
    assert len(said.splitlines()) == 1
    assert "`ray job status|logs|stop raysubmit_" in said
    assert check.check(str(run)).problems == []
    assert finalize.read_results(str(run)).num_rows == 160


@pytest.mark.faults
def test_the_exit_code_of_a_night_with_too_many_failures_comes_back(cluster, tmp_path):
    synthetic.write_survey(tmp_path / "survey", normals=3, cracks=0, size=256)
    (tmp_path / "survey" / "bad.jpg").write_bytes(b"text")
    code, out, said = ended(submit(cluster, "nightly", "pretrained", tmp_path / "survey", "--out", tmp_path / "root"))
    assert code == 4, out + said
    assert json.loads(out.splitlines()[-1])["failed"] == 1


@pytest.mark.faults
def test_ctrl_c_leaves_the_job_running_and_says_how_to_stop_it(cluster, model, survey, tmp_path):
    sent = submit(cluster, "score", model, survey, "--out", tmp_path / "run")
    while "nodes see" not in sent.stdout.readline():
        assert sent.poll() is None
    sent.send_signal(signal.SIGINT)
    code, _, said = ended(sent)
    assert code == 130
    pattern = r"crackvae: job (\S+) goes on; `(ray job stop \1 --address .*)` stops it, .*"
    told = re.fullmatch(pattern, said.splitlines()[-1])
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "parts").is_dir():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    stop = [sys.executable, "-m", "ray.scripts.scripts", *told[2].split()[1:]]
    stopped = subprocess.run(stop, env=os.environ | loopback.CLIENT, capture_output=True, text=True, check=False)
    assert f"Job '{told[1]}' was stopped" in stopped.stdout + stopped.stderr


@pytest.mark.faults
@pytest.mark.parametrize(
    ("arguments", "line", "code"),
    [
        (
            ("{model}", "/no/such/place", "--out", "{out}"),
            r"node 127\.0\.0\.[23] .*: does not see /no/such/place; use a bucket",
            3,
        ),
        (
            ("{model}", "{survey}", "--out", "{out}", "--device", "cuda"),
            "the cluster has fewer than 1 GPUs, and no autoscaler",
            2,
        ),
    ],
)
def test_what_would_fail_later_is_refused_in_the_first_seconds(arguments, line, code, cluster, model, survey, tmp_path):
    places = {"model": model, "survey": survey, "out": tmp_path / "run"}
    command = [argument.format(**places) for argument in arguments]
    exit_code, out, said = ended(submit(cluster, "score", *command))
    assert exit_code == code, out + said
    assert re.search(rf"^crackvae: .*{line}", out, re.MULTILINE)
    assert not (tmp_path / "run" / "run.json").exists()


def test_without_the_token_nothing_is_sent(cluster, model, survey, tmp_path):
    command = ("score", model, survey, "--out", tmp_path / "run")
    code, _, said = ended(submit(cluster, *command, RAY_AUTH_TOKEN="another-token-that-is-just-as-long-as"))
    assert code == 3, said
    assert len(said.strip().splitlines()) == 1
    assert "takes no job" in said
    assert loopback.TOKEN not in said


@pytest.mark.faults
@pytest.mark.parametrize("what", ["source", "table", "out"])
def test_what_one_node_does_not_see_is_refused_with_the_cure(what, cluster, local, model, survey, tmp_path):
    if not cluster.has_local_disk:
        pytest.skip("a node with a disk of its own needs root")
    images, table = local / "images", tmp_path / "table.csv"
    shutil.copytree(survey, images, dirs_exist_ok=True)
    table.write_text(f"uri\n{next(images.rglob('*.jpg'))}\n")
    source = {"source": images, "table": table, "out": survey}[what]
    out = local / "run" if what == "out" else tmp_path / "run"
    code, said, _ = ended(submit(cluster, "score", model, source, "--out", out))
    assert code == 3, said
    assert re.search(
        rf"^crackvae: node 127.0.0.3 .*: does not see {local}\S*; use a bucket, or a disk", said, re.MULTILINE
    )
    assert not list(out.glob("*"))


def test_the_dashboard_which_takes_jobs_listens_on_loopback_only(cluster):
    port = cluster.address.rpartition(":")[2]
    assert [address for address in loopback.listening() if address.endswith(f":{port}")] == [f"127.0.0.1:{port}"]
