import gzip
import io
import os
import random
import stat
import tarfile
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import pytest

from crackvae import storage
from crackvae.dataset import sources
from crackvae.dataset.sources import Reader, list_source
from crackvae.errors import ImageError, InputError
from crackvae.schema import Status

ODD = ["new\nline", 'a,b "c"', "50%", "%41", "#1?x=1", "in!", "a!/b.zip!/c", "żółw 🐢", "back\\x"]
NO_UTF8 = os.fsdecode(b"caf\xe9 \xff.jpg")


def bytes_of(path):
    return f"bytes of {path}".encode("utf-8", "surrogateescape")


def make_folder(place, paths):
    for path in paths:
        file = place / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(bytes_of(path))
    return place


def make_zip(place, paths):
    with zipfile.ZipFile(place, "w") as archive:
        for path in paths:
            archive.writestr(path, bytes_of(path))
    return place


def make_tar(place, paths):
    with tarfile.open(place, "w:gz" if place.name.endswith("gz") else "w") as archive:
        for path in paths:
            member = tarfile.TarInfo(path)
            member.size = len(bytes_of(path))
            archive.addfile(member, io.BytesIO(bytes_of(path)))
    return place


MAKERS = {
    "folder": make_folder,
    "a.zip": make_zip,
    "a.tar": make_tar,
    "a.tar.gz": make_tar,
    "A.TGZ": make_tar,
}


def listed(source):
    return {file.path: file for file in list_source(str(source))}


def read(uri, max_bytes=1000):
    with Reader() as reader:
        return reader.read(uri, max_bytes)


def failure(uri, max_bytes=1000):
    with pytest.raises(ImageError) as caught:
        read(uri, max_bytes)
    assert "\n" not in caught.value.message
    return caught.value.status, caught.value.message


def refusal(source):
    with pytest.raises(InputError) as caught:
        list(list_source(str(source)))
    assert "\n" not in str(caught.value)
    return str(caught.value)


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


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("a.jpg", True),
        ("a.JPG", True),
        ("A.TiFf", True),
        ("x/a.jp2", True),
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
    assert sorted(listed(tmp_path / "survey")) == ["b.jpg", "more", "round"]


def test_a_folder_that_cannot_be_listed_ends_the_listing(tmp_path):
    # Nobody can list a path over 4,096 bytes long, not even root.
    home = os.open(".", os.O_RDONLY)
    try:
        os.chdir(tmp_path)
        for _ in range(20):
            os.mkdir("x" * 250)
            os.chdir("x" * 250)
        Path("a.jpg").touch()
    finally:
        os.chdir(home)
        os.close(home)
    assert "cannot be listed: File name too long" in refusal(tmp_path)


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


def test_a_zip_member_without_a_real_date_has_no_time(tmp_path):
    make_zip(tmp_path / "a.zip", ["a.jpg"])
    data = (tmp_path / "a.zip").read_bytes()
    entry = data.index(b"PK\x01\x02")
    (tmp_path / "a.zip").write_bytes(data[: entry + 14] + bytes(2) + data[entry + 16 :])
    assert listed(tmp_path / "a.zip")["a.jpg"].mtime is None


def test_a_single_image_is_a_source_with_size_and_time(tmp_path):
    make_folder(tmp_path, ["bridge #7.JPG"])
    [file] = list_source(str(tmp_path / "bridge #7.JPG"))
    assert (file.path, file.size) == ("bridge #7.JPG", len(bytes_of("bridge #7.JPG")))
    assert file.mtime is not None
    assert read(file.uri) == bytes_of("bridge #7.JPG")


def test_a_tar_of_the_current_folder_has_the_paths_of_the_folder(tmp_path):
    make_folder(tmp_path / "survey", ["normal/a.jpg"])
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(tmp_path / "survey", ".")  # tar -C survey -cf a.tar .
    files = listed(tmp_path / "a.tar")
    assert list(files) == ["normal/a.jpg"]
    assert read(files["normal/a.jpg"].uri) == bytes_of("normal/a.jpg")


def test_members_that_point_out_of_an_archive_are_read_in_place(tmp_path):
    make_folder(tmp_path, ["secret.jpg"])
    paths = ["../secret.jpg", str(tmp_path / "secret.jpg"), "x//y.jpg"]
    for source in (make_zip(tmp_path / "in.zip", paths), make_tar(tmp_path / "in.tar", paths)):
        uris = [file.uri for file in list_source(str(source))]
        assert [read(uri) for uri in uris] == [bytes_of(path) for path in paths]


