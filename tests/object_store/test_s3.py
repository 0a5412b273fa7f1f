"""`storage` on a real S3 server, as it should be and as it fails."""

import errno
import hashlib
import io
import os
import random
import re
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from botocore import UNSIGNED
from faults.flaky_store import FAULTS
from object_store import server

from crackvae import listing, object_store, storage
from crackvae.dataset import sources
from crackvae.dataset.reader import Reader
from crackvae.errors import ImageError, InputError, UnavailableError
from crackvae.listing import list_remote

NAMES = [  # not with a newline: moto has no route for it
    "plain",
    "a b",
    "a+b",
    "50%",
    "%41",
    "#1?x=1",
    "in!",
    "a&b=c",
    'a,b "c"',
    "żółw 🐢",
    "~(x)'*",
    "..a",
    "e" * 255,
]
SMALL, LARGE = os.urandom(1000), os.urandom(22_000_000)  # one request; three parts

# How the requests of an upload look to the proxy.
ONE_PUT, BEGIN, PART, COMPLETE = r"^PUT [^?]* $", r"^POST \S*\?uploads", "partNumber=2", r"^POST \S*uploadId"
UPLOADS = [(SMALL, ONE_PUT), (LARGE, BEGIN), (LARGE, PART), (LARGE, COMPLETE)]


@pytest.fixture
def impatient(monkeypatch):
    """Two tries of a request, of a second each; to be asked for before a connection."""
    monkeypatch.setattr(object_store, "RETRIES", 1)
    monkeypatch.setattr(object_store, "SILENT_SECONDS", 1)


def key(location):
    return location.removeprefix(f"s3://{server.BUCKET}/")


@pytest.mark.parametrize("name", NAMES)
def test_bytes_come_back_from_an_object_of_any_name(place, store, name):
    location = storage.join(place, "in here", name)
    assert not storage.exists(location)
    storage.write_bytes(location, SMALL)
    assert server.get(store, key(place)) == {f"/in here/{name}": SMALL}  # as another client sees it
    assert storage.exists(location)
    assert storage.exists(place)
    assert storage.read_bytes(location) == SMALL
    assert storage.sha256(location) == hashlib.sha256(SMALL).hexdigest()
    assert list(storage.list_files(place)) == [f"in here/{name}"]
    storage.remove(location)
    assert not storage.exists(location)
    storage.remove(location)


def test_markers_of_folders_are_no_files(place, store):
    server.put(store, [(f"{key(place)}/{name}", b"") for name in ("", "folder/", "folder/in/", "photo.jpg/")])
    server.put(store, [(f"{key(place)}/folder/a", b"a"), (f"{key(place)}/folder/empty", b"")])
    assert sorted(storage.list_files(place)) == ["folder/a", "folder/empty"]
    assert sorted(file.path for file in sources.list_source(place)) == ["folder/a", "folder/empty"]


@pytest.mark.parametrize("odd", [[], ["/root"], ["b//empty part", "b/c//1"], ["/root", "b//empty part"]])
def test_a_folder_of_many_folders_is_listed_in_the_order_of_its_paths(place, store, odd):
    names = [f"span-{number:02d}/day {day}/{number}.jpg" for number in range(20) for day in range(2)]
    names += ["b", "b/1", "b.jpg", "b/c/2", "b-1", "B", *odd]
    random.Random(0).shuffle(names)
    server.put(store, [(f"{key(place)}/{name}", name.encode()) for name in names])
    listed = [entry.path for entry in list_remote(place)]
    assert listed == sorted(names)
    assert [file.path for file in sources.list_source(place)] == listed


