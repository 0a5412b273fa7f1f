import dataclasses

import cv2
import numpy as np
import pytest
import torch
from tiny import TINY_NATIVE

from crackvae.errors import ArtifactError
from crackvae.images import appearance
from crackvae.images.evidence import STEP
from crackvae.images.ground import Ground
from crackvae.images.tile import cut
from crackvae.model.artifact import build_network
from crackvae.model.photograph import PhotoScorer, learn, tile_errors, tile_scores
from crackvae.schema import PART
from crackvae.statistics import domain

CHROMA_hw2 = np.full((20, 20, 2), 128, np.uint8)
SIZE, OVERLAP = 32, 8


def concrete(height, width, seed=0, mean=150):
    noise_HW = np.random.default_rng(seed).normal(0, 12, (height, width)).astype(np.float32)
    return np.clip(mean + cv2.GaussianBlur(noise_HW, (0, 0), 1) * 3, 0, 255).astype(np.uint8)


def learnt(coarsest=None):
    gray_HW = concrete(512, 512, seed=9)
    feature_hwF = appearance.cells(gray_HW, CHROMA_hw2)
    return domain.fit(appearance.of_tiles(feature_hwF, gray_HW.shape, SIZE, 0), coarsest)


def native(artifact, image=None, **options):
    config = TINY_NATIVE.with_tiling("native")
    config = config.model_copy(update={"image": config.image.model_copy(update=image or {})})
    torch.manual_seed(0)
    weights = build_network(config).state_dict()
    weights["decoder.8.bias"] = torch.tensor([np.arctanh(150 / 127.5 - 1), 2 * np.log(14 / 127.5)])  # concrete's
    model = dataclasses.replace(artifact, config=config, weights=weights)
    photographs = learn(model, learnt(**options), [concrete(300, 300, seed) for seed in (7, 8)])
    return dataclasses.replace(model, photographs=dataclasses.replace(photographs, size_exponent=0.2, map_limit=70.0))


@pytest.fixture(scope="module")
def scorer(tiny_artifact):
    return PhotoScorer(native(tiny_artifact), "cpu", "fp32", keep_tiles=True)


def test_the_expected_photograph_is_blended_from_the_reconstructions_of_its_tiles(scorer):
    gray_HW = concrete(SIZE, 56)  # two tiles that share 8 columns
    ((x_hat_NSS, sigma_NSS, _),) = scorer._tiles.expect(cut(gray_HW, SIZE, OVERLAP))
    for blended_HW, (left_SS, right_SS), close in zip(
        scorer.expect(gray_HW)[:2], (127.5 * (x_hat_NSS + 1), 127.5 * sigma_NSS), (0.6, 0.2), strict=True
    ):
        np.testing.assert_allclose(blended_HW[:, :24], left_SS[:, :24], atol=close)
        np.testing.assert_allclose(blended_HW[:, 32:], right_SS[:, 8:], atol=close)
        low, high = np.minimum(left_SS[:, 24:], right_SS[:, :8]), np.maximum(left_SS[:, 24:], right_SS[:, :8])
        assert (blended_HW[:, 24:32] >= low - close).all()
        assert (blended_HW[:, 24:32] <= high + close).all()


def test_a_crop_along_the_grid_of_tiles_gives_the_same_inside(scorer):
    gray_HW = concrete(300, 420)
    step = SIZE - OVERLAP
    inside = np.s_[SIZE:-SIZE, SIZE:-SIZE]  # the last tile of each side ends at its edge, wherever that is
    whole, crop = (scorer.expect(each_HW)[:2] for each_HW in (gray_HW, gray_HW[2 * step :, 3 * step :]))
    for whole_HW, crop_HW in zip(whole, crop, strict=True):
        np.testing.assert_allclose(whole_HW[2 * step :, 3 * step :][inside], crop_HW[inside], rtol=2e-3, atol=1)


