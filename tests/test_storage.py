import os
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import fs

from crackvae import listing, storage
from crackvae.errors import InputError
from crackvae.listing import list_remote

NAMES = [
    "plain",
    "new\nline",
    'a,b "c"',
    "50%",
    "%41",
    "#1?x=1",
    "in!",
    "żółw 🐢",
    os.fsdecode(b"\xff"),
]


@pytest.fixture
def bucket(request):
    """A place that is not local: pyarrow keeps what is written to mock:// in memory."""
    name = f"mock://{abs(hash(request.node.nodeid))}"
    system, path = storage.remote(name)
    system.create_dir(path)
    return name


@given(st.binary(min_size=1, max_size=30).filter(lambda name: not {0, 0x2F} & set(name)))
def test_a_name_of_any_bytes_survives_the_way_to_a_uri_and_back(name):
    path = "/data/" + os.fsdecode(name)
    uri = storage.to_uri(path)
    assert uri.isascii()
    assert uri.isprintable()
    if name not in {b".", b".."}:
        assert str(storage.local_path(uri)) == path
        assert storage.name(uri) == os.fsdecode(name)
        assert storage.parent(uri) == "file:///data/"


def test_an_exclamation_mark_in_a_path_is_encoded_for_it_marks_members_of_archives():
    assert storage.to_uri("/in!/a.zip") == "file:///in%21/a.zip"


def test_a_relative_path_becomes_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert storage.to_uri("x/../a b") == f"{storage.to_uri(str(tmp_path))}/a%20b"
    assert storage.absolute("a b") == f"{tmp_path}/a b"
    assert storage.absolute("file:///a%20b") == "/a b"
    assert storage.absolute("s3://bucket/a%20b") == "s3://bucket/a%20b"


@pytest.mark.parametrize(
    ("location", "joined"),
    [
        ("runs", "runs/a/b #1"),
        ("runs/", "runs/a/b #1"),
        ("/", "/a/b #1"),
        ("file:///", "file:///a/b%20%231"),
        ("s3://bucket", "s3://bucket/a/b%20%231"),
        ("s3://bucket/runs/", "s3://bucket/runs/a/b%20%231"),
        ("s3://bucket/runs?region=eu-1", "s3://bucket/runs/a/b%20%231?region=eu-1"),
    ],
)
def test_join_encodes_for_a_uri_and_keeps_its_query_last(location, joined):
    assert storage.join(location, "a", "b #1") == joined


@pytest.mark.parametrize(
    ("location", "parent", "name"),
    [
        ("/data/a b.csv", "file:///data/", "a b.csv"),
        ("/a.csv", "file:///", "a.csv"),
        ("s3://bucket/x/a%20b.csv", "s3://bucket/x/", "a b.csv"),
        ("s3://bucket/x/a.csv?region=eu-1", "s3://bucket/x/?region=eu-1", "a.csv"),
        ("/data/what?.csv", "file:///data/", "what?.csv"),
    ],
)
def test_a_location_has_a_parent_and_a_name(location, parent, name):
    assert (storage.parent(location), storage.name(location)) == (parent, name)


@pytest.mark.parametrize("name", NAMES)
def test_bytes_come_back_from_a_local_file_of_any_name(tmp_path, name):
    path = str(tmp_path / "new folder" / name)
    for location in (path, storage.to_uri(path)):
        assert not storage.exists(location)
        storage.write_bytes(location, b"abc")
        assert storage.exists(location)
        assert storage.read_bytes(location) == b"abc"
        assert list(storage.list_files(str(tmp_path))) == [f"new folder/{name}"]
        storage.remove(location)


@pytest.mark.parametrize("name", [name for name in NAMES if name.isprintable()])
def test_bytes_come_back_from_a_remote_file_of_any_name(bucket, name):
    location = storage.join(bucket, name)
    assert not storage.exists(location)
    storage.write_bytes(location, b"abc")
    assert storage.exists(location)
    assert storage.read_bytes(location) == b"abc"
    assert list(storage.list_files(bucket)) == [name]
    storage.remove(location)
    assert not storage.exists(location)


