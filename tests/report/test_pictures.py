import shutil
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image

from crackvae import storage
from crackvae.config import Config, ImageConfig, NetworkConfig
from crackvae.dataset import manifest
from crackvae.dataset.decoder import Decoder
from crackvae.errors import InputError
from crackvae.images import synthetic
from crackvae.model import artifact
from crackvae.model.artifact import Artifact, Calibration
from crackvae.model.scorer import TileScorer
from crackvae.report import galleries, photographs, pictures
from crackvae.run import directory, finalize, shards, summary
from crackvae.run.shards import Work
from crackvae.schema import BASELINES, LOOKS
from crackvae.statistics.calibration import Normals

NORMALS, CRACKS = 24, 20
GALLERIES = {"true_positives", "false_positives", "false_negatives", "true_negatives"}
ALWAYS = {"scores", "training", "reconstructions"}
CONFIG = Config(image=ImageConfig(tile_size=32), network=NetworkConfig(channels=(4, 4, 4, 4), latent=4))


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    folder = tmp_path_factory.mktemp("survey")
    synthetic.write_survey(folder, normals=NORMALS, cracks=CRACKS, size=64)
    return folder


@pytest.fixture(scope="module")
def model(survey, tmp_path_factory):
    """An untrained model, calibrated on the first normals of the survey."""
    location = str(tmp_path_factory.mktemp("model") / "model")
    weights = artifact.build_network(CONFIG).state_dict()
    history = [
        {"epoch": epoch, "mse": 0.02 / epoch, "kl": 20.0 + epoch, "val_mse": 0.021 / epoch} for epoch in (1, 2, 3)
    ]
    untrained = Artifact(CONFIG, weights, None, history, {})
    uris = [storage.to_uri(str(path)) for path in sorted((survey / "normal").iterdir())[:20]]
    with Decoder(CONFIG.image) as decoder:
        tiles, part = decoder.read(pa.table({"uri": uris}))
    scores = TileScorer(untrained, "cpu", "fp32").measure(tiles)[0]
    baselines, looks = ({name: part[name].to_numpy() for name in names} for names in (BASELINES, LOOKS))
    calibration = Calibration(uris, baselines, looks, Normals(scores, scores, np.ones(len(scores))))
    artifact.save(Artifact(CONFIG, weights, calibration, history, {}), location)
    return location


def start(location, survey, model, labels=True):
    """A run whose shards are not scored yet."""
    table, _ = manifest.build([str(survey)])
    if not labels:
        column = table.schema.get_field_index("label")
        table = table.set_column(column, "label", pa.nulls(len(table), pa.string()))
    sets = pa.array(
        ["internal" if row % 2 and labels else "external" if labels else None
         for row in range(len(table))], pa.string()
    )  # fmt: skip
    loaded = artifact.load(model)
    facts = {"model": loaded.fingerprint, "scoring": {"score": "mse", "alpha": 0.1}}
    calibration = loaded.calibration.as_table()
    return directory.create(str(location), [table.append_column("set", sets)], facts, calibration)


def finish(run, model):
    loaded = artifact.load(model)
    scorer = TileScorer(loaded, "cpu", "fp32")
    for number in range(run.plan.shards):
        shard = run.plan.shard(number)
        with Decoder(CONFIG.image) as decoder:
            tiles, part = decoder.read(shard)
        scores = pa.array(scorer.measure(tiles)[0], mask=np.asarray(part["status"]) != "ok")
        for column in ("score", "reconstruction_error"):
            part = part.set_column(part.schema.get_field_index(column), column, scores)
        shards.write_part(run.location, run.identity, Work(number, 0), part)
    finalize.finalize(run)


def names(locations):
    return {Path(location).stem for location in locations}


def assert_are_pictures(locations):
    for location in locations:
        with Image.open(location) as image:
            assert image.format == "PNG"
            assert min(image.size) > 200
            assert len(np.unique(np.asarray(image.convert("L")))) > 20


@pytest.fixture(scope="module")
def labelled_run(survey, model, tmp_path_factory):
    run = start(tmp_path_factory.mktemp("labelled") / "run", survey, model)
    finish(run, model)
    return run


@pytest.fixture(scope="module")
def unlabelled_run(survey, model, tmp_path_factory):
    run = start(tmp_path_factory.mktemp("unlabelled") / "run", survey, model, labels=False)
    finish(run, model)
    return run


def drawn_galleries(run, model):
    threshold, loaded = summary.read(run.location)["threshold"]["value"], artifact.load(model)
    return galleries.draw(*pictures.read(run.location, loaded), loaded, threshold)


def texts(figure):
    """Captions, and what stands in place of an image."""
    shown = [text for axes in figure.axes[:-1] for text in (axes.title, *axes.texts)]
    return [text.get_text() for text in shown if text.get_text()]


def test_a_labelled_run_has_every_picture_but_findings(labelled_run, model):
    drawn = pictures.draw(labelled_run.location, model)
    assert names(drawn) == ALWAYS | GALLERIES | {"roc"}
    assert all(location.startswith(f"{labelled_run.location}/figures/") for location in drawn)
    assert_are_pictures(drawn)


def test_a_run_without_labels_has_findings_and_no_roc(unlabelled_run, model):
    drawn = pictures.draw(unlabelled_run.location, model)
    assert names(drawn) == ALWAYS | {"findings"}
    assert_are_pictures(drawn)
    first = [storage.read_bytes(location) for location in drawn]
    again = pictures.draw(unlabelled_run.location, model)
    assert [storage.read_bytes(location) for location in again] == first