def test_the_score_of_a_tile_is_the_mean_of_the_highest_fiftieth_of_its_evidence():
    evidence_hw = np.random.default_rng(0).random((50, 39), np.float32)
    score_N = tile_scores(evidence_hw, concrete(100, 78), 255, SIZE, OVERLAP)
    tile_Nss = cut(evidence_hw, SIZE // STEP, OVERLAP // STEP)
    highest_Nk = np.sort(tile_Nss.reshape(len(tile_Nss), -1))[:, -5:]  # of 256
    np.testing.assert_allclose(score_N, highest_Nk.mean(axis=1), rtol=1e-6)


def test_darkness_beyond_what_sound_concrete_shows_adds_to_the_score_of_a_tile_up_to_20():
    gray_HW, nothing_hw = np.full((SIZE, SIZE), 150, np.uint8), np.zeros((SIZE // STEP, SIZE // STEP), np.float32)

    def score(share, level):
        dark_HW = gray_HW.copy()
        dark_HW.flat[: round(share * SIZE**2)] = level
        return tile_scores(nothing_hw, dark_HW, 50.0, SIZE, OVERLAP).item()

    assert [score(0.04, level) for level in (150, 100, 93, 60, 0)] == [0, 0, 7, 20, 20]
    assert score(0.02, 0) == 0  # a pore


def test_the_error_of_a_tile_is_the_mean_of_its_squared_residuals():
    gray_HW, expected_HW = concrete(100, 77), concrete(100, 77, seed=1)
    x_NSS, y_NSS = (cut(image_HW, SIZE, OVERLAP) / 127.5 - 1 for image_HW in (gray_HW, expected_HW))
    mean_N = np.mean((x_NSS - y_NSS) ** 2, axis=(1, 2))
    np.testing.assert_allclose(tile_errors(gray_HW, expected_HW, SIZE, OVERLAP), mean_N, rtol=1e-5)


def test_a_sound_photograph_is_judged_and_the_rows_columns_exist(scorer):
    row = scorer.score(concrete(300, 420), CHROMA_hw2, None)
    assert row["status"] == "ok"
    assert row["judged_fraction"] > 0.99
    assert row["score"] == pytest.approx(row["worst_tile_score"] / row["tiles"] ** 0.2)
    judged = [tile["score"] for tile in row["tile_errors"] if tile["judged"]]
    assert (len(judged), max(judged)) == (row["tiles"], row["worst_tile_score"])
    assert row.keys() <= set(PART.names)


def test_a_region_ends_where_what_is_judged_ends(tiny_artifact):
    scorer = PhotoScorer(native(tiny_artifact, {"tile_size": 64}), "cpu", "fp32")
    gray_HW, chroma_hw2 = concrete(300, 600), np.full((30, 60, 2), 128, np.uint8)
    gray_HW[140:146] = 20
    chroma_hw2[:, 30:] = 190
    whole, left = (scorer.score(gray_HW, chroma, None) for chroma in (CHROMA_hw2, chroma_hw2))
    assert left["judged_fraction"] < 0.55 < whole["judged_fraction"]
    assert max(region["x"] + region["width"] for region in whole["regions"]) == 600
    assert max(region["x"] + region["width"] for region in left["regions"]) == pytest.approx(300, abs=20)


def test_what_is_not_like_the_training_images_is_left_out_of_the_maximum(scorer):
    gray_HW = concrete(300, 600)
    gray_HW[:, 300:] = np.random.default_rng(1).integers(0, 256, (300, 300))  # leaves
    row = scorer.score(gray_HW, CHROMA_hw2, None)
    assert 0.45 < row["judged_fraction"] < 0.65
    assert row["worst_tile_score"] == max(tile["score"] for tile in row["tile_errors"] if tile["judged"])
    assert max(tile["score"] for tile in row["tile_errors"] if tile["x"] > 300 + SIZE) == 0
    assert all(region["x"] + region["width"] <= 340 for region in row["regions"])


@pytest.mark.parametrize(
    ("photo", "chroma", "why"),
    [
        (concrete(300, 400, mean=40), 128, "lower brightness"),
        (np.full((300, 400), 150, np.uint8), 128, "lower fine texture"),
        (cv2.GaussianBlur(concrete(300, 400), (0, 0), 5), 128, "lower fine texture"),
        (concrete(300, 400), 190, "higher blue"),
    ],
)
def test_a_photograph_that_is_mostly_something_else_is_not_judged_and_says_why(scorer, photo, chroma, why):
    row = scorer.score(photo, np.full((20, 20, 2), (chroma, 128), np.uint8), None)
    assert (row["status"], row.get("score")) == ("cannot_judge", None)
    assert row["judged_fraction"] < 0.25
    assert why in row["message"]


def test_a_photograph_smaller_than_a_tile_is_too_small(scorer):
    assert scorer.score(concrete(31, 400), CHROMA_hw2, None)["status"] == "too_small"


def test_a_coarser_photograph_than_the_model_knows_is_not_judged(tiny_artifact):
    scorer = PhotoScorer(native(tiny_artifact, coarsest=1.0), "cpu", "fp32")
    photo_HW = concrete(300, 400)
    assert scorer.score(photo_HW, CHROMA_hw2, Ground(1.9, 0.1))["status"] == "ok"
    row = scorer.score(photo_HW, CHROMA_hw2, Ground(2.1, 0.1))
    assert (row["status"], row["message"]) == (
        "cannot_judge", "2.1 mm a pixel; the model knows 1"
    )  # fmt: skip


def test_photographs_are_brought_to_the_models_pixel_pitch(tiny_artifact):
    scorer = PhotoScorer(native(tiny_artifact, {"mm_per_pixel": 2.0, "tile_size": 64}), "cpu", "fp32")
    photo_HW = cv2.resize(concrete(300, 400), (800, 600), interpolation=cv2.INTER_NEAREST)
    crack_HW = cv2.line(photo_HW.copy(), (200, 100), (200, 500), 0, 8)
    row = scorer.score(crack_HW, CHROMA_hw2, Ground(1.0, 0.1))
    assert row["status"] == "ok"
    line = max(row["regions"], key=lambda region: region["height"])
    assert line["y"] == pytest.approx(100, abs=12)  # in pixels of the photograph itself
    assert line["length"] == pytest.approx(400, rel=0.1)
    assert line["length_mm"] == pytest.approx(line["length"] * 1.0)
    assert line["length_mm_error"] > 0.1 * line["length_mm"]
    assert scorer.score(photo_HW, CHROMA_hw2, None)["message"].startswith("its pixel pitch is unknown")
    assert "the model knows 2" in scorer.score(photo_HW, CHROMA_hw2, Ground(4e5, 0.1))["message"]  # EXIF may say so
    assert scorer.score(photo_HW, CHROMA_hw2, Ground(0.01, 0.1))["status"] == "too_small"


def test_a_model_of_whole_images_scores_no_photographs(tiny_artifact):
    with pytest.raises(ArtifactError, match="whole images"):
        PhotoScorer(tiny_artifact, "cpu", "fp32")


def test_a_region_at_the_edge_ends_there_whatever_the_pitch(tiny_artifact):
    photo_HW = cv2.resize(concrete(301, 403), (806, 602), interpolation=cv2.INTER_NEAREST)
    cv2.line(photo_HW, (700, 100), (805, 601), 0, 10)
    ends = []
    for pitch in (1.9, 2.2):
        scorer = PhotoScorer(native(tiny_artifact, {"mm_per_pixel": pitch, "tile_size": 64}), "cpu", "fp32")
        regions = scorer.score(photo_HW, CHROMA_hw2, Ground(1.0, 0.1))["regions"]
        ends += [(region["x"] + region["width"], region["y"] + region["height"]) for region in regions]
    assert (np.array(ends).max(axis=0) == (806, 602)).all()


def test_a_photograph_that_fails_is_a_row_unless_the_device_has_failed(scorer, monkeypatch):
    def fail(tile_NHW):
        raise torch.AcceleratorError("an illegal memory access was encountered")

    arrays = [concrete(300, 420), CHROMA_hw2]
    monkeypatch.setattr(scorer._tiles, "expect", fail)
    assert scorer.complete({}, arrays)["status"] == "crashed"
    monkeypatch.setattr(scorer._tiles, "check_device", lambda: fail(None))  # as CUDA does from then on
    with pytest.raises(torch.AcceleratorError):
        scorer.complete({}, arrays)
