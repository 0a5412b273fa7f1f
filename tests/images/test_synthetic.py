from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from crackvae.images import synthetic


def mean_width_px(mask_HW: npt.NDArray[np.float32]) -> float:
    """Covered area over length, which is half the perimeter of anything long and thin."""
    inside_HW = (mask_HW >= 0.5).astype(np.uint8)
    contours, _ = cv2.findContours(inside_HW, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    perimeter_px = sum(cv2.arcLength(contour, closed=True) for contour in contours)
    return float(mask_HW.sum()) / (perimeter_px / 2)


def darkness(gray_HW: npt.NDArray[np.uint8]) -> float:
    return float(np.median(gray_HW) - np.percentile(gray_HW, 1))


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))


def test_the_same_seed_draws_the_same_image_and_another_seed_another() -> None:
    first, again, other = (synthetic.concrete(np.random.default_rng(s), 64, 64) for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.5

    gray_HW, mask_HW = synthetic.cracked(np.random.default_rng(1), 64, 64)
    gray_again_HW, mask_again_HW = synthetic.cracked(np.random.default_rng(1), 64, 64)
    np.testing.assert_array_equal(gray_HW, gray_again_HW)
    np.testing.assert_array_equal(mask_HW, mask_again_HW)


@pytest.mark.parametrize(("height", "width"), [(227, 227), (48, 130), (16, 16)])
def test_shapes_and_dtypes(height: int, width: int) -> None:
    rng = np.random.default_rng(0)
    normal_HW = synthetic.concrete(rng, height, width)
    gray_HW, mask_HW = synthetic.cracked(rng, height, width)
    covered_HW = synthetic.crack(rng, height, width, width_px=2)

    assert normal_HW.shape == gray_HW.shape == mask_HW.shape == covered_HW.shape == (height, width)
    assert normal_HW.dtype == gray_HW.dtype == np.uint8
    assert mask_HW.dtype == np.bool_
    assert covered_HW.dtype == np.float32
    assert covered_HW.min() == 0
    assert covered_HW.max() == 1
    assert mask_HW.any()


def test_the_edge_of_a_crack_is_smooth() -> None:
    mask_HW = synthetic.crack(np.random.default_rng(3), 128, 128, width_px=2)
    assert ((mask_HW > 0) & (mask_HW < 1)).sum() > (mask_HW == 1).sum() / 2


@pytest.mark.parametrize("seed", range(8))
def test_a_crack_crosses_much_of_the_image_and_covers_little_of_it(seed: int) -> None:
    mask_HW = synthetic.crack(np.random.default_rng(seed), 200, 200, width_px=2)
    rows, columns = np.nonzero(mask_HW >= 0.5)
    assert max(np.ptp(rows), np.ptp(columns)) > 100
    assert mask_HW.mean() < 0.06


@pytest.mark.parametrize("width_px", [1.5, 3.0, 6.0])
def test_a_crack_is_about_as_wide_as_asked(width_px: float) -> None:
    # The estimate comes out low: branches are thinner than the trunk, and rough edges are longer.
    masks = [synthetic.crack(np.random.default_rng(s), 227, 227, width_px=width_px) for s in range(12)]
    assert np.mean([mean_width_px(mask_HW) for mask_HW in masks]) == pytest.approx(width_px, rel=0.25)


def test_coverage_grows_with_the_width_in_proportion() -> None:
    areas = [
        float(synthetic.crack(np.random.default_rng(5), 227, 227, width_px=width_px).sum()) for width_px in (1, 2, 4)
    ]
    assert areas[1] / areas[0] == pytest.approx(2, rel=0.15)
    assert areas[2] / areas[1] == pytest.approx(2, rel=0.15)


@pytest.mark.parametrize("seed", range(8))
def test_a_crack_is_darker_than_its_surroundings(seed: int) -> None:
    gray_HW, mask_HW = synthetic.cracked(np.random.default_rng(seed), width_px=3)
    inside = mask_HW.astype(np.uint8)
    near = cv2.dilate(inside, np.ones((15, 15))) - cv2.dilate(inside, np.ones((5, 5)))
    assert np.median(gray_HW[mask_HW]) < np.median(gray_HW[near > 0]) - 10


def test_darkness_tells_most_cracks_from_sound_concrete_but_not_all() -> None:
    sound = np.array([darkness(synthetic.concrete(np.random.default_rng([0, s]))) for s in range(40)])
    crack = np.array([darkness(synthetic.cracked(np.random.default_rng([1, s]))[0]) for s in range(40)])
    assert 0.8 < (crack[:, None] > sound).mean() < 0.99


def test_sound_images_differ_in_brightness_and_grain() -> None:
    images = [synthetic.concrete(np.random.default_rng(seed), 96, 96) for seed in range(30)]
    assert np.std([np.median(gray_HW) for gray_HW in images]) > 10
    deviations = [gray_HW.std() for gray_HW in images]
    assert max(deviations) > 2 * min(deviations)


def test_a_survey_has_the_names_and_the_counts_asked_for(tmp_path: Path) -> None:
    synthetic.write_survey(tmp_path, normals=3, cracks=2, size=64)

    assert names(tmp_path) == [
        "crack/0000.jpg",
        "crack/0001.jpg",
        "normal/0000.jpg",
        "normal/0001.jpg",
        "normal/0002.jpg",
    ]
    photo = cv2.imread(str(tmp_path / "crack/0001.jpg"), cv2.IMREAD_UNCHANGED)
    assert photo is not None
    assert photo.shape == (64, 64)


def test_an_image_of_a_survey_does_not_depend_on_the_counts(tmp_path: Path) -> None:
    synthetic.write_survey(tmp_path / "few", normals=1, cracks=1, size=64)
    synthetic.write_survey(tmp_path / "many", normals=3, cracks=2, size=64)
    synthetic.write_survey(tmp_path / "other", normals=1, cracks=1, size=64, seed=1)

    for name in names(tmp_path / "few"):
        few, many, other = ((tmp_path / f / name).read_bytes() for f in ("few", "many", "other"))
        assert few == many
        assert few != other
