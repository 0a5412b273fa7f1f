"""Valid files with a few bytes changed: whatever they become, it is one row, and nothing ends.

A change that a format has no checksum for may decode to other pixels: nothing is said about those.
"""

from __future__ import annotations

import contextlib
import random
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from faults import bad_input
from faults.corpus import archives

from crackvae.cluster import scoring
from crackvae.config import ImageConfig
from crackvae.dataset import manifest
from crackvae.dataset.decoder import Decoder
from crackvae.dataset.reader import Reader
from crackvae.dataset.sources import list_source
from crackvae.errors import ImageError, InputError
from crackvae.run import finalize
from crackvae.schema import Status

LIMITS = ImageConfig(tile_size=32, max_seconds=20)
WHOLE = {
    name: data
    for kind in bad_input.pixels.KINDS + bad_input.tiffs.KINDS
    for name, data in kind.files.items()
    if len(data) < 10**5
}
SPECIAL = (b"\0", b"\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\xff", b"\x80\0\0\0", b"\0\0\0\0", b"\xff\xd8\xff")


def changed(data: bytes, rng: random.Random) -> bytes:
    """A file with one to eight changes, half of them in its first 300 bytes."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 8))):
        start = rng.randrange(min(len(changed), 300) if rng.random() < 0.5 else len(changed))
        length = min(rng.choice((1, 2, 4, 16, 64, 512)), len(changed) - start)
        match rng.randrange(7):
            case 0:
                changed[start] ^= 1 << rng.randrange(8)
            case 1:
                changed[start : start + length] = rng.randbytes(length)
            case 2:
                changed[start : start + length] = bytes([rng.choice((0, 255))]) * length
            case 3:
                del changed[start : start + length]
            case 4:
                changed[start:start] = rng.randbytes(length)
            case 5:
                changed[start:start] = changed[start : start + length]
            case 6:
                special = rng.choice(SPECIAL)
                changed[start : start + len(special)] = special
        if not changed:
            break
    return bytes(changed)


def write(folder: Path, whole: dict[str, bytes], count: int, seed: int) -> None:
    """Writes so many changed files; their names tell from which and in what order they were made."""
    rng = random.Random(seed)
    folder.mkdir(parents=True)
    for index in range(count):
        name = rng.choice(sorted(whole))
        path = Path(name)
        (folder / f"{index:04d}-{path.parent.name}{path.name}").write_bytes(changed(whole[name], rng))


def check(names: list[str], rows: list[dict]) -> None:
    """One row a file, each with a status that is known, and a reason where it has no score."""
    assert [row["image_id"] for row in rows] == names
    assert {row["status"] for row in rows} >= {Status.OK, Status.UNDECODABLE}
    for row in rows:
        message = row["message"]
        assert Status(row["status"]) != Status.UNREADABLE
        if row["status"] == Status.OK:
            assert message is None
            assert 0 <= row["darkness"] <= 255
        else:
            assert message
            assert message == message.strip()
            assert message.isprintable()
            assert len(message) < 300
            assert row["darkness"] is None
        if row["status"] == Status.CRASHED:  # contained; but no defect of ours
            assert message.startswith(("took over", "needs more", "out of memory", "the decoder was ended by"))


def decode(folder: Path) -> list[dict]:
    table, _ = manifest.build([str(folder)])
    with Decoder(LIMITS) as decoder:
        tiles_NSS, part = decoder.read(table)
    rows = part.to_pylist()
    failed_N = np.array([row["status"] != Status.OK for row in rows])
    assert not tiles_NSS[failed_N].any()
    return rows


def score(folder: Path, model: str, out: Path) -> list[dict]:
    outcome = scoring.score(model, [str(folder)], str(out))
    return finalize.read_results(outcome.run).to_pylist()


def test_changed_files_of_every_format_are_one_row_each(tmp_path):
    write(tmp_path / "survey", WHOLE, 200, seed=1)
    check(sorted(path.name for path in (tmp_path / "survey").iterdir()), decode(tmp_path / "survey"))


@pytest.fixture(scope="module")
def photographs(real_data):
    """Real photographs, of several cameras."""
    paths = [
        *sorted((real_data / "drone-gps").glob("*.JPG"))[:3],
        *sorted((real_data / "sdnet2018-decks").glob("*.jpg"))[:2],
    ]
    with zipfile.ZipFile(real_data / "metu-concrete-20k.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))[::999]
        return {path.name: path.read_bytes() for path in paths} | {Path(n).name: archive.read(n) for n in names}


def test_changed_photographs_are_one_row_each(photographs, tmp_path):
    write(tmp_path / "survey", photographs, 60, seed=2)
    check(sorted(path.name for path in (tmp_path / "survey").iterdir()), decode(tmp_path / "survey"))


@pytest.mark.faults
@pytest.mark.ray
@pytest.mark.timeout(1800)
def test_a_job_of_2000_changed_files_ends_with_2000_rows(model, tmp_path, ray_session):
    write(tmp_path / "survey", WHOLE, 2000, seed=3)
    names = sorted(path.name for path in (tmp_path / "survey").iterdir())
    check(names, score(tmp_path / "survey", str(model), tmp_path / "run"))


@pytest.mark.faults
@pytest.mark.ray
@pytest.mark.timeout(1800)
def test_a_job_of_500_changed_photographs_ends_with_500_rows(photographs, model, tmp_path, ray_session):
    write(tmp_path / "survey", photographs, 500, seed=4)
    names = sorted(path.name for path in (tmp_path / "survey").iterdir())
    check(names, score(tmp_path / "survey", str(model), tmp_path / "run"))


ARCHIVES = {**archives.READ, "links.tar": archives.LINKS}


def refusal(call) -> str | None:
    """The message of an InputError, or None where there is none."""
    try:
        call()
    except InputError as error:
        return str(error)
    return None


def read_all(archive: Path) -> None:
    files = list(list_source(str(archive)))
    with Reader() as reader:
        for file in files:
            with contextlib.suppress(ImageError):
                reader.read(file.uri, 10**6)


def check_refusals(refused: list[str | None], told: str) -> None:
    """Some were refused, in one line, and some were not."""
    assert {message is None for message in refused} == {True, False}
    assert all(told in message and "\n" not in message for message in refused if message)


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.faults)])
def test_a_changed_archive_is_refused_or_each_member_read_or_unreadable(count, tmp_path):
    write(tmp_path / "archives", ARCHIVES, count, seed=count)
    refused = [refusal(partial(read_all, path)) for path in sorted((tmp_path / "archives").iterdir())]
    check_refusals(refused, ": cannot be read as an archive: ")


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.faults)])
def test_a_changed_table_is_refused_or_indexed(count, tmp_path):
    uris = [f"file:///{name}.jpg" for name in "abcdefgh"]
    (tmp_path / "b.csv").write_text("uri,label,group\n" + "\n".join(f'"{uri}",crack,1' for uri in uris))
    manifest.write(manifest.build([str(tmp_path / "b.csv")])[0], str(tmp_path / "a.parquet"))
    write(tmp_path / "tables", {n: (tmp_path / n).read_bytes() for n in ("a.parquet", "b.csv")}, count, seed=count)
    refused = [refusal(partial(manifest.build, [str(path)])) for path in sorted((tmp_path / "tables").iterdir())]
    check_refusals(refused, ": ")
