import cv2
import numpy as np
import pytest

from crackvae.images import appearance


def _cells(gray_HW, chroma=(128, 128)):
    return appearance.cells(gray_HW, np.full((32, 32, 2), chroma, np.uint8))


def _noise(sigma, size=256):
    return np.clip(np.random.default_rng(0).normal(120, sigma, (size, size)), 0, 255).astype(np.uint8)


def test_brightness_and_color_are_means_of_the_cell():
    gray_HW = np.repeat(np.arange(16, dtype=np.uint8) * 10, 16)[None].repeat(256, axis=0)
    feature_hwF = _cells(gray_HW, (100, 140))
    np.testing.assert_allclose(feature_hwF[3, :, 0], np.arange(16) * 10)
    assert (feature_hwF[..., 3:] == (100, 140)).all()


def test_twice_the_texture_is_an_octave_more_and_a_blur_takes_the_fine_one():
    weak, strong = (_cells(_noise(sigma))[..., 1:3].mean(axis=(0, 1)) for sigma in (8, 16))
    np.testing.assert_allclose(strong - weak, 1, atol=0.2)
    blurred = _cells(cv2.GaussianBlur(_noise(16), (0, 0), 4))[..., 1:3].mean(axis=(0, 1))
    assert strong[0] - blurred[0] > 3
    assert strong[1] - blurred[1] < 1.5


def test_strips_of_a_tall_image_join_without_a_seam():
    tall_HW = np.concatenate([_noise(10, 1024), _noise(10, 1024)[:512]])
    whole = appearance.cells(tall_HW, np.full((4, 4, 2), 128, np.uint8))
    part = appearance.cells(tall_HW[512:], np.full((4, 4, 2), 128, np.uint8))
    np.testing.assert_allclose(whole[40:], part[8:], rtol=1e-5)


def test_a_crack_hardly_changes_the_features_of_its_tile():
    sound_HW = _noise(10)
    cracked_HW = cv2.line(sound_HW.copy(), (0, 40), (255, 200), 20, 12)
    tiles = [appearance.of_tiles(_cells(x_HW), x_HW.shape, 128, 0) for x_HW in (sound_HW, cracked_HW)]
    assert np.abs(tiles[1] - tiles[0]).max(axis=0)[0] < 3  # gray levels; their mean falls by 8
    assert np.abs(tiles[1] - tiles[0]).max(axis=0)[1:3].max() < 0.35  # octaves


def test_the_looks_are_those_of_what_is_judged():
    photo_HW = np.concatenate([_noise(10), np.full((256, 256), 250, np.uint8)], axis=1)  # half of it is sky
    feature_NF = appearance.of_tiles(_cells(photo_HW), photo_HW.shape, 128, 0)
    judged_N = np.tile([True, True, False, False], 2)
    judged_hw = np.zeros((128, 256), np.bool_)
    judged_hw[:, :128] = True
    part = appearance.looks(photo_HW, feature_NF[judged_N], judged_hw)
    alone = appearance.looks(_noise(10), feature_NF[judged_N])
    assert part == alone
    np.testing.assert_allclose([part["brightness"], part["contrast"]], [120, 10], atol=0.5)
    assert appearance.looks(photo_HW, feature_NF)["contrast"] > 50


def test_the_looks_of_a_tile_are_those_of_a_photograph_of_one_tile():
    tile_SS = cv2.GaussianBlur(_noise(60), (0, 0), 3)[:128, :128].copy()
    gray_hw2 = np.full((1, 1, 2), 128, np.uint8)
    feature_NF = appearance.of_tiles(appearance.cells(tile_SS, gray_hw2), tile_SS.shape, len(tile_SS), 0)
    looks = appearance.looks_of_tiles(np.stack([_noise(10)[:128, :128], tile_SS]))
    second = {name: value_N[1] for name, value_N in looks.items()}
    assert second == pytest.approx(appearance.looks(tile_SS, feature_NF), abs=0.02)
    assert np.isfinite(list(appearance.looks_of_tiles(_noise(10)[None, :32, :32].copy()).values())).all()
