import inspect
import os
import stat
import sys
import tarfile
from datetime import UTC, datetime

import pytest
from dataset.places import MAKERS, bytes_of, failure, listed, make_folder, make_tar, make_zip, read, refusal

from crackvae import storage
from crackvae.dataset import sources
from crackvae.dataset.sources import list_source
from crackvae.errors import InputError, RefusedError
from crackvae.schema import Status

ODD = ["new\nline", 'a,b "c"', "50%", "%41", "#1?x=1", "in!", "a!/b.zip!/c", "żółw 🐢", "back\\x"]
NO_UTF8 = os.fsdecode(b"caf\xe9 \xff.jpg")


@pytest.mark.parametrize("name", MAKERS)
def test_files_of_any_name_are_listed_and_read_wherever_they_lie(tmp_path, name):
    paths = [f"{odd}/{odd}.jpg" for odd in ODD]
    (tmp_path / "in! #1").mkdir()
    source = MAKERS[name](tmp_path / "in! #1" / name, paths)
    files = listed(source)
    assert sorted(files) == sorted(paths)
    for path, file in files.items():
        assert file.uri.isascii()
        assert file.uri.isprintable()
        assert read(file.uri) == bytes_of(path)
        assert file.size == len(bytes_of(path))
    assert listed(storage.to_uri(str(source))) == files


@pytest.mark.parametrize("name", ["folder", "a.tar", "a.tar.gz"])
def test_names_that_are_not_utf8_are_shown_escaped_and_read(tmp_path, name):
    files = listed(MAKERS[name](tmp_path / name, [NO_UTF8]))
    assert list(files) == [r"caf\xe9 \xff.jpg"]
    assert read(files[r"caf\xe9 \xff.jpg"].uri) == bytes_of(NO_UTF8)


def test_an_image_whose_name_is_not_utf8_is_listed_alone_as_in_its_folder(tmp_path):
    folder = MAKERS["folder"](tmp_path / "folder", [NO_UTF8])
    assert listed(folder / NO_UTF8) == listed(folder)


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("a.jpg", True),
        ("a.JPG", True),
        ("A.TiFf", True),
        ("x/a.jp2", True),
        ("a.HEIC", True),
        ("IMG_1.HIF", True),
        (".hidden.png", True),
        ("._x.jpg", False),
        ("__MACOSX/x/._x.jpg", False),
        (".jpg", False),
        ("jpg", False),
        ("a.jpg.txt", False),
        ("a.jpg/readme", False),
    ],
)
def test_a_suffix_says_what_is_an_image_and_a_shadow_of_macos_is_none(name, image):
    assert sources.is_image(name) == image


def test_the_kind_of_a_source_follows_from_what_it_is_and_then_from_its_suffix(tmp_path):
    (tmp_path / "folder.zip").mkdir()
    for name in ("A.ZIP", "a.tar.GZ", "a.Csv", "a.parquet", "a.JPG", "a.txt"):
        (tmp_path / name).touch()
    names = set(os.listdir(tmp_path)) - {"a.txt"}
    kinds = {name: sources.kind(str(tmp_path / name)) for name in names}
    assert kinds == {
        "folder.zip": "folder",
        "A.ZIP": "archive",
        "a.tar.GZ": "archive",
        "a.Csv": "table",
        "a.parquet": "table",
        "a.JPG": "image",
    }
    with pytest.raises(InputError, match=r"a.txt: is no source; use a folder, an image, .zip, "):
        sources.kind(str(tmp_path / "a.txt"))
    assert sources.kind("s3://bucket/a.zip?region=eu-1") == "archive"
    assert sources.kind("s3://bucket/prefix") == "folder"


def test_a_missing_path_is_an_error_that_names_it(tmp_path):
    assert refusal(tmp_path / "missing") == f"{tmp_path}/missing: no such file or folder"
    (tmp_path / "link.zip").symlink_to("nowhere")
    assert "no such file or folder" in refusal(tmp_path / "link.zip")


def test_an_empty_folder_lists_nothing(tmp_path):
    assert listed(tmp_path) == {}


def test_what_is_no_regular_file_is_listed_and_says_so_when_it_is_read(tmp_path):
    os.mkfifo(tmp_path / "fifo.jpg")
    (tmp_path / "dangling.jpg").symlink_to("nowhere")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    make_folder(tmp_path, ["folder.jpg/inside.jpg"])
    files = listed(tmp_path)
    assert sorted(files) == ["dangling.jpg", "fifo.jpg", "folder.jpg/inside.jpg", "loop.jpg"]
    assert files["dangling.jpg"].size is None
    assert failure(files["fifo.jpg"].uri) == (Status.UNREADABLE, "is no regular file")
    assert failure(files["dangling.jpg"].uri) == (Status.UNREADABLE, "No such file or directory")
    assert failure(files["loop.jpg"].uri)[0] == Status.UNREADABLE
    assert failure(storage.to_uri(str(tmp_path / "folder.jpg")))[1] == "is no regular file"