def test_a_large_folder_is_listed_page_by_page_and_never_held_whole(place, store, flaky, monkeypatch):
    monkeypatch.setattr(listing, "_PAGES", 1)
    names = [f"{number:04d}.jpg" for number in range(2100)]
    server.put(store, [(f"{key(place)}/{name}", b"") for name in [*names, "0500/a.jpg", "1700/b.jpg"]])
    proxy = flaky()
    listed = list_remote(place)
    first = next(listed)
    assert (first.path, first.size) == (names[0], 0)
    assert abs((datetime.now(UTC) - first.mtime).total_seconds()) < 600
    assert len(proxy.log) <= 3  # the first page, the folder in it, and the page after it
    assert [first.path, *(entry.path for entry in listed)] == sorted([*names, "0500/a.jpg", "1700/b.jpg"])
    assert len(proxy.log) == 3 + 2


def test_folders_in_folders_are_listed_as_deep_as_a_key_allows(place, store):
    deep = "a/" * 505 + "f.jpg"  # Python calls to a depth of 1,000
    server.put(store, [(f"deep/{name}", b"") for name in (deep, "a/b.jpg")])
    assert [entry.path for entry in list_remote(f"s3://{server.BUCKET}/deep")] == [deep, "a/b.jpg"]


def test_a_store_that_fails_for_a_while_costs_a_listing_of_many_folders_nothing(place, store, flaky):
    names = [f"{number:02d}/f.jpg" for number in range(30)]
    server.put(store, [(f"{key(place)}/{name}", b"") for name in names])
    proxy = flaky(share=1.0, faults=("500", "503"), most=3)
    assert [entry.path for entry in list_remote(place)] == names
    assert proxy.counts["500"] + proxy.counts["503"] == 3 * 31


def test_a_folder_that_goes_while_its_bucket_is_listed_is_gone_and_a_missing_one_is_missing(place, store):
    server.put(store, [(f"{key(place)}/f.jpg", b"")])
    client = listing._client(place)
    assert [page for page in listing._s3_pages(client, place, "gone/") if page] == []
    with pytest.raises(FileNotFoundError):
        list(listing._s3_pages(client, f"{place}/gone", ""))


@pytest.mark.parametrize(
    ("pages", "reason"),
    [
        ([("a", {"IsTruncated": True})], "its list ends before its end"),
        ([("b", {"IsTruncated": True, "NextContinuationToken": "2"}), ("a", {})], "names its objects in no order"),
    ],
)
def test_a_store_that_lists_otherwise_than_s3_is_refused(place, pages, reason):
    left = iter(pages)

    class Client:
        def list_objects_v2(self, **request):
            name, rest = next(left)
            return {"Contents": [{"Key": request["Prefix"] + name}], **rest}

    listed = listing._in_order(place, listing._s3_pages(Client(), place, ""))
    with pytest.raises((OSError, UnavailableError), match=reason):
        list(listed)


def test_a_folder_is_removed_with_all_of_it_and_nothing_else(place, store):
    for name in ("run/a", "run/b/c", "run-2/a", "runs"):
        storage.write_bytes(f"{place}/{name}", SMALL)
    storage.remove(f"{place}/run")
    assert sorted(storage.list_files(place)) == ["run-2/a", "runs"]
    assert not storage.exists(f"{place}/run")
    storage.remove(f"{place}/run")


def test_what_is_missing_lists_nothing_and_reading_it_says_so(place):
    assert list(storage.list_files(f"{place}/missing")) == []
    with pytest.raises(FileNotFoundError) as caught:
        storage.read_bytes(f"{place}/missing")
    assert (caught.value.errno, caught.value.strerror) == (errno.ENOENT, os.strerror(errno.ENOENT))
    assert caught.value.filename == f"{place}/missing"
    storage.write_bytes(f"{place}/folder/file", SMALL)
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(f"{place}/folder")
    with pytest.raises(OSError, match="Empty path component"):
        storage.read_bytes(f"{place}/a//b")


def test_a_missing_bucket_is_named_and_never_made(place, store):
    for act in (list_remote, lambda location: [storage.write_bytes(location, SMALL)]):
        with pytest.raises(FileNotFoundError, match="no such bucket: 's3://no-such-bucket/x'"):
            list(act("s3://no-such-bucket/x"))
    assert [b["Name"] for b in server.client(store).list_buckets()["Buckets"]] == [server.BUCKET]


