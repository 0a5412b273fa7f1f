from pathlib import Path

import cv2
import numpy as np
import pytest

import crackvae
from crackvae.errors import ArtifactError
from crackvae.images import synthetic
from crackvae.model.anomaly import AnomalyScorer
from crackvae.model.artifact import Artifact


@pytest.fixture(scope="module")
def tiles_NHW():
    return np.random.default_rng(0).integers(0, 256, (21, 32, 32)).astype(np.uint8)


def test_files_and_arrays_score_alike_and_bad_ones_keep_their_row(tiny_artifact, tmp_path):
    synthetic.write_survey(tmp_path, normals=2, cracks=0, size=64)
    good = sorted((tmp_path / "normal").iterdir())
    (tmp_path / "broken.jpg").write_bytes(good[0].read_bytes()[:500])
    from PIL import Image

    array_HW = np.asarray(Image.open(good[1]).convert("L"))
    frame = AnomalyScorer(tiny_artifact).score(
        [good[0], tmp_path / "broken.jpg", str(good[1]), array_HW, tmp_path / "gone.jpg",
         np.zeros((30, 30, 4), np.uint8), np.zeros((3, 3, 3), np.uint8)]
    )  # fmt: skip
    assert frame["status"].tolist() == [
        "ok", "undecodable", "ok", "ok", "unreadable", "undecodable", "too_small"
    ]  # fmt: skip
    assert frame["score"].isna().tolist() == [False, True, False, False, True, True, True]
    assert frame["prediction"].isna().tolist() == [False, True, False, False, True, True, True]
    assert frame["message"][1]
    assert frame["score"][2] == pytest.approx(frame["score"][3], rel=1e-3)
    assert frame["p_value"].dropna().between(1 / 31, 1).all()


def test_predictions_and_p_values_agree(tiny_artifact, tiles_NHW):
    frame = AnomalyScorer(tiny_artifact).score(list(tiles_NHW))
    alpha = tiny_artifact.config.scoring.alpha
    assert ((frame["p_value"] <= alpha) == (frame["prediction"] == "crack")).all()


def test_no_images_no_rows(tiny_artifact):
    frame = AnomalyScorer(tiny_artifact).score([])
    assert len(frame) == 0
    assert "prediction" in frame


@pytest.mark.parametrize("image", ["bridge.jpg", Path("bridge.jpg"), np.zeros((64, 64), np.uint8)])
def test_a_single_image_is_no_list_of_them(tiny_artifact, image):
    with pytest.raises(TypeError, match=r"\[image\]"):
        AnomalyScorer(tiny_artifact).score(image)


def test_a_model_without_calibration_is_refused(tiny_artifact):
    bare = Artifact(tiny_artifact.config, tiny_artifact.weights, None, [], {})
    with pytest.raises(ArtifactError, match="not calibrated"):
        AnomalyScorer(bare)


def test_the_pretrained_model_flags_a_crack_and_not_sound_concrete_the_like_of_its_training():
    """The concrete is made up, so that the test needs no photographs; docs and model card tell of real ones."""
    rng = np.random.default_rng(0)
    sound = [cv2.GaussianBlur(rng.normal(0, 14, (227, 227)), (0, 0), 1.2) * 2 + 165 for _ in range(6)]
    sound = [gray_HW.clip(0, 255).astype(np.uint8) for gray_HW in sound]
    cracked = [
        cv2.line(gray_HW.copy(), (20 + 30 * i, 0), (200 - 30 * i, 226), 70, 3) for i, gray_HW in enumerate(sound)
    ]
    scorer = AnomalyScorer.load("pretrained", device="cpu")
    frame = scorer.score([*sound, *cracked])
    assert frame["status"].eq("ok").all()
    assert frame["score"][6:].min() > frame["score"][:6].max()
    assert frame["prediction"][6:].eq("crack").all()
    assert sum(path.stat().st_size for path in Path(crackvae.__file__).parent.glob("pretrained/*")) < 5e6
