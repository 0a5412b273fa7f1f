"""Calibration by the real job on a local Ray."""

import json
import shutil

import cv2
import local
import numpy as np
import pytest

from crackvae import AnomalyScorer, cli
from crackvae.cluster import calibrate, claim, scoring
from crackvae.config import Config
from crackvae.errors import InputError, RefusedError
from crackvae.images import synthetic
from crackvae.model import artifact
from crackvae.report import tables

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """30 normals of another place, two of them twice, one that is no image, and cracks."""
    folder = tmp_path_factory.mktemp("own") / "images"
    synthetic.write_survey(folder, normals=30, cracks=5, size=96, seed=7)
    for number in (3, 4):
        shutil.copy(folder / "normal" / f"{number:04d}.jpg", folder / "normal" / f"copy-{number}.jpg")
    (folder / "normal" / "torn.jpg").write_bytes((folder / "normal" / "0000.jpg").read_bytes()[:500])
    return folder


@pytest.fixture(scope="module")
def recalibrated(model, own, tmp_path_factory):
    out = tmp_path_factory.mktemp("recalibrated") / "model"
    with local.without_ray():
        return calibrate.recalibrate(str(model), [str(own)], str(out)), out


def test_sound_images_calibrate_and_each_twin_group_once(recalibrated, model, own):
    made, _ = recalibrated
    before = artifact.load(str(model))
    ids = sorted(made.calibration.image_id)
    assert len(ids) == 30
    assert all("normal/" in image_id for image_id in ids)
    assert made.provenance["calibration_twins_left_out"] == 2
    assert made.provenance["calibration_failed_images"] == 1
    assert made.provenance["calibrated_model"] == before.fingerprint
    assert made.provenance["train_normals"] == before.provenance["train_normals"]
    assert {name: value.tolist() for name, value in made.weights.items()} == {
        name: value.tolist() for name, value in before.weights.items()
    }


def test_the_calibration_scores_are_those_of_the_library_and_the_threshold_follows(recalibrated, own):
    made, out = recalibrated
    paths = [own / "normal" / image_id.rpartition("/")[2] for image_id in made.calibration.image_id]
    frame = AnomalyScorer.load(str(out)).score(paths)
    np.testing.assert_allclose(frame["score"], made.calibration.normals.score_n, rtol=1e-5)
    np.testing.assert_allclose(frame["latent"], made.calibration.looks["latent"], rtol=1e-4)
    np.testing.assert_array_equal(frame["line_filter"], made.calibration.baselines["line_filter"])
    assert (frame["prediction"] == "crack").sum() == int(0.2 * 31) - 1  # alpha is 0.2


def test_a_survey_unlike_the_calibration_says_so_first_with_the_cure(recalibrated, tmp_path):
    synthetic.write_survey(tmp_path / "survey", normals=30, cracks=0, size=96)
    for path in (tmp_path / "survey" / "normal").iterdir():
        cv2.imwrite(str(path), cv2.imread(str(path)) // 2)
    with local.without_ray():
        outcome = scoring.score(str(recalibrated[1]), [str(tmp_path / "survey")], str(tmp_path / "run"))
    first, (warning,) = next(iter(json.loads((tmp_path / "run" / "metrics.json").read_text()).items()))
    assert first == "warnings"
    assert "unlike those of the calibration: " in warning
    assert "lower brightness" in warning
    assert "crackvae calibrate MODEL NORMALS --out NEW_MODEL" in warning
    assert tables.counts_lines(outcome.metrics)[0] == f"WARNING: {warning}"


def test_the_command_says_what_is_promised_and_again_does_nothing(recalibrated, model, own, capsys):
    _, out = recalibrated
    before = (out / "artifact.json").read_bytes()
    assert cli.main(["calibrate", str(model), str(own), "--out", str(out)]) == 0
    assert (out / "artifact.json").read_bytes() == before
    lines = capsys.readouterr().out.splitlines()
    assert "from 30 calibration normals: 19.4% of images like them are above it" in lines[-2]
    assert lines[-1] == f"model: {out}"


def test_other_images_and_too_few_are_refused(recalibrated, model, own, tmp_path):
    _, out = recalibrated
    with pytest.raises(RefusedError, match="calibration_data was"):
        calibrate.recalibrate(str(model), [str(own / "normal" / "0001.jpg")] + [
            str(own / "normal" / f"{k:04d}.jpg") for k in range(5, 15)], str(out))  # fmt: skip
    with pytest.raises(InputError, match=r"3 calibration scores are too few for alpha 0\.2.* at least 4"):
        calibrate.recalibrate(str(model), [str(own / "normal" / f"{k:04d}.jpg") for k in range(3)], str(tmp_path / "m"))
    assert not (tmp_path / "m").exists()


def test_two_processes_do_not_make_one_model(tmp_path):
    out, facts = str(tmp_path / "model"), {"config": Config().model_dump(mode="json"), "data": "x"}
    with claim.claim(out, facts), pytest.raises(RefusedError, match="another process"):  # noqa: SIM117
        with claim.claim(out, facts):
            pass
    with claim.claim(out, facts):  # goes on
        pass
    with pytest.raises(RefusedError, match="is another model: data"), claim.claim(out, facts | {"data": "y"}):
        pass
    (tmp_path / "model" / claim.WORK / claim.FACTS).write_text("{")
    with pytest.raises(InputError, match=r"training\.json: is damaged; give a new --out"), claim.claim(out, facts):
        pass
    (tmp_path / "model" / "notes.txt").touch()
    with pytest.raises(RefusedError, match="holds something that is no model"), claim.claim(str(tmp_path), facts):
        pass
