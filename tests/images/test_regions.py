"""Regions of made-up photographs; `measure` also makes the tables of docs/photographs.md."""

import zipfile

import cv2
import numpy as np
import pandas as pd
import pytest

from crackvae.images import lines, synthetic
from crackvae.images.evidence import STEP, find_lines, learn
from crackvae.images.regions import LENGTH_ERROR, WIDTH_ERROR, find_regions, in_millimetres

SIDE = 400
WIDTHS = (1, 1.5, 2, 3, 4, 6, 8, 12, 16, 20)
OVERSAMPLING = 8
LIMIT = 70.0  # of the evidence; that of sound scenes stays below 64


def ribbon(canvas, path_N2, width):
    """Fills a band with flat ends around a path (x, y) in pixels."""
    tangent_N2 = np.gradient(path_N2, axis=0)
    normal_N2 = tangent_N2[:, ::-1] * (-1, 1) / np.linalg.norm(tangent_N2, axis=1, keepdims=True)
    reach_N2 = (width - 1 / OVERSAMPLING) / 2 * normal_N2  # OpenCV also fills the outline itself
    ring = (np.concatenate([path_N2 + reach_N2, (path_N2 - reach_N2)[::-1]]) + 0.5) * OVERSAMPLING - 0.5
    cv2.fillPoly(canvas, [np.rint(ring * 16).astype(np.int32)], 255, cv2.LINE_8, 4)


def length_of(path_N2):
    return np.linalg.norm(np.diff(path_N2, axis=0), axis=1).sum()


def paths_of(rng, kind):
    """The paths of a crack anywhere near the middle, in any direction."""
    along_N = np.linspace(-0.5, 0.5, 400) * rng.uniform(160, 240)
    bend = {"straight": 0, "curved": 0.7, "branching": 0.2}[kind]
    turn_N = np.interp(along_N, np.linspace(along_N[0], along_N[-1], 8), rng.uniform(-bend, bend, 8))
    turn_N = cv2.GaussianBlur(turn_N[None], (0, 0), 15)[0] + rng.uniform(0, 2 * np.pi)
    trunk_N2 = np.cumsum(np.column_stack([np.cos(turn_N), np.sin(turn_N)]), axis=0) * (along_N[1] - along_N[0])
    trunk_N2 += SIDE / 2 + rng.uniform(-10, 10, 2) - trunk_N2.mean(axis=0)
    if kind != "branching":
        return [trunk_N2]
    fork = rng.integers(130, 270)
    angle = turn_N[fork] + rng.choice((-1, 1)) * rng.uniform(0.7, 1.4)
    reach_N1 = np.linspace(0, rng.uniform(80, 120), 200)[:, None]
    return [trunk_N2, trunk_N2[fork] + reach_N1 * (np.cos(angle), np.sin(angle))]