def test_a_remote_folder_is_removed_with_what_is_in_it(bucket):
    storage.write_bytes(storage.join(bucket, "a"), b"abc")
    storage.remove(bucket)
    assert not storage.exists(bucket)
    storage.remove(bucket)


def test_a_location_with_a_query_is_written_and_read(bucket):
    system, path = storage.remote(f"{bucket}?x=y")
    system.create_dir(path)
    location = storage.join(f"{bucket}?x=y", "a #1")
    storage.write_bytes(location, b"abc")
    assert storage.read_bytes(location) == b"abc"


def test_readers_see_the_old_bytes_until_the_new_ones_are_complete(tmp_path):
    path = tmp_path / "file"
    storage.write_bytes(str(path), b"old")
    with storage.writing(str(path)) as stream:
        stream.write(b"new, and more")
        stream.flush()
        assert path.read_bytes() == b"old"
        assert list(storage.list_files(str(tmp_path))) == ["file"]
    assert path.read_bytes() == b"new, and more"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("was", [b"old", None])
def test_a_write_that_fails_leaves_what_was_there_and_no_rest(tmp_path, was):
    path = tmp_path / "file"
    if was:
        path.write_bytes(was)

    def fail():
        with storage.writing(str(path)) as stream:
            stream.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert os.listdir(tmp_path) == (["file"] if was else [])
    assert not was or path.read_bytes() == was


def test_what_cannot_be_written_is_named_as_it_was_given(tmp_path):
    for location in (tmp_path, tmp_path / ("x" * 250)):  # a folder; and a name too long for the temporary file
        with pytest.raises(OSError, match=r"Is a directory|File name too long") as raised:
            storage.write_bytes(str(location), b"")
        assert raised.value.filename == str(location)


def test_a_remote_write_that_fails_makes_nothing_visible(bucket):
    location = storage.join(bucket, "file")

    def fail():
        with storage.writing(location) as stream:
            stream.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not storage.exists(location)


def test_a_folder_is_removed_whole_and_a_link_to_one_alone(tmp_path):
    folder, link = tmp_path / "folder", tmp_path / "link"
    storage.write_bytes(str(folder / "in" / "file"), b"abc")
    link.symlink_to(folder)
    storage.remove(str(link))
    assert os.listdir(tmp_path) == ["folder"]
    assert (folder / "in" / "file").exists()
    storage.remove(str(folder))
    assert not folder.exists()
    storage.remove(str(folder))


def test_a_missing_folder_lists_nothing(tmp_path, bucket):
    assert list(storage.list_files(str(tmp_path / "missing"))) == []
    assert list(storage.list_files(storage.join(bucket, "missing"))) == []


def test_an_unknown_scheme_is_refused_in_one_line():
    with pytest.raises(InputError, match=r"^nfs://: no such file system; use s3://") as caught:
        storage.read_bytes("nfs://server/a.jpg")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", ["file://{}/run#2", "s3://bucket/run#2", "gs://bucket/run#2/a"])
def test_what_follows_a_number_sign_is_not_dropped_from_a_uri(place, tmp_path):
    """Every file of a run would be written over one object, and another photograph be read."""
    for act in (lambda location: storage.write_bytes(location, b""), storage.read_bytes, storage.exists):
        with pytest.raises(InputError, match="a URI holds a #; write %23 for it"):
            act(place.format(tmp_path))
    assert not list(tmp_path.iterdir())
    storage.write_bytes(storage.to_uri(str(tmp_path / "run#2")), b"1")
    storage.write_bytes(str(tmp_path / "run#3"), b"1")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run#2", "run#3"]


def test_a_folder_that_goes_while_a_bucket_is_listed_is_gone_and_the_others_are_listed(tmp_path, monkeypatch):
    for name in ("a/1", "b/1", "c/1"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()

    class Moving(fs.LocalFileSystem):
        def get_file_info(self, chosen):
            found = super().get_file_info(chosen)
            shutil.rmtree(tmp_path / "b", ignore_errors=True)
            return found

    monkeypatch.setattr(listing, "remote", lambda location: (Moving(), str(tmp_path)))
    assert [entry.path for entry in list_remote("gs://bucket")] == ["a/1", "c/1"]
    shutil.rmtree(tmp_path)
    with pytest.raises(FileNotFoundError):
        list(list_remote("gs://bucket"))