def test_links_and_devices_in_a_tar_are_listed(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, kind, target in (
            ("soft.jpg", tarfile.SYMTYPE, "real.jpg"),
            ("lost.jpg", tarfile.SYMTYPE, "nowhere.jpg"),
            ("fifo.jpg", tarfile.FIFOTYPE, ""),
            ("folder.jpg", tarfile.DIRTYPE, ""),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            archive.addfile(member)
        real = tarfile.TarInfo("real.jpg")
        real.size = 4
        archive.addfile(real, io.BytesIO(b"real"))
        hard = tarfile.TarInfo("hard.jpg")
        hard.type, hard.linkname = tarfile.LNKTYPE, "real.jpg"
        archive.addfile(hard)
    files = listed(tmp_path / "a.tar")
    assert sorted(files) == ["fifo.jpg", "hard.jpg", "lost.jpg", "real.jpg", "soft.jpg"]
    assert {read(files[name].uri) for name in ("real.jpg", "hard.jpg", "soft.jpg")} == {b"real"}
    assert failure(files["fifo.jpg"].uri) == (Status.UNREADABLE, "is no regular file")
    assert failure(files["lost.jpg"].uri) == (Status.UNREADABLE, "the archive has no such member")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_of_two_members_of_one_name_both_are_listed_and_the_later_is_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.jpg", b"early")
        archive.writestr("a.jpg", b"late")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for data in (b"early", b"late"):
            member = tarfile.TarInfo("a.jpg")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    for name in ("a.zip", "a.tar"):
        files = list(list_source(str(tmp_path / name)))
        assert len(files) == 2
        assert {file.size for file in files} == {4}
        assert {read(file.uri) for file in files} == {b"late"}


def test_an_encrypted_member_is_unreadable(tmp_path):
    data = bytearray(make_zip(tmp_path / "a.zip", ["a.jpg"]).read_bytes())
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + flags] |= 1
    (tmp_path / "a.zip").write_bytes(data)
    status, message = failure(listed(tmp_path / "a.zip")["a.jpg"].uri)
    assert status == Status.UNREADABLE
    assert "encrypted" in message


def test_a_member_with_a_wrong_checksum_is_unreadable_and_its_neighbour_is_not(tmp_path):
    data = make_zip(tmp_path / "a.zip", ["a.jpg", "b.jpg"]).read_bytes()
    (tmp_path / "a.zip").write_bytes(data.replace(bytes_of("a.jpg"), bytes_of("A.jpg")))
    files = listed(tmp_path / "a.zip")
    status, message = failure(files["a.jpg"].uri)
    assert status == Status.UNREADABLE
    assert "CRC" in message
    assert read(files["b.jpg"].uri) == bytes_of("b.jpg")


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz"])
@pytest.mark.parametrize("data", [b"", b"no archive, but a text\n" * 99, b"\x1f\x8b", b"PK\x03\x04"])
def test_what_is_no_archive_is_refused_with_its_name(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    assert f"/{name}: cannot be read as an archive: " in refusal(tmp_path / name)


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz"])
def test_an_archive_is_listed_whole_or_refused_wherever_it_was_cut(tmp_path, name):
    paths = [f"{index}.jpg" for index in range(6)]
    data = MAKERS[name](tmp_path / name, paths).read_bytes()
    if name == "a.tar":
        data = data[: 6 * 1024]  # what follows is filling
    for cut in sorted(random.Random(0).sample(range(len(data)), 60)):
        if cut % 1024 == 0 and name == "a.tar":
            continue  # a whole, shorter archive
        (tmp_path / name).write_bytes(data[:cut])
        try:
            found = sorted(listed(tmp_path / name))
        except InputError:
            continue
        assert found == paths


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_a_damaged_header_within_a_tar_is_refused_and_hides_no_members(tmp_path, name):
    data = bytearray(make_tar(tmp_path / "a.tar", ["a.jpg", "b.jpg", "c.jpg"]).read_bytes())
    data[1024 + 150] ^= 0xFF  # in the checksum of b.jpg
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert "cannot be read as an archive: " in refusal(tmp_path / name)


def test_a_tar_under_the_wrong_suffix_is_read_all_the_same(tmp_path):
    make_tar(tmp_path / "a.tar", ["a.jpg"]).rename(tmp_path / "a.tgz")
    make_tar(tmp_path / "b.tgz", ["b.jpg"]).rename(tmp_path / "b.tar")
    assert list(listed(tmp_path / "a.tgz")) == ["a.jpg"]
    assert list(listed(tmp_path / "b.tar")) == ["b.jpg"]


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


def test_a_reader_closes_its_archives(tmp_path):
    [file] = list_source(str(make_zip(tmp_path / "a.zip", ["a.jpg"])))
    before = os.listdir("/proc/self/fd")
    with Reader() as reader:
        reader.read(file.uri, 1000)
        reader.read(file.uri, 1000)
        assert len(os.listdir("/proc/self/fd")) == len(before) + 1
    assert os.listdir("/proc/self/fd") == before


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