def test_reading_takes_what_there_is_and_no_more_memory(place, flaky):
    storage.write_bytes(f"{place}/file", LARGE)
    proxy = flaky()
    with storage.open_input(f"{place}/file") as stream:
        assert stream.read(2**60) == LARGE  # a buffer of this size would be a MemoryError
        assert stream.read(2**60) == b""
    assert [request.split()[0] for _, request in proxy.log] == ["HEAD", "GET"]
    with storage.open_input(f"{place}/file") as stream:
        stream.seek(-10, os.SEEK_END)
        assert (stream.read(4), stream.tell(), stream.read()) == (LARGE[-10:-6], len(LARGE) - 6, LARGE[-6:])
        stream.seek(3)
        assert stream.read(5) == LARGE[3:8]
        into = bytearray(5)
        assert stream.readinto(into) == 5
        assert into == LARGE[8:13]


def test_parquet_is_read_group_by_group(place, flaky):
    table = pa.table({"x": pa.array(random.Random(0).choices(range(2**60), k=400_000))})
    with storage.writing(f"{place}/table.parquet") as stream:
        pq.write_table(table, stream, row_group_size=100_000)
    proxy = flaky()
    file = pq.ParquetFile(storage.open_input(f"{place}/table.parquet"))
    assert file.read_row_group(2).equals(table.slice(200_000, 100_000))
    assert sum(_bytes_asked_for(request) for _, request in proxy.log) < table.nbytes / 2


def _bytes_asked_for(request):
    asked = re.search(r"bytes=(\d+)-(\d+)", request)
    return int(asked[2]) - int(asked[1]) + 1 if asked else 0


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_archives_are_read_in_place_and_without_a_request_for_each_header(place, flaky, kind):
    buffer = io.BytesIO()
    members = {f"{kind}/{number:03d}.jpg": os.urandom(2000) for number in range(300)}
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, data in members.items():
                archive.writestr(name, data)
    else:
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for name, data in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    storage.write_bytes(f"{place}/photos.{kind}", buffer.getvalue())
    proxy = flaky()
    files = list(sources.list_source(f"{place}/photos.{kind}"))
    assert [file.path for file in files] == list(members)
    with Reader() as reader:
        assert {file.path: reader.read(file.uri, 10**6) for file in files} == members
    assert len(proxy.log) < 30


@pytest.mark.parametrize("fault", [*FAULTS, "stall"])
def test_a_request_that_fails_twice_is_made_again_until_it_is_answered(place, store, flaky, fault, monkeypatch):
    monkeypatch.setattr(object_store, "SILENT_SECONDS", 1)
    stall = {"stall_share": 1.0, "stall_seconds": 1.5} if fault == "stall" else {"share": 1.0, "faults": (fault,)}
    proxy = flaky(most=1 if fault == "stall" else 2, **stall)
    for name, data in {"tiny": b"t", "small": SMALL, "large": SMALL if fault == "stall" else LARGE}.items():
        storage.write_bytes(f"{place}/{name}", data)
        assert storage.read_bytes(f"{place}/{name}") == data
    assert sorted(storage.list_files(place)) == ["large", "small", "tiny"]
    storage.remove(f"{place}/small")
    assert list(server.get(store, key(place) + "/l")) == ["arge"]
    assert not storage.exists(f"{place}/small")
    assert proxy.counts[fault] >= 8


