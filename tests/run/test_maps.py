"""Maps that a run keeps until its pictures are drawn."""

import shutil

import numpy as np
import pytest

from crackvae.run import maps

LIMIT = 65.0


@pytest.fixture
def map_hw():
    return np.random.default_rng(0).gamma(2, 20, (60, 80)).astype(np.float32)


def test_a_map_comes_back_to_a_256th_of_its_limit(tmp_path, map_hw):
    judged_hw = np.ones((60, 80), np.bool_)
    judged_hw[:10] = False
    maps.keep(str(tmp_path), "a/b.jpg", map_hw, judged_hw, LIMIT)
    found_hw, found_judged_hw = maps.kept(str(tmp_path), "a/b.jpg", LIMIT)
    np.testing.assert_array_equal(found_judged_hw, judged_hw)
    within_hw = judged_hw & (map_hw > LIMIT / 128) & (map_hw < 1.99 * LIMIT)
    np.testing.assert_allclose(found_hw[within_hw], map_hw[within_hw], atol=LIMIT / 256 + 1e-4)
    assert (found_hw[judged_hw & (map_hw > 2 * LIMIT)] > 1.98 * LIMIT).all()


def test_what_is_not_there_or_damaged_is_none(tmp_path, map_hw):
    assert maps.kept(str(tmp_path), "a.jpg", LIMIT) is None
    maps.keep(str(tmp_path), "a.jpg", map_hw, np.ones(map_hw.shape, np.bool_), LIMIT)
    [path] = (tmp_path / maps.MAPS).iterdir()
    assert maps.kept(str(tmp_path), "b.jpg", LIMIT) is None
    whole = path.read_bytes()
    cut_header = whole[:8] + b"\0\0\0\x05" + whole[12:]
    for data in (whole[:20], b"", cut_header):
        path.write_bytes(data)
        assert maps.kept(str(tmp_path), "a.jpg", LIMIT) is None


@pytest.mark.parametrize("limit", [LIMIT, 0.0])
def test_a_map_that_cannot_be_kept_is_no_error(tmp_path, map_hw, limit):
    (tmp_path / maps.MAPS).write_text("in the way")
    maps.keep(str(tmp_path), "a.jpg", map_hw, np.ones(map_hw.shape, np.bool_), limit)
    assert maps.kept(str(tmp_path), "a.jpg", LIMIT) is None


def test_maps_that_cannot_be_removed_are_no_error(tmp_path, map_hw, monkeypatch):
    maps.remove(str(tmp_path))
    maps.keep(str(tmp_path), "a.jpg", map_hw, np.ones(map_hw.shape, np.bool_), LIMIT)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_: (_ for _ in ()).throw(FileNotFoundError))
        maps.remove(str(tmp_path))
    assert maps.kept(str(tmp_path), "a.jpg", LIMIT) is not None
    maps.remove(str(tmp_path))
    assert not (tmp_path / maps.MAPS).exists()


def test_maps_of_large_photographs_in_the_first_shards_are_kept():
    assert maps.is_kept(0, 16_000_000)
    assert not maps.is_kept(0, 227 * 227)
    assert not maps.is_kept(64, 16_000_000)