def test_a_link_to_a_folder_is_not_followed_but_listed_so_that_it_is_counted(tmp_path):
    make_folder(tmp_path / "elsewhere", ["a.jpg"])
    make_folder(tmp_path / "survey", ["b.jpg"])
    (tmp_path / "survey" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "survey" / "round").symlink_to(".")
    files = listed(tmp_path / "survey")
    assert sorted(files) == ["b.jpg", "more/", "round"]  # what lies behind `round` is listed anyway
    said = "a link to a folder is not followed; give that folder as a source, too, and remove the link"
    assert failure(files["more/"].uri) == (Status.UNREADABLE, said)


def mkdirs(folder, names):
    """Folders in folders, deeper than a path can name: a path has 4,095 bytes, not even root's more."""
    at = os.open(folder, os.O_RDONLY)
    for name in names:
        os.mkdir(name, dir_fd=at)
        below = os.open(name, os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(os.open("a.jpg", os.O_CREAT | os.O_WRONLY, dir_fd=at))
    os.close(at)


def test_a_folder_that_cannot_be_listed_is_listed_itself_and_says_why_when_it_is_read(tmp_path):
    make_folder(tmp_path, ["b.jpg", "in/c.jpg"])
    mkdirs(tmp_path, ["x" * 250] * 20)
    files = listed(tmp_path)
    [unlisted] = files.keys() - {"b.jpg", "in/c.jpg"}
    assert set(unlisted) == {"x", "/"}
    assert unlisted.endswith("x/")
    assert files[unlisted].uri.endswith(unlisted)
    message = "the folder cannot be listed: File name too long"
    assert failure(files[unlisted].uri) == (Status.UNREADABLE, message)


def test_a_folder_that_could_not_be_listed_and_now_can_is_unreadable_all_the_same(tmp_path):
    (tmp_path / "folder").mkdir()
    status, message = failure(storage.to_uri(str(tmp_path / "folder")) + "/")
    assert (status, message.partition(";")[0]) == (
        Status.UNREADABLE,
        "the folder could not be listed before, and now it can",
    )


def test_a_source_that_cannot_be_listed_at_all_is_refused(tmp_path, monkeypatch):
    def scandir(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert refusal(tmp_path) == f"{tmp_path}: cannot be listed: Permission denied"


def test_folders_in_folders_are_listed_however_many(tmp_path):
    mkdirs(tmp_path, ["a"] * 300)  # few enough for pytest, which removes them by recursion
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 100)
    try:
        assert list(listed(tmp_path)) == ["a/" * 300 + "a.jpg"]
    finally:
        sys.setrecursionlimit(limit)


@pytest.mark.parametrize(
    "uri",
    [
        "s3://key:hunter2@bucket/survey",
        "s3://key:hun/ter2@bucket/survey.zip",
        "https://user:hunter2@host/a.jpg",
        "abfss://place@account/a.csv?account_key=hunter2",
        "s3://bucket/survey?secret=hunter2",
        "https://host/a.jpg?sig=hunter2",
    ],
)
def test_a_source_that_holds_a_secret_is_refused_without_telling_it(uri):
    message = refusal(uri)
    assert message.startswith(uri.partition("://")[0] + "://...: holds a password or key, ")
    assert "ter2" not in message


@pytest.mark.parametrize(
    "uri", ["gs://anonymous@bucket/a.jpg", "s3://[::1]:9000/a.jpg", "s3://bucket/a.jpg?region=eu-1&scheme=http"]
)
def test_a_uri_with_a_name_a_port_or_options_is_no_secret(uri):
    assert sources.kind(uri) == "image"


@pytest.mark.parametrize("uri", ["s3://[bucket/a.jpg", "file://[x", "s3://user:hunter2@b]/a.jpg"])
def test_what_is_no_uri_is_refused_without_being_told(uri):
    assert refusal(uri) == uri.partition("://")[0] + "://...: is no valid URI"


@pytest.mark.parametrize("seconds", [-1, 0.25, 1e10, 1e13])
def test_a_strange_time_does_not_end_a_listing(tmp_path, seconds):
    make_folder(tmp_path, ["a.jpg"])
    os.utime(tmp_path / "a.jpg", (seconds, seconds))
    member = tarfile.TarInfo("a.jpg")
    member.mtime = seconds
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.addfile(member)
    kept = os.stat(tmp_path / "a.jpg").st_mtime  # some file systems end in 2446
    for file, known in ((tmp_path, kept), (tmp_path / "a.tar", seconds)):
        expected = datetime.fromtimestamp(known, UTC) if known < 1e12 else None
        assert listed(file)["a.jpg"].mtime == expected


def test_a_single_image_is_a_source_with_size_and_time(tmp_path):
    make_folder(tmp_path, ["bridge #7.JPG"])
    [file] = list_source(str(tmp_path / "bridge #7.JPG"))
    assert (file.path, file.size) == ("bridge #7.JPG", len(bytes_of("bridge #7.JPG")))
    assert file.mtime is not None
    assert read(file.uri) == bytes_of("bridge #7.JPG")


@pytest.mark.parametrize("name", MAKERS)
def test_a_file_over_the_limit_is_too_large_and_one_at_it_is_not(tmp_path, name):
    [file] = list_source(str(MAKERS[name](tmp_path / name, ["a.jpg"])))
    size = len(bytes_of("a.jpg"))
    assert read(file.uri, size) == bytes_of("a.jpg")
    assert failure(file.uri, size - 1) == (Status.TOO_LARGE, f"over {size - 1} bytes")


def test_what_is_gone_since_the_listing_is_unreadable(tmp_path):
    uris = [
        file.uri
        for name in ("folder", "a.zip", "a.tar")
        for file in list_source(str(MAKERS[name](tmp_path / name, ["gone.jpg"])))
    ]
    (tmp_path / "folder/gone.jpg").unlink()
    (tmp_path / "a.zip").unlink()
    make_tar(tmp_path / "a.tar", ["other.jpg"])
    assert [failure(uri) for uri in uris] == [
        (Status.UNREADABLE, "No such file or directory"),
        (Status.UNREADABLE, "No such file or directory"),
        (Status.UNREADABLE, "the archive has no such member"),
    ]


def test_a_folder_and_an_archive_that_are_not_local_are_listed_and_read(tmp_path):
    # pyarrow keeps what is written to mock:// in memory; a query belongs to a pyarrow URI.
    place = "mock://sources?x=y"
    system, path = storage.remote(place)
    system.create_dir(f"{path}/survey/50% #1", recursive=True)
    storage.write_bytes(storage.join(place, "survey", "50% #1", "a?.jpg"), b"a")
    archive = make_zip(tmp_path / "a.zip", ["in!/b #1.jpg"]).read_bytes()
    storage.write_bytes(storage.join(place, "a.zip"), archive)

    [file] = list_source(storage.join(place, "survey"))
    assert (file.path, file.size, read(file.uri)) == ("50% #1/a?.jpg", 1, b"a")
    [image] = list_source(file.uri)
    assert (image.path, read(image.uri)) == ("a?.jpg", b"a")
    [member] = list_source(storage.join(place, "a.zip"))
    assert (member.path, read(member.uri)) == ("in!/b #1.jpg", bytes_of("in!/b #1.jpg"))
    assert "mock://sources/missing?x=y: cannot be listed" in refusal(storage.join(place, "missing"))


def test_a_scheme_that_nobody_knows_is_refused():
    assert refusal("nfs://server/survey").startswith("nfs://: no such file system")
    assert failure("nfs://server/a.jpg")[0] == Status.UNREADABLE


def test_a_permission_that_is_missing_is_the_reason(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    make_folder(tmp_path, ["a.jpg"])
    (tmp_path / "a.jpg").chmod(stat.S_IWUSR)
    assert failure(storage.to_uri(str(tmp_path / "a.jpg"))) == (
        Status.UNREADABLE,
        "Permission denied",
    )


def test_an_empty_name_is_no_source():
    for source in ("", " "):
        with pytest.raises(InputError, match="is no source"):
            sources.kind(source)


def test_nothing_is_written_below_a_folder_that_is_scored(tmp_path):
    (tmp_path / "survey").mkdir()
    survey = str(tmp_path / "survey")
    for out in (f"{survey}/run", survey, f"file://{survey}/a/b"):
        with pytest.raises(
            RefusedError, match=r"lies in .*survey/?, where its pictures would be taken for photographs"
        ):
            sources.check_outside(out, [survey + "/"])
    for out in (f"{survey}-run", str(tmp_path), "s3://bucket/run"):
        sources.check_outside(out, [survey])
    (tmp_path / "link").symlink_to(survey)
    for out, source in ((f"{survey}/run", "link"), ("link/run", "survey")):
        with pytest.raises(RefusedError, match="lies in"):
            sources.check_outside(str(tmp_path / out), [str(tmp_path / source)])
