import gzip
import io
import os
import random
import tarfile
import zipfile

import pytest
from dataset.places import MAKERS, bytes_of, failure, listed, make_folder, make_tar, make_zip, read, refusal

from crackvae.dataset import reader
from crackvae.dataset.reader import Reader
from crackvae.dataset.sources import list_source, open_archive
from crackvae.errors import ImageError, InputError
from crackvae.schema import Status


def test_a_zip_member_without_a_real_date_has_no_time(tmp_path):
    make_zip(tmp_path / "a.zip", ["a.jpg"])
    data = (tmp_path / "a.zip").read_bytes()
    entry = data.index(b"PK\x01\x02")
    (tmp_path / "a.zip").write_bytes(data[: entry + 14] + bytes(2) + data[entry + 16 :])
    assert listed(tmp_path / "a.zip")["a.jpg"].mtime is None


def test_a_tar_of_the_current_folder_has_the_paths_of_the_folder(tmp_path):
    make_folder(tmp_path / "survey", ["normal/a.jpg"])
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(tmp_path / "survey", ".")  # tar -C survey -cf a.tar .
    files = listed(tmp_path / "a.tar")
    assert list(files) == ["normal/a.jpg"]
    assert read(files["normal/a.jpg"].uri) == bytes_of("normal/a.jpg")


def test_members_that_point_out_of_an_archive_are_read_in_place_and_named_inside_it(tmp_path):
    make_folder(tmp_path, ["secret.jpg"])
    paths = ["../secret.jpg", "/in.jpg", "//b.jpg", "x//y.jpg", "a/../../z/../c.jpg", "..", "/"]
    names = ["secret.jpg", "in.jpg", "b.jpg", "x/y.jpg", "c.jpg", ""]
    for source in (make_zip(tmp_path / "in.zip", paths[:-1]), make_tar(tmp_path / "in.tar", paths[:-1])):
        files = list(list_source(str(source)))
        assert [read(file.uri) for file in files] == [bytes_of(path) for path in paths[:-1]]
        assert [file.path for file in files] == names


@pytest.mark.timeout(30)
@pytest.mark.parametrize("size", [-512, -1024])
@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_a_tar_that_leads_back_to_where_it_was_is_refused(tmp_path, name, size):
    """CVE-2025-8194: Python 3.11.7 would list it for ever."""
    data = bytearray(make_tar(tmp_path / "a.tar", ["a.jpg", "b.jpg"]).read_bytes())
    second = 1024
    data[second + 124 : second + 136] = b"\xff" + (2**88 + size).to_bytes(11, "big")
    data[second + 148 : second + 156] = b" " * 8
    data[second + 148 : second + 156] = b"%06o\0 " % sum(data[second : second + 512])
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert "cannot be read as an archive: negative size" in refusal(tmp_path / name)


def test_a_link_that_leads_to_itself_is_unreadable(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, target in (("a.jpg", "b.jpg"), ("b.jpg", "a.jpg")):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            archive.addfile(member)
    for file in list_source(str(tmp_path / "a.tar")):
        assert failure(file.uri) == (Status.UNREADABLE, "a link that leads to itself")


def test_an_archive_that_is_damaged_is_read_once_and_not_for_every_member(tmp_path, monkeypatch):
    files = list(list_source(str(make_zip(tmp_path / "a.zip", ["a.jpg", "b.jpg"]))))
    (tmp_path / "a.zip").write_bytes(b"no archive")
    opened = []
    monkeypatch.setattr(reader, "open_archive", lambda uri: opened.append(uri) or open_archive(uri))
    with Reader() as reading:
        messages = []
        for file in files:
            with pytest.raises(ImageError) as caught:
                reading.read(file.uri, 1000)
            messages.append(caught.value.message)
    assert messages == ["BadZipFile: File is not a zip file"] * 2
    assert len(opened) == 1


def test_an_archive_that_was_away_is_read_when_it_is_back(tmp_path):
    [file] = list_source(str(make_zip(tmp_path / "a.zip", ["a.jpg"])))
    (tmp_path / "a.zip").rename(tmp_path / "away.zip")
    with Reader() as reader:
        with pytest.raises(ImageError, match="No such file or directory"):
            reader.read(file.uri, 1000)
        (tmp_path / "away.zip").rename(tmp_path / "a.zip")
        assert reader.read(file.uri, 1000) == bytes_of("a.jpg")


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


def test_a_member_that_ends_before_it_should_is_unreadable(tmp_path):
    data = bytearray(make_zip(tmp_path / "a.zip", ["a.jpg"]).read_bytes())
    sizes = data.index(b"PK\x01\x02") + 20
    data[sizes : sizes + 8] = (2**31).to_bytes(4, "little") * 2
    (tmp_path / "a.zip").write_bytes(data)
    assert failure(listed(tmp_path / "a.zip")["a.jpg"].uri) == (Status.UNREADABLE, "EOFError")


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


def test_a_reader_closes_its_archives(tmp_path):
    [file] = list_source(str(make_zip(tmp_path / "a.zip", ["a.jpg"])))
    before = os.listdir("/proc/self/fd")
    with Reader() as reader:
        reader.read(file.uri, 1000)
        reader.read(file.uri, 1000)
        assert len(os.listdir("/proc/self/fd")) == len(before) + 1
    assert os.listdir("/proc/self/fd") == before