def test_galleries_hold_what_they_say_in_order(labelled_run, model):
    figures = drawn_galleries(labelled_run, model)
    results = finalize.read_results(labelled_run.location).to_pandas()
    for name, label, prediction, ascending in (
        ("true_positives", "crack", "crack", False),
        ("false_positives", "normal", "crack", False),
        ("false_negatives", "crack", "normal", True),
        ("true_negatives", "normal", "normal", False),
    ):
        rows = results[(results["label"] == label) & (results["prediction"] == prediction)]
        rows = rows.sort_values("score", ascending=ascending, kind="stable")[:16]
        assert [text.split("\n")[0] for text in texts(figures[name])] == list(rows["image_id"])


def test_every_heat_map_has_the_scale_of_the_threshold(labelled_run, model):
    threshold = summary.read(labelled_run.location)["threshold"]["value"]
    for figure in drawn_galleries(labelled_run, model).values():
        maps = [image for axes in figure.axes[:-1] for image in axes.images if image.cmap.name != "gray"]
        assert {image.get_clim() for image in maps} <= {(0, galleries.SCALE * threshold)}
        assert figure.axes[-1].get_xlim() == (0, galleries.SCALE * threshold)  # the colour bar


def test_images_that_are_gone_have_cells_that_say_so(survey, model, tmp_path):
    copy = tmp_path / "survey"
    shutil.copytree(survey, copy)
    run = start(tmp_path / "run", copy, model, labels=False)
    finish(run, model)
    shutil.rmtree(copy / "crack")
    found = texts(drawn_galleries(run, model)["findings"])
    captions = [text for text in found if text != "gone or changed"]
    assert len(captions) == 16
    assert len(found) - 16 == sum(text.startswith("crack/") for text in captions) > 0


def test_names_that_look_like_markup_or_break_lines_are_drawn(survey, model, tmp_path):
    copy = tmp_path / "survey" / "normal"
    copy.mkdir(parents=True)
    for name in ("$x^{2_.jpg", "a\nb.jpg", "\u6f22.jpg", "n" * 99 + ".jpg"):
        shutil.copy(survey / "normal" / "0000.jpg", copy / name)
    run = start(tmp_path / "run", copy.parent, model, labels=False)
    finish(run, model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pictures.draw(run.location, model)
    captions = texts(drawn_galleries(run, model)["findings"])
    assert all(caption.count("\n") == 1 and len(caption) < 70 for caption in captions)


@pytest.mark.parametrize("cracks", [0, 5])
def test_a_set_with_one_label_only_has_no_roc(cracks, model, tmp_path):
    synthetic.write_survey(tmp_path / "survey", normals=5 - cracks, cracks=cracks, size=64)
    run = start(tmp_path / "run", tmp_path / "survey", model)
    finish(run, model)
    assert names(pictures.draw(run.location, model)) == ALWAYS | GALLERIES


def test_a_run_in_which_nothing_was_scored_has_the_training_only(survey, model, tmp_path):
    copy = tmp_path / "survey"
    shutil.copytree(survey, copy)
    run = start(tmp_path / "run", copy, model)
    shutil.rmtree(copy)
    finish(run, model)
    assert names(pictures.draw(run.location, model)) == {"training"}


def test_a_run_that_is_not_finished_is_refused(survey, model, tmp_path):
    run = start(tmp_path / "run", survey, model)
    with pytest.raises(InputError, match="is not finished"):
        pictures.draw(run.location, model)


def test_a_photograph_that_is_of_another_size_by_now_is_left_out(tmp_path):
    """The regions on it would be those of the one that was scored."""
    synthetic.write_survey(tmp_path / "survey", normals=2, cracks=0, size=416)
    paths = sorted((tmp_path / "survey" / "normal").iterdir())
    of_each = {"score": 0.1, "p_value": 0.5, "p_value_is_bound": False, "height": 416}
    of_each |= dict.fromkeys(["mm_per_pixel", "mm_per_pixel_error"], np.nan)
    rows = pd.DataFrame([{"image_id": path.name, "uri": path.as_uri(), **of_each} for path in paths])
    rows["width"] = [416, 500]
    drawn = photographs.draw(str(tmp_path / "run"), rows, artifact.load(artifact.PRETRAINED), seed=0)
    assert [name for name, _ in drawn] == ["01-0000.jpg"]


def test_an_image_that_is_of_another_size_by_now_has_no_view(tmp_path, model):
    synthetic.write_survey(tmp_path / "survey", normals=2, cracks=0, size=96)
    paths = sorted((tmp_path / "survey" / "normal").iterdir())
    rows = pd.DataFrame([{"image_id": path.name, "uri": path.as_uri(), "score": 0.1, "p_value": 0.5} for path in paths])
    cells = galleries._cells(rows.assign(width=[96, 97], height=96), artifact.load(model))
    assert [cell.view is None for cell in cells.values()] == [False, True]


def test_another_model_is_refused(unlabelled_run, tmp_path):
    other = str(tmp_path / "other")
    weights = artifact.build_network(CONFIG).state_dict()
    artifact.save(Artifact(CONFIG, weights, None, [], {}), other)
    with pytest.raises(InputError, match="is not the model that scored"):
        pictures.draw(unlabelled_run.location, other)