def scene(rng, kind, surface, width, depth):
    """A photograph of a crack, the sigma of sound concrete in its place, and the crack's length."""
    paths = paths_of(rng, kind)
    canvas = np.zeros((SIDE * OVERSAMPLING,) * 2, np.uint8)
    for path_N2 in paths:
        ribbon(canvas, path_N2, width)
    mask_HW = cv2.resize(canvas, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    if surface == "noise":
        sound_HW = np.full((SIDE, SIDE), rng.uniform(150, 200), np.float32)
    else:
        sound_HW = synthetic._surface(rng, SIDE, SIDE, rng.uniform(-np.pi, np.pi))
    expected_HW = cv2.GaussianBlur(sound_HW, (0, 0), 4) + rng.uniform(-4, 4)
    gray_HW = synthetic._expose(rng, sound_HW - depth * mask_HW)
    residual_HW = synthetic._expose(rng, sound_HW).astype(np.float32) - expected_HW
    sigma_HW = np.sqrt(cv2.GaussianBlur(np.square(residual_HW), (0, 0), 20))
    return gray_HW, sigma_HW.astype(np.float16), sum(map(length_of, paths))


def learnt(surface):
    """The scale of a surface, from scenes without a crack."""
    rngs = [np.random.default_rng([index, len(surface)]) for index in range(8)]
    return learn([scene(rng, "straight", surface, 1, depth=0)[:2] for rng in rngs])


@pytest.fixture(scope="module")
def measured():
    return measure(cracks=2)


def measure(cracks):
    """One row for each crack: its length and width, and those of the longest line found."""
    rows = []
    scales = {surface: learnt(surface) for surface in ("noise", "concrete")}
    for width in WIDTHS:
        for kind in ("straight", "curved", "branching"):
            for surface in ("noise", "concrete"):
                for index in range(cracks):
                    rng = np.random.default_rng([round(10 * width), len(kind), len(surface), index])
                    depth = rng.uniform(20, 120)
                    gray_HW, sigma_HW, length = scene(rng, kind, surface, width, depth)
                    evidence_hw, contrast_HW = find_lines(gray_HW, sigma_HW, scales[surface])
                    found = find_regions(evidence_hw, contrast_HW, gray_HW, limit=LIMIT, most=9)
                    lines = sorted((r.length, r.mean_width) for r in found if r.is_line) or [(np.nan, np.nan)]
                    pieces = sum(line[0] > 0.1 * length for line in lines)
                    rows.append((width, kind, surface, depth, length, pieces, *lines[-1]))
    table = pd.DataFrame(rows, columns="width kind surface depth length pieces found mean_width".split())
    table["length_error"] = table.found / table.length - 1
    table["width_error"] = table.mean_width - table.width
    return table


def summary(table, by):
    whole = table[table.pieces == 1].groupby(by, observed=True)
    every = table.groupby(by, observed=True)
    return pd.DataFrame(
        {
            "cracks": every.size(),
            "in one piece": whole.size() / every.size(),
            "length bias": whole.length_error.mean(),
            "95% of errors": whole.length_error.apply(lambda error: error.abs().quantile(0.95)),
            "width bias": whole.width_error.mean(),
            "95% of errors, px": whole.width_error.apply(lambda error: error.abs().quantile(0.95)),
        }
    ).round(3)


def test_nearly_every_crack_is_one_line(measured):
    plain = measured[measured.depth > 60]
    assert (plain.pieces == 1).mean() > 0.9


def test_lengths_and_widths_are_within_their_stated_errors(measured):
    whole = measured[measured.pieces == 1]
    assert (whole.length_error.abs() < LENGTH_ERROR).mean() > 0.9
    assert (whole.width_error.abs() < WIDTH_ERROR).mean() > 0.93
    wide = whole[whole.width >= 3]
    assert wide.width_error.abs().median() < 0.2
    assert abs(wide.length_error.median()) < 0.02


def photo(*parts, level=160, shape=(300, 400)):
    """Gray levels with rectangles (y, x, level) on them, and those of sound concrete."""
    expected_HW = np.full(shape, level, np.uint8)
    gray_HW = expected_HW.copy()
    for y, x, darker in parts:
        gray_HW[y, x] = level - darker
    return gray_HW, expected_HW


def regions(gray_HW, expected_HW, most=9, evidence_hw=None):
    """Those of a photograph with evidence wherever it is darker by 50 gray levels; sigma is 10."""
    contrast_HW = (expected_HW.astype(np.float32) - gray_HW) / 10
    if evidence_hw is None:
        height, width = (STEP * (side // STEP) for side in gray_HW.shape)
        evidence_hw = 90 * (contrast_HW[:height:STEP, :width:STEP] >= 5).astype(np.float32)
    return find_regions(evidence_hw, contrast_HW, gray_HW, limit=LIMIT, most=most)


def test_a_box_an_outline_and_a_peak_tell_where_a_region_is():
    gray_HW, expected_HW = photo((slice(100, 140), slice(200, 260), 80))
    (region,) = regions(gray_HW, expected_HW)
    assert (region.x, region.y, region.width, region.height) == pytest.approx((200, 100, 60, 40), abs=6)
    xs, ys = np.array(region.outline).T
    assert (xs.min(), ys.min()) == (region.x, region.y)
    assert (xs.max() - xs.min() + 1, ys.max() - ys.min() + 1) == (region.width, region.height)
    assert region.peak == 90
    assert region.area == pytest.approx(60 * 40, rel=0.3)
    assert (region.is_line, region.length, region.mean_width) == (False, None, None)


def test_the_largest_regions_come_first_and_specks_not_at_all():
    bars = [(slice(20 + 60 * i, 40 + 60 * i), slice(50, 100 + 50 * i), 80) for i in range(4)]
    gray_HW, expected_HW = photo(*bars, (slice(280, 282), slice(300, 302), 80))
    found = regions(gray_HW, expected_HW)
    assert [region.width for region in found] == pytest.approx([200, 150, 100, 50], abs=10)
    assert [region.area for region in found] == sorted((region.area for region in found), reverse=True)
    assert regions(gray_HW, expected_HW, most=2) == found[:2]
    assert regions(gray_HW, expected_HW, most=0) == []


def test_a_region_needs_evidence_over_the_limit_somewhere_and_goes_on_without():
    gray_HW, expected_HW = photo((slice(100, 110), slice(0, 400), 40), (slice(200, 210), slice(0, 400), 80))
    evidence_hw = np.zeros((150, 200), np.float32)
    assert regions(gray_HW, expected_HW, evidence_hw=evidence_hw) == []
    evidence_hw[52, 30], evidence_hw[102, 30], evidence_hw[10, 10] = LIMIT + 1, LIMIT - 1, 90
    (region,) = regions(gray_HW, expected_HW, evidence_hw=evidence_hw)
    assert (region.width, region.peak) == (400, LIMIT + 1)
    assert region.y == pytest.approx(100, abs=4)


def test_a_grain_in_a_crack_does_not_break_it():
    bars = (slice(100, 104), slice(0, 200), 80), (slice(100, 104), slice(207, 400), 80)
    (region,) = regions(*photo(*bars))
    assert region.length == pytest.approx(400, rel=0.02)


def test_no_end_is_added_where_a_line_leaves_the_photograph():
    (region,) = regions(*photo((slice(100, 112), slice(0, 400), 80)))
    assert region.length == pytest.approx(400, abs=3)
    (region,) = regions(*photo((slice(100, 112), slice(100, 300), 80)))
    assert region.length == pytest.approx(200, abs=8)


def test_a_bright_line_is_no_region():
    assert regions(*photo((slice(100, 108), slice(50, 350), -80))) == []


def test_a_line_at_an_edge_of_the_photograph_or_all_over_it_has_no_width():
    for rows in (slice(0, 5), slice(0, 300), slice(20, 280)):
        (region,) = regions(*photo((rows, slice(0, 400), 80)))
        assert not region.is_line


def test_a_line_across_strips_is_one():
    (region,) = regions(*photo((slice(100, 2500), slice(60, 66), 80), shape=(2600, 128)))
    assert region.length == pytest.approx(2400, rel=0.01)
    assert region.mean_width == pytest.approx(6, abs=0.3)


def test_a_long_line_is_measured_where_its_box_is_thinned_at_a_lower_resolution(monkeypatch):
    gray_HW = np.full((1000, 1000), 160, np.uint8)
    cv2.line(gray_HW, (100, 100), (900, 800), 80, 5, cv2.LINE_AA)
    (exact,) = regions(gray_HW, np.full_like(gray_HW, 160))
    monkeypatch.setattr(lines, "_MAX_PIXELS", 6e4)
    (coarse,) = regions(gray_HW, np.full_like(gray_HW, 160))
    assert exact.length == pytest.approx(np.hypot(800, 700), rel=0.01)
    assert coarse.length == pytest.approx(exact.length, rel=0.02)
    assert coarse.mean_width == pytest.approx(exact.mean_width, abs=0.3)


def test_a_photograph_of_leaves_stays_bounded_and_gives_the_same_twice():
    noise_HW = np.random.default_rng(0).standard_normal((800, 900), np.float32)
    gray_HW = np.clip(120 + 600 * cv2.GaussianBlur(noise_HW, (0, 0), 4), 0, 255).astype(np.uint8)
    expected_HW = np.full_like(gray_HW, 160)
    found = regions(gray_HW, expected_HW, most=5)
    assert 1 <= len(found) <= 5
    assert max(len(region.outline) for region in found) <= 500
    assert found == regions(gray_HW.copy(), expected_HW, most=5)


def test_millimetres_carry_the_error_of_the_ground_and_of_the_pixels():
    assert in_millimetres(100, 0.5, 0.04, 3) == pytest.approx((50, 2.5))


def test_cracks_in_photographs_are_lines(real_data):
    with zipfile.ZipFile(real_data / "metu-concrete-20k.zip") as archive:
        names = sorted(name for name in archive.namelist() if "Positive" in name and name.endswith(".jpg"))
        images = [cv2.imdecode(np.frombuffer(archive.read(name), np.uint8), 0) for name in names[::250]]
    with_line = 0
    for gray_HW in images:
        expected_HW = cv2.GaussianBlur(cv2.medianBlur(gray_HW, 71), (0, 0), 6)
        found = regions(gray_HW, expected_HW)
        with_line += any(r.is_line and r.length > 60 and 1 < r.mean_width < 40 for r in found)
    assert with_line >= 0.8 * len(images)
