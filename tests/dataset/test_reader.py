import os
from contextlib import suppress
from pathlib import Path

import pytest

from crackvae import storage
from crackvae.dataset.reader import Reader
from crackvae.errors import ImageError


def write(folder, names):
    """Files that hold their names: URI and size of each."""
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_bytes(name.encode())
    return [(storage.to_uri(str(folder / name)), len(name)) for name in names]


def held(folder):
    """Which files of a folder this process has open."""
    names = set()
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # that of the listing itself, and what has no path
            names.add(os.readlink(entry))
    return {os.path.basename(name) for name in names if os.path.dirname(name) == str(folder)}


def outcome(reader, uri):
    try:
        return reader.read(uri, 1000).decode()
    except ImageError as error:
        return error.message


def test_files_that_are_expected_come_as_they_would_alone(tmp_path):
    names = [f"{number:03d}.jpg" for number in range(40)]
    files = write(tmp_path / "a", names)
    os.mkfifo(tmp_path / "a" / "pipe")
    strange = [storage.to_uri(str(tmp_path / "a" / name)) for name in ("missing", "pipe", "")]
    files[3:3] = [(uri, None) for uri in strange]
    files.append(files[0])  # and once more
    with Reader() as reader, Reader() as alone:
        reader.expect(files)
        assert [outcome(reader, uri) for uri, _ in files] == [outcome(alone, uri) for uri, _ in files]
        assert outcome(reader, files[5][0]) == outcome(alone, files[5][0])
    assert not held(tmp_path / "a")


def test_a_few_files_are_opened_before_they_are_asked_for_and_let_go(tmp_path):
    first, second = write(tmp_path / "a", [f"{n}" for n in range(100)]), write(tmp_path / "b", ["x", "y"])
    with Reader() as reader:
        reader.expect(first)
        for number, (uri, _) in enumerate(first[:50]):
            reader.read(uri, 1000)
            assert held(tmp_path / "a") == {f"{n}" for n in range(number + 1, number + 17)}
        reader.expect(second)
        assert not held(tmp_path / "a")
        assert reader.read(second[0][0], 1000) == b"x"
        assert held(tmp_path / "b") == {"y"}
    assert not held(tmp_path / "b")


@pytest.mark.parametrize(("megabytes", "ahead"), [(15, {"2", "3"}), (30, {"2"}), (40, set())])
def test_of_large_files_fewer_are_on_their_way(tmp_path, megabytes, ahead):
    files = [(uri, megabytes * 10**6) for uri, _ in write(tmp_path / "a", ["1", "2", "3", "4"])]
    with Reader() as reader:
        reader.expect(files)
        reader.read(files[0][0], 1000)
        assert held(tmp_path / "a") == ahead


@pytest.mark.parametrize("change", [Path.unlink, lambda path: path.write_bytes(b"longer than it was")])
def test_a_file_that_changes_while_it_is_on_its_way_is_read_once(tmp_path, change):
    files = write(tmp_path / "a", ["1", "2", "3"])
    with Reader() as reader:
        reader.expect(files)
        reader.read(files[0][0], 1000)
        change(tmp_path / "a" / "2")
        assert outcome(reader, files[1][0]) in ("2", "longer than it was")
        assert outcome(reader, files[2][0]) == "3"
