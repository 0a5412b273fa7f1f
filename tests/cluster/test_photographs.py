"""Photographs at native resolution, from training to results, on a real local Ray."""

import json
import shutil
from pathlib import Path

import local
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tiny import TINY_NATIVE

from crackvae import AnomalyScorer, experiment
from crackvae.cluster import calibrate, scoring, training
from crackvae.dataset import manifest, splitting
from crackvae.errors import UsageError
from crackvae.images import synthetic
from crackvae.model import artifact
from crackvae.model.photograph import PhotoScorer
from crackvae.report import pictures
from crackvae.run import check, directory, finalize, maps, shards
from crackvae.schema import Status

pytestmark = pytest.mark.ray


def position(latitude, longitude):
    """EXIF of a photograph taken there, in whole degrees."""
    exif = Image.Exif()
    exif[0x8825] = {1: "N", 2: (float(latitude), 0.0, 0.0), 3: "E", 4: (float(longitude), 0.0, 0.0)}
    return exif


@pytest.fixture(scope="module")
def native_model(tmp_path_factory, ray_session):
    """Trained on images much larger than its tiles, so that `auto` becomes native."""
    folder = tmp_path_factory.mktemp("native")
    synthetic.write_survey(folder / "images", normals=90, cracks=0, size=160)
    table, _ = manifest.build([str(folder / "images")])
    manifest.write(splitting.split(table, external_normal=0).table, str(folder / "split.parquet"))
    training.train(str(folder / "split.parquet"), str(folder / "model"), TINY_NATIVE)
    return folder / "model"


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Sound and cracked ones of several sizes, one with a position, and what cannot be scored or judged."""
    folder = tmp_path_factory.mktemp("photographs") / "survey"
    synthetic.write_survey(folder, normals=6, cracks=6, size=300)
    first, second, third, *_ = sorted((folder / "normal").iterdir())
    with Image.open(first) as image:
        image.load()
    image.save(first, quality=95, exif=position(47, 8))
    image.resize((200, 260)).save(second, quality=95)
    third.write_bytes(third.read_bytes()[:2000])
    Image.new("RGB", (400, 300), "green").save(folder / "normal" / "leaves.jpg")
    Image.new("RGB", (31, 400)).save(folder / "normal" / "strip.png")
    return folder


@pytest.fixture
def here():
    with local.without_ray():
        yield


@pytest.fixture(scope="module")
def run(native_model, photographs, tmp_path_factory, ray_session):
    out = tmp_path_factory.mktemp("run") / "run"
    return scoring.score(str(native_model), [str(photographs)], str(out), tiles=True)


def test_auto_becomes_native_by_the_size_of_the_training_images(native_model, model):
    assert artifact.load(str(native_model)).config.image.tiling == "native"
    assert artifact.load(str(model)).config.image.tiling == "resize"
    learnt = artifact.load(str(native_model)).photographs
    assert np.isfinite([learnt.map_limit, learnt.domain.limit, learnt.size_exponent]).all()


def test_every_photograph_ends_as_one_row_and_what_cannot_be_judged_has_no_prediction(run):
    rows = {row["image_id"]: row for row in finalize.read_results(run.run).to_pylist()}
    assert len(rows) == 14
    assert rows["normal/leaves.jpg"]["status"] == Status.CANNOT_JUDGE
    assert (rows["normal/leaves.jpg"]["prediction"], rows["normal/leaves.jpg"]["score"]) == (None, None)
    assert "like the training images" in rows["normal/leaves.jpg"]["message"]
    assert rows["normal/strip.png"]["status"] == Status.TOO_SMALL
    statuses = [row["status"] for row in rows.values()]
    assert (statuses.count("ok"), statuses.count("undecodable")) == (11, 1)
    sound = [row for row in rows.values() if row["status"] == "ok"]
    assert all(row["tiles"] and 0 < row["judged_fraction"] <= 1 and row["p_value"] for row in sound)
    assert check.check(run.run).problems == []


def test_regions_and_tiles_lie_in_their_photographs(run):
    size = {row["image_id"]: (row["width"], row["height"]) for row in finalize.read_results(run.run).to_pylist()}
    regions = finalize.read_table(run.run, "regions").to_pylist()
    for region in regions:
        width, height = size[region["image_id"]]
        assert 0 <= region["x"] < region["x"] + region["width"] <= width
        assert 0 <= region["y"] < region["y"] + region["height"] <= height
    tiles = finalize.read_table(run.run, "tiles")
    assert set(tiles["image_id"].to_pylist()) == {
        row["image_id"] for row in finalize.read_results(run.run).to_pylist() if row["status"] == "ok"
    }


def test_scoring_again_without_ray_writes_the_same_bytes(run, native_model, tmp_path, here):
    other = tmp_path / "run"
    shutil.copytree(run.run, other)
    (other / "_SUCCESS").unlink()
    shutil.rmtree(other / "parts")
    sources = [uri for uri, _ in directory.open_run(run.run).facts["sources"]]
    again = scoring.score(str(native_model), sources, str(other), tiles=True)
    assert again.exit_code == run.exit_code
    for path in Path(run.run).rglob("*.parquet"):
        if "figures" not in path.parts:
            assert (other / path.relative_to(run.run)).read_bytes() == path.read_bytes()


def test_one_process_gives_the_numbers_of_the_job(run, native_model):
    results = finalize.read_results(run.run).to_pandas()
    frame = AnomalyScorer.load(str(native_model)).score(results["uri"])
    assert frame["status"].tolist() == results["status"].tolist()
    np.testing.assert_allclose(frame["score"].astype(float), results["score"].astype(float), rtol=1e-4)
    assert frame["prediction"].fillna("").tolist() == results["prediction"].fillna("").tolist()


def test_a_given_pitch_gives_millimetres(native_model, photographs, tmp_path, here):
    out = str(tmp_path / "run")
    scoring.score(str(native_model), [str(photographs)], out, mm_per_pixel=0.5)
    regions = finalize.read_table(out, "regions").to_pandas().dropna(subset="length")
    assert len(regions)
    np.testing.assert_allclose(regions["length_mm"], 0.5 * regions["length"], rtol=1e-5)
    assert (regions["mean_width_mm_error"] > 0).all()


def test_the_command_writes_positions_structures_and_pictures(run, native_model, photographs, tmp_path, here, capsys):
    (tmp_path / "structures.csv").write_text("pattern,structure,element\nnormal/**,north pier,\ncrack/**,deck,slab 1\n")
    out = tmp_path / "run"
    experiment.score(
        str(native_model), [str(photographs)], str(out), structures=str(tmp_path / "structures.csv"), tiles=True
    )
    printed = capsys.readouterr().out
    assert "north pier" in printed
    assert "1 cannot_judge" in printed.splitlines()[[*map(str.strip, printed.splitlines())].index("") + 1]
    (feature,) = json.loads((out / "positions.geojson").read_text())["features"]
    assert feature["geometry"]["coordinates"] == [8.0, 47.0]
    assert pq.read_table(out / "positions.parquet").num_rows == 1
    assert "north pier" in (out / "structures.csv").read_text()
    pictures = sorted((out / "figures" / "photographs").iterdir())
    assert len(pictures) == 11
    with Image.open(pictures[0]) as image:
        image.verify()


def test_tiles_of_a_model_of_whole_images_are_refused(model, photographs, tmp_path):
    with pytest.raises(UsageError, match="need tiling 'native'"):
        scoring.score(str(model), [str(photographs)], str(tmp_path / "run"), tiles=True)


def test_a_retry_scores_only_the_rows_of_its_status(run, native_model, photographs, tmp_path, here):
    survey = tmp_path / "survey"
    shutil.copytree(photographs, survey)
    out = str(tmp_path / "run")
    scoring.score(str(native_model), [str(survey)], out)
    before = {row["image_id"]: row for row in finalize.read_results(out).to_pylist()}
    (broken,) = [row for row in before.values() if row["status"] == "undecodable"]
    shutil.copy(survey / "normal" / "0000.jpg", Path(broken["uri"].removeprefix("file://")))
    scoring.score(str(native_model), [str(survey)], out, retry=Status.UNDECODABLE)
    after = {row["image_id"]: row for row in finalize.read_results(out).to_pylist()}
    assert [name for name, row in after.items() if row != before[name]] == [broken["image_id"]]
    assert after[broken["image_id"]]["status"] == Status.UNREADABLE  # it is another file than was listed
    assert shards.missing(directory.open_run(out))[0] == []


def test_the_map_of_a_large_photograph_is_computed_once(native_model, tmp_path, here, monkeypatch):
    """It is kept from scoring until its picture is drawn; where it is gone, the same picture takes as long again."""
    synthetic.write_survey(tmp_path / "survey", normals=0, cracks=1, size=1050)
    run = scoring.score(str(native_model), [str(tmp_path / "survey")], str(tmp_path / "run")).run
    kept = Path(run, maps.MAPS)
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    shutil.rmtree(copy / maps.MAPS)
    assert [path.suffix for path in kept.iterdir()] == [".png"]
    computed, view = [], PhotoScorer.view
    monkeypatch.setattr(PhotoScorer, "view", lambda *given: computed.append(given) or view(*given))
    drawn = [[path for path in pictures.draw(str(location)) if path.endswith(".jpg")] for location in (run, copy, run)]
    assert len(computed) == 2
    assert not kept.exists()
    first_HW3, second_HW3 = (np.asarray(Image.open(paths[0]), np.int16) for paths in drawn[:2])
    assert np.abs(first_HW3 - second_HW3).mean() < 0.5
    assert np.ptp(first_HW3, axis=2).max() > 100  # there are colors: of the gray photograph it has none


def test_a_calibration_keeps_no_maps(native_model, tmp_path, here, monkeypatch):
    """Its run has no pictures."""
    kept = []
    monkeypatch.setattr(maps, "_PIXELS", 1)
    monkeypatch.setattr(maps, "keep", lambda *given, **named: kept.append(given))
    synthetic.write_survey(tmp_path / "images", normals=25, cracks=0, size=160)
    calibrate.recalibrate(str(native_model), [str(tmp_path / "images")], str(tmp_path / "model"))
    assert not kept
    scoring.score(str(native_model), [str(tmp_path / "images")], str(tmp_path / "run"))
    assert len(kept) == 25