@pytest.mark.parametrize("fault", ["500", "503", "reset", "cut", "stall"])
def test_a_store_that_does_not_recover_is_an_error_that_says_so_in_a_line(impatient, place, flaky, fault):
    storage.write_bytes(f"{place}/file", SMALL)
    stall = {"stall_share": 1.0} if fault == "stall" else {"share": 1.0, "faults": (fault,)}
    flaky(**stall)
    acts = [storage.exists, storage.read_bytes, storage.remove, lambda location: list(storage.list_files(location))]
    for act in [storage.read_bytes] if fault == "stall" else acts:
        with pytest.raises(UnavailableError) as caught:
            act(f"{place}/file")
        message = str(caught.value)
        assert message.startswith(f"{place}/file: the object store fails or cannot be reached (")
        assert message.endswith("check network, endpoint and credentials, then run the same command again")
        assert "\n" not in message
        assert len(message) - len(place) < 250


def test_a_failure_in_the_middle_of_a_read_is_no_damaged_file(impatient, place, flaky):
    storage.write_bytes(f"{place}/file", SMALL)
    flaky(share=1.0, faults=("503",), only="^GET")
    for size in (10, 500):  # shorter and longer than the error
        with storage.open_input(f"{place}/file") as stream:
            stream.seek(len(SMALL) - size)
            with pytest.raises(UnavailableError):
                stream.read(10)


def test_a_failure_under_a_parquet_file_is_no_damaged_one(impatient, place, flaky):
    with storage.writing(f"{place}/table.parquet") as stream:
        pq.write_table(pa.table({"x": range(10)}), stream)
    flaky(share=1.0, faults=("reset",), only="^GET")
    with pytest.raises(UnavailableError):
        pq.ParquetFile(storage.open_input(f"{place}/table.parquet"))


@pytest.mark.parametrize("act", [storage.read_bytes, lambda location: list(list_remote(location))])
def test_a_denied_object_is_about_that_object_and_an_expired_token_about_all(impatient, place, flaky, act):
    storage.write_bytes(f"{place}/file", SMALL)
    flaky(share=1.0, faults=("403",))
    with pytest.raises(PermissionError, match=r"access denied .*; check the credentials \(AWS_PROFILE"):
        act(f"{place}/file")
    flaky(share=1.0, faults=("400",))
    with pytest.raises(UnavailableError, match=r"HTTP status 400|made by the test"):
        act(f"{place}/file")


def test_an_outage_makes_no_rows_and_a_missing_object_makes_one(impatient, place, flaky):
    storage.write_bytes(f"{place}/a.jpg", SMALL)
    storage.write_bytes(f"{place}/a.zip", b"PK")
    with Reader() as reader, pytest.raises(ImageError, match="unreadable: No such file or directory"):
        reader.read(f"{place}/b.jpg", 10**6)
    flaky(share=1.0, faults=("503",))
    for name in ("a.jpg", "b.jpg", "a.zip!/a.jpg"):
        with Reader() as reader, pytest.raises(UnavailableError):
            reader.read(f"{place}/{name}", 10**6)
    for name in ("", "/a.zip"):
        with pytest.raises(UnavailableError):
            list(sources.list_source(place + name))


def test_objects_that_are_expected_come_at_the_same_time_and_as_they_would_alone(place, flaky):
    names = [f"{number}.jpg" for number in range(12)]
    for name in names:
        storage.write_bytes(f"{place}/{name}", name.encode())
    files = [(f"{place}/{name}", len(name)) for name in names]
    files[2] = (files[2][0], 1)  # it has grown since
    files[3] = (files[3][0], 10**10)
    files[4] = (f"{place}/missing.jpg", None)
    proxy = flaky(share=1.0, faults=("slow",), stall_seconds=0.2)

    def outcomes(reader):
        for uri, _ in files:
            try:
                yield reader.read(uri, 10**6)
            except ImageError as error:
                yield error.message

    with Reader() as reader:
        alone = list(outcomes(reader))
    assert proxy.most_at_once == 1
    object_store._s3.cache_clear()
    with Reader() as reader:
        reader.expect(files)
        assert list(outcomes(reader)) == alone
    assert proxy.most_at_once > 6
    assert object_store._s3.cache_info().misses == 1  # not a client for each thread


