"""`crackvae score` with sources, models and runs in a bucket, as processes that a user would start."""

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from faults import flaky_store, harness
from faults.comparing import compare
from object_store import server

from crackvae.images import synthetic
from crackvae.run import finalize

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

NAMES = ["a b.jpg", "a+b.jpg", "50%.jpg", "%41.jpg", "#1?x=1.jpg", "in!.jpg", "a&b=c.jpg", "żółw 🐢.jpg", "~(x)'*.jpg"]
FILES = 1_100  # two pages of a listing, five shards


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Images of which no two neighbours are equal, some with names that need care, two damaged."""
    folder = tmp_path_factory.mktemp("photos") / "photos"
    synthetic.write_survey(folder, normals=40, cracks=8, size=48)
    originals = sorted(folder.rglob("*.jpg"))
    rng = random.Random(0)
    names = [*NAMES, *(f"n{number:04d}.jpg" for number in range(FILES - len(NAMES) - len(originals)))]
    for name in names:
        shutil.copy(rng.choice(originals), folder / "normal" / name)
    (folder / "normal" / "n0007.jpg").write_bytes(b"text")
    (folder / "normal" / "n0700.jpg").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def bucket(store, photos, model):
    """The photos, with markers of folders among them, and the model, in a bucket: its URI."""
    server.put_folder(store, photos, "photos/")
    server.put(store, [(f"photos/{name}", b"") for name in ("", "normal/", "empty/", "folder.jpg/")])
    server.put_folder(store, model, "model/")
    return f"s3://{server.BUCKET}"


@pytest.fixture(scope="module")
def in_bucket(store, bucket, tmp_path_factory):
    """A run with everything in the bucket: what the process said, and a copy of the run."""
    said = server.crackvae(store, "score", f"{bucket}/model", f"{bucket}/photos", "--out", f"{bucket}/run")
    folder = tmp_path_factory.mktemp("in_bucket") / "run"
    server.get_folder(store, "run/", folder)
    return said, folder


def rows(folder, *left_out):
    results = finalize.read_results(str(folder)).to_pylist()
    return {row["image_id"]: {name: row[name] for name in row if name not in left_out} for row in results}


def test_a_prefix_of_two_pages_is_scored_as_the_same_folder_on_a_disk(store, photos, model, in_bucket, tmp_path):
    said, folder = in_bucket
    assert said.returncode == 0, said.stderr
    local = server.crackvae(store, "score", str(model), str(photos), "--out", str(tmp_path / "run"))
    assert local.returncode == 0, local.stderr
    assert len(rows(folder)) == FILES
    assert rows(folder, "uri") == rows(tmp_path / "run", "uri")
    assert {f"normal/{name}" for name in NAMES} <= rows(folder).keys()
    failed = {name: row["message"] for name, row in rows(folder).items() if row["status"] != "ok"}
    assert failed.keys() == {"normal/n0007.jpg", "normal/n0700.jpg"}
    paths = [path.relative_to(tmp_path / "run").as_posix() for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()) == sorted(
        path for path in paths if path != ".lock"
    )


def test_no_credential_is_printed_or_kept(in_bucket):
    said, folder = in_bucket
    contents = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    contents += [pq.read_table(path).to_pandas().to_csv().encode() for path in folder.rglob("*.parquet")]
    assert len(contents) > 12
    for secret in (server.SECRET, server.KEY):
        assert secret not in said.stdout + said.stderr
        assert not any(secret.encode() in content for content in contents)


def test_the_same_command_on_a_finished_run_repeats_nothing(store, bucket, in_bucket):
    with flaky_store.flaky(store) as proxy:
        again = server.crackvae(proxy.url, "score", f"{bucket}/model", f"{bucket}/photos", "--out", f"{bucket}/run")
        log = list(proxy.log)
    assert again.returncode == 0, again.stderr
    assert "already finished" in again.stderr
    assert not [request for _, request in log if "photos" in request or not request.startswith(("GET", "HEAD"))]


def test_check_verifies_a_run_in_a_bucket(store, bucket, in_bucket):
    checked = server.crackvae(store, "check", f"{bucket}/run")
    assert checked.returncode == 0, checked.stderr
    server.put(store, [(f"altered/{name}", data) for name, data in server.get(store, "run/").items()])
    server.put(store, [("altered/metrics.json", b"{}")])
    altered = server.crackvae(store, "check", f"{bucket}/altered")
    assert altered.returncode == 3
    assert "metrics.json" in altered.stdout + altered.stderr


@pytest.mark.faults
def test_nights_in_a_bucket_score_what_is_new_or_written_again(store, bucket, photos):
    data = [path.read_bytes() for path in sorted((photos / "normal").glob("n00*.jpg")) if path.stat().st_size > 9]
    server.put(store, [(f"growing/{number} %.jpg", data[number]) for number in range(24)])

    def night(*options):
        command = ["nightly", f"{bucket}/model", f"{bucket}/growing", "--out", f"{bucket}/nightly", *options]
        done = server.crackvae(store, *command)
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout.splitlines()[-1])
        return {name: told[name] for name in ("new", "changed", "touched", "vanished", "scored", "photographs")}

    first = dict.fromkeys(("changed", "touched", "vanished"), 0) | dict.fromkeys(("new", "scored", "photographs"), 24)
    assert night("--content-hash") == first
    time.sleep(1.1)  # S3 keeps times in seconds
    server.put(store, [("growing/new.jpg", data[30]), ("growing/0 %.jpg", data[31]), ("growing/1 %.jpg", data[1])])
    server.client(store).delete_object(Bucket=server.BUCKET, Key="growing/2 %.jpg")
    assert night("--content-hash") == {
        "new": 1, "changed": 1, "touched": 1, "vanished": 1, "scored": 2, "photographs": 25
    }  # fmt: skip
    newest = json.loads(server.get(store, "nightly/latest.json")[""])
    data_of = server.get(store, f"nightly/snapshots/{newest['night']}/")
    found = pq.read_table(pa.BufferReader(data_of["photographs.parquet"])).to_pylist()
    assert [row["image_id"] for row in found if not row["present"]] == ["2 %.jpg"]
    assert night() == dict.fromkeys(first, 0) | {"photographs": 25}


@pytest.mark.faults
def test_a_run_in_a_bucket_goes_on_after_kills_and_ends_in_the_same_bytes(store, bucket, in_bucket, tmp_path):
    _, reference = in_bucket
    command = ["score", f"{bucket}/model", f"{bucket}/photos", "--out", f"{bucket}/killed"]
    for parts in (1, 3):
        job = subprocess.Popen(
            [sys.executable, "-m", "crackvae", *command],
            env=server.process_environment(store),
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            while job.poll() is None and len(server.keys(store, "killed/parts/")) < parts:
                time.sleep(0.05)
            assert job.poll() is None
            job.send_signal(signal.SIGKILL)
            job.wait()
        finally:
            harness.end(job.pid)
        whole = {name: data for name, data in server.get(store, "killed/parts/").items() if not name.endswith("/")}
        assert len(whole) < 5
        assert all(data == (reference / "parts" / name).read_bytes() for name, data in whole.items())
    done = server.crackvae(store, *command)
    assert done.returncode == 0, done.stderr
    server.get_folder(store, "killed/", tmp_path / "killed")
    found = compare(reference, tmp_path / "killed")
    assert (found.lost, found.double, found.different, found.files) == (0, 0, 0, ())


@pytest.fixture(scope="module")
def mixed(photos, store, bucket, tmp_path_factory):
    """An archive and a table in the bucket, and a folder on the disk: sources, and the name of each image in each."""
    names = [f"normal/{name}" for name in (*NAMES, "n0001.jpg")]
    folder = tmp_path_factory.mktemp("mixed")
    with zipfile.ZipFile(folder / "photos.zip", "w") as archive:
        for name in names:
            archive.write(photos / name, name)
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.table({"uri": names}), buffer)
    server.put(store, [("mixed.zip", (folder / "photos.zip").read_bytes())])
    server.put(store, [("photos/list.parquet", buffer.getvalue().to_pybytes())])
    (folder / "disk" / "normal").mkdir(parents=True)
    for name in names:
        shutil.copy(photos / name, folder / "disk" / name)
    return [f"{bucket}/mixed.zip", f"{bucket}/photos/list.parquet", str(folder / "disk")], names


@pytest.mark.parametrize("where", ["bucket", pytest.param("disk", marks=pytest.mark.faults)])
def test_archives_tables_and_folders_mix_wherever_they_lie(store, bucket, model, in_bucket, mixed, tmp_path, where):
    sources, names = mixed
    out = f"{bucket}/mixed" if where == "bucket" else str(tmp_path / "run")
    done = server.crackvae(store, "score", str(model), *sources, "--out", out)
    assert done.returncode == 0, done.stderr
    if where == "bucket":
        server.get_folder(store, "mixed/", tmp_path / "run")
    expected, found = rows(in_bucket[1]), rows(tmp_path / "run")
    assert len(found) == 3 * len(names)
    for name in names:
        for number in ("", "#2", "#3"):
            assert found[name + number]["score"] == expected[name]["score"]


@pytest.mark.faults
def test_a_store_that_stops_answering_ends_the_job_and_one_that_fails_at_times_finishes_it(
    store, bucket, in_bucket, tmp_path
):
    command = ["score", f"{bucket}/model", f"{bucket}/photos", "--out", f"{bucket}/cut-off"]
    with flaky_store.flaky(store, share=1.0, faults=("503",), only=r"^(GET|HEAD) \S*/photos/normal/n05") as proxy:
        cut_off = server.crackvae(proxy.url, *command)
    assert cut_off.returncode == 3, cut_off.stderr
    last = cut_off.stderr.splitlines()[-1]
    assert last.startswith(f"crackvae: {bucket}/photos/normal/n05")
    assert "the object store fails or cannot be reached" in last
    assert "Traceback" not in cut_off.stderr
    with flaky_store.flaky(store, share=0.1, stall_share=0.002) as proxy:
        done = server.crackvae(proxy.url, *command)
    assert done.returncode == 0, done.stderr
    assert proxy.counts["stall"] > 0
    assert proxy.counts.total() - proxy.counts["ok"] > 50
    server.get_folder(store, "cut-off/", tmp_path / "run")
    assert compare(in_bucket[1], tmp_path / "run").files == ()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_job_whose_store_is_silent_before_the_store_is_given_up(store, tmp_path, number, code):
    command = [sys.executable, "-m", "crackvae", "index", f"s3://{server.BUCKET}", "--out", str(tmp_path / "manifest")]
    with flaky_store.flaky(store, stall_share=1.0) as proxy:
        environment = server.process_environment(proxy.url)
        with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as job:
            while not proxy.counts["stall"]:
                time.sleep(0.01)
            job.send_signal(number)
            _, said = job.communicate()
        assert job.returncode == code, said
        assert proxy.counts["stall"] <= 2
    assert said.endswith("the same command goes on\n")


@pytest.mark.faults
@pytest.mark.timeout(1800)
def test_ten_thousand_small_objects_are_indexed_and_scored(store, model, photos, tmp_path, record_property):
    originals = [path.read_bytes() for path in sorted((photos / "crack").iterdir())]
    server.put(store, ((f"many/{n // 100:03d}/{n:05d}.jpg", originals[n % len(originals)]) for n in range(10_000)))
    source = f"s3://{server.BUCKET}/many"
    began = time.monotonic()
    indexed = server.crackvae(store, "index", source, "--out", str(tmp_path / "manifest.parquet"))
    seconds_to_index = time.monotonic() - began
    assert indexed.returncode == 0, indexed.stderr
    assert pq.read_metadata(tmp_path / "manifest.parquet").num_rows == 10_000
    began = time.monotonic()
    scored = server.crackvae(
        store, "score", str(model), source, "--out", f"s3://{server.BUCKET}/many-run", timeout=1500
    )
    record_property("seconds", {"index": seconds_to_index, "score": time.monotonic() - began})
    assert scored.returncode == 0, scored.stderr
    server.get_folder(store, "many-run/", tmp_path / "run")
    found = finalize.read_results(str(tmp_path / "run"))
    assert found.num_rows == len(set(found["uri"].to_pylist())) == 10_000
    assert len(set(found["score"].to_pylist())) == len(originals)
    with (tmp_path / "run" / "results.csv").open(newline="") as stream:
        assert len(list(csv.DictReader(stream))) == 10_000
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["counts"]["status"] == {"ok": 10_000}
    assert os.listdir(tmp_path / "run" / "parts") == ["00000"]
