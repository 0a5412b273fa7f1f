import cv2
import numpy as np
import pytest

from crackvae.images import evidence, tile
from crackvae.images.evidence import STEP, Scale

SIDE = 200


def rough(seed, side=SIDE, contrast=10):
    noise_HW = np.random.default_rng(seed).standard_normal((side, side)).astype(np.float32)
    noise_HW = cv2.GaussianBlur(noise_HW, (0, 0), 1.2)
    return np.clip(150 + contrast * noise_HW / noise_HW.std(), 0, 255).astype(np.uint8)


def sigma_of(gray_HW, level=10.0):
    return np.full(gray_HW.shape, level, np.float16)


@pytest.fixture(scope="module")
def scale():
    return evidence.learn([(rough(seed), sigma_of(rough(seed))) for seed in range(8)])


def evidence_of(gray_HW, scale, judged_hw=None, sigma=10.0):
    return evidence.find_lines(gray_HW, sigma_of(gray_HW, sigma), scale, judged_hw)[0]


def line(gray_HW, start, end, depth=30, width=3):
    mask_HW = cv2.line(np.zeros_like(gray_HW), start, end, 255, width, cv2.LINE_AA)
    return np.clip(gray_HW - depth * (mask_HW / 255), 0, 255).astype(np.uint8)


def test_sound_places_have_little_evidence(scale):
    evidence_hw = evidence_of(rough(99), scale)
    assert evidence_hw.shape == (SIDE // STEP, SIDE // STEP)
    assert evidence_hw.min() >= 0
    assert np.quantile(evidence_hw, 0.99) < 60


@pytest.mark.parametrize("end", [(180, 100), (180, 180), (100, 180), (20, 180), (180, 60), (140, 180)])
def test_a_line_has_more_evidence_than_anything_sound_whatever_its_direction(scale, end):
    start = (SIDE - end[0], SIDE - end[1])
    gray_HW = line(rough(5), start, end)
    evidence_hw = evidence_of(gray_HW, scale)
    sound_hw = evidence_of(rough(5), scale)
    on_line_hw = cv2.line(np.zeros_like(evidence_hw), tuple(v // 2 for v in start), tuple(v // 2 for v in end), 1) > 0
    assert np.median(evidence_hw[on_line_hw]) > 1.3 * sound_hw.max()


def test_a_long_line_has_more_evidence_than_a_short_one(scale):
    def peak(reach):
        gray_HW = line(rough(3), (100 - reach, 100), (100 + reach, 100))
        return evidence_of(gray_HW, scale)[45:55, 45:55].max()

    assert peak(80) > 1.3 * peak(12)


def test_a_bright_line_has_less_evidence_than_a_dark_one(scale):
    dark, bright = (evidence_of(line(rough(3), (20, 100), (180, 100), depth), scale) for depth in (30, -30))
    assert bright[40:60, 20:80].max() < 0.85 * dark[40:60, 20:80].max()


def test_nothing_beyond_what_sound_concrete_has_shown_is_excused():
    scale = Scale(roughness=5, noise=1, level=1, spread=1, wide_roughness=5, wide_answer=20)
    gray_HW = line(rough(4), (20, 100), (180, 100))
    very_hw, just_hw = (evidence_of(gray_HW, scale, sigma=level) for level in (50, 8))
    np.testing.assert_array_equal(very_hw, just_hw)


def test_what_is_not_judged_has_no_evidence_and_lends_none(scale):
    gray_HW = line(rough(6), (0, 100), (120, 100))
    judged_hw = np.ones((SIDE // STEP, SIDE // STEP), np.bool_)
    judged_hw[:, :70] = False
    evidence_hw = evidence_of(gray_HW, scale, judged_hw)
    assert not evidence_hw[:, :70].any()
    lent_hw = evidence_of(gray_HW, scale)
    assert evidence_hw[50, 70:].max() < lent_hw[50, 70:].max()


@pytest.mark.parametrize("width", [16, 30])
def test_a_wide_line_is_found_by_its_whole_width_and_a_wide_spot_is_not(scale, width):
    sound, wide = rough(5, side=400), line(rough(5, side=400), (0, 150), (399, 260), depth=60, width=width)
    spot = line(rough(5, side=400), (200, 200), (204, 201), depth=60, width=width)
    most = [evidence._wide_lines(gray_HW, sigma_of(gray_HW), scale, None).max() for gray_HW in (sound, spot, wide)]
    assert most[0] < 2
    assert most[2] > max(10, 1.5 * most[1])
    assert evidence_of(wide, scale).max() > evidence_of(sound, scale).max() + 10


def test_the_strips_of_a_photograph_leave_no_trace(scale, monkeypatch):
    gray_HW = rough(8, side=301)
    whole_hw = evidence_of(gray_HW, scale)
    monkeypatch.setattr(tile, "_STRIP", 64)
    np.testing.assert_allclose(evidence_of(gray_HW, scale), whole_hw, rtol=1e-3, atol=1e-2)


def test_learning_takes_the_caps_from_the_normals(scale):
    assert scale.roughness == pytest.approx(10, rel=0.1)  # sigma and contrast are 10
    sigmas = [np.full((SIDE, SIDE), level, np.float16) for level in (5, 50)]
    lower, higher = (evidence.learn([(rough(seed), sigma_HW) for seed in range(3)]) for sigma_HW in sigmas)
    assert lower.roughness < scale.roughness < higher.roughness
    assert lower.noise > scale.noise > higher.noise