def test_a_store_that_fails_for_an_expected_object_fails_in_its_turn(impatient, place, flaky):
    for name in ("a.jpg", "b.jpg"):
        storage.write_bytes(f"{place}/{name}", SMALL)
    flaky(share=1.0, faults=("503",), only="b.jpg")
    with Reader() as reader:
        reader.expect((f"{place}/{name}", len(SMALL)) for name in ("a.jpg", "b.jpg"))
        assert reader.read(f"{place}/a.jpg", 10**6) == SMALL
        with pytest.raises(UnavailableError):
            reader.read(f"{place}/b.jpg", 10**6)


def test_an_endpoint_that_is_not_there_is_named_by_its_reason(impatient, place, connect):
    connect("http://127.0.0.1:9")
    with pytest.raises(UnavailableError, match=r"cannot be reached \(Failed to connect to 127\.0\.0\.1"):
        storage.exists(place)
    with pytest.raises(UnavailableError, match=r"cannot be reached \(Could not connect to .*127\.0\.0\.1:9"):
        list(list_remote(place))


def test_what_is_no_name_of_a_bucket_is_no_outage(place):
    with pytest.raises(OSError, match="is no name of a bucket"):
        list(list_remote("s3://b,c/survey"))


@pytest.mark.parametrize("was", [None, b"old"])
@pytest.mark.parametrize(("data", "only"), UPLOADS)
def test_an_upload_that_the_store_refuses_leaves_what_was_there(impatient, place, store, flaky, was, data, only):
    if was:
        storage.write_bytes(f"{place}/file", was)
    proxy = flaky(share=1.0, faults=("500",), only=only)
    with pytest.raises(UnavailableError):
        storage.write_bytes(f"{place}/file", data)
    assert proxy.counts["500"] == 2
    assert list(server.get(store, key(place)).values()) == ([was] if was else [])


def test_an_exception_while_writing_makes_nothing_visible(place, store):
    def fail():
        with storage.writing(f"{place}/file") as stream:
            stream.write(LARGE)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert server.keys(store, key(place)) == []


@pytest.mark.parametrize("fault", ["lost reply", "404"])  # some stores forget an upload with its completion
def test_a_completed_upload_whose_answer_was_lost_is_whole(place, store, flaky, fault):
    proxy = flaky(share=1.0, faults=(fault,), only=COMPLETE, most=1)
    storage.write_bytes(f"{place}/file", LARGE)
    assert proxy.counts[fault] == 1
    assert server.get(store, key(place)) == {"/file": LARGE}


WRITER = """
import sys
from crackvae import storage
location, size = sys.argv[1], int(sys.argv[2])
print("ready", flush=True)
storage.write_bytes(location, b"n" * size)
"""


def write_and_hit(url, location, size, number, wait):
    """Starts a process that writes an object, signals it when `wait` says so, and waits for its end."""
    command = [sys.executable, "-c", WRITER, location, str(size)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=server.process_environment(url), stdout=pipe, stderr=pipe, text=True) as process:
        process.stdout.readline()
        wait()
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    return process.returncode, said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize(("data", "only"), UPLOADS)
def test_an_upload_that_is_interrupted_leaves_the_old_object_or_the_new_whole(place, store, flaky, data, only, number):
    storage.write_bytes(f"{place}/file", b"old")
    proxy = flaky(share=1.0, faults=("slow",), only=only, stall_seconds=1.0)

    def until_it_waits():
        while not proxy.counts["slow"]:
            time.sleep(0.01)

    code, said = write_and_hit(proxy.url, f"{place}/file", len(data), number, until_it_waits)
    assert code == -number
    assert ("KeyboardInterrupt" in said) == (number == signal.SIGINT)
    time.sleep(1.1)  # what the proxy still holds
    new = b"n" * len(data)
    allowed = {b"old", new} if number == signal.SIGKILL else {new}
    assert set(server.get(store, key(place)).values()) <= allowed


def test_uploads_that_are_hit_at_any_moment_are_whole(place, store):
    rng = random.Random(0)
    for number in range(4):
        hit = rng.choice([signal.SIGINT, signal.SIGKILL])
        moment = rng.uniform(0, 0.3)
        write_and_hit(store, f"{place}/{number}", len(LARGE), hit, lambda moment=moment: time.sleep(moment))
    assert set(server.get(store, key(place)).values()) <= {b"n" * len(LARGE)}


@pytest.mark.parametrize(
    "location",
    [
        f"s3://{server.KEY}:{server.SECRET}@bucket/x",
        f"s3://{server.KEY}:plain-secret@bucket/x",
        f"s3://bucket/x?secret_key={server.SECRET}&access_key={server.KEY}",
        f"s3://bucket/x?X-Amz-Signature={server.SECRET}",
        f"s3://bucket/x?endpoint_override=http://{server.KEY}:{server.SECRET}@proxy",
    ],
)
def test_a_location_with_credentials_is_refused_and_not_repeated(location):
    for act in (storage.exists, storage.read_bytes, storage.remove, lambda place: storage.write_bytes(place, b"")):
        with pytest.raises(InputError, match=r"^s3://\.\.\.: holds a password or key.*AWS_PROFILE") as caught:
            act(location)
        for secret in (server.KEY, server.SECRET, "plain-secret"):
            assert secret not in str(caught.value)


def test_what_is_no_uri_is_refused_in_a_line():
    with pytest.raises(InputError, match=r"^s3://\.\.\.: is no valid URI"):
        storage.exists("s3://[bucket/x")


def test_a_query_says_where_the_store_is(store, connect, monkeypatch):
    connect(store)
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    endpoint = store.removeprefix("http://")
    location = f"s3://{server.BUCKET}/by-query/file?endpoint_override={endpoint}&scheme=http&region=eu-central-1"
    storage.write_bytes(location, SMALL)
    assert storage.read_bytes(location) == SMALL
    assert "file" in storage.list_files(location.replace("/file", ""))
    with pytest.raises(InputError, match=r"^s3://bucket\?retry=1: Unexpected query parameter in S3 URI: 'retry'"):
        storage.exists("s3://bucket/x?retry=1")


def test_an_endpoint_for_s3_alone_is_used(store, connect, monkeypatch):
    connect(store)
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", store)
    assert storage.exists(f"s3://{server.BUCKET}")
    storage.write_bytes(f"s3://{server.BUCKET}/of-s3/file", SMALL)
    assert list(storage.list_files(f"s3://{server.BUCKET}/of-s3")) == ["file"]


def test_credentials_come_from_a_profile_too(place, store, connect, monkeypatch, tmp_path):
    connect(store)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    lines = ["[bridges]", f"aws_access_key_id = {server.KEY}", f"aws_secret_access_key = {server.SECRET}"]
    (tmp_path / "credentials").write_text("\n".join(lines))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "bridges")
    storage.write_bytes(f"{place}/file", SMALL)
    assert list(storage.list_files(place)) == ["file"]
    monkeypatch.delenv("AWS_PROFILE")
    assert server.get(store, key(place)) == {"/file": SMALL}


def test_without_credentials_what_is_public_is_listed(place, store, connect, monkeypatch):
    server.put(store, [(f"{key(place)}/file", SMALL)])
    connect(store)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    assert list(storage.list_files(place)) == ["file"]
    assert listing._client(place).meta.config.signature_version == UNSIGNED


def test_who_asks_to_be_anonymous_is(place):
    assert listing._client(place).meta.config.signature_version != UNSIGNED
    assert listing._client(place.replace("s3://", "s3://anonymous@")).meta.config.signature_version == UNSIGNED


def test_a_profile_that_is_not_there_is_named(place, connect, store, monkeypatch):
    connect(store)
    monkeypatch.setenv("AWS_PROFILE", "bridgse")
    with pytest.raises(UnavailableError, match=r"profile \(bridgse\) could not be found"):
        list(storage.list_files(place))
