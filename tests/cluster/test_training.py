"""Training jobs on a real local Ray."""

import loopback
import pyarrow as pa
import pytest
from tiny import TINY

from crackvae.cluster import claim, session, training
from crackvae.config import Config
from crackvae.dataset import manifest
from crackvae.errors import InputError, RefusedError, UsageError
from crackvae.model import artifact
from crackvae.schema import MANIFEST

pytestmark = pytest.mark.ray


def test_a_trained_model_is_calibrated_on_validation_normals(model, split_manifest):
    loaded = artifact.load(str(model))
    val = manifest.rows(manifest.read(str(split_manifest)), split="val", label="normal").to_pandas()
    assert sorted(loaded.calibration.image_id) == sorted(val.drop_duplicates("group")["image_id"])
    assert [record["epoch"] for record in loaded.history] == [1, 2, 3]
    assert loaded.history[-1]["val_mse"] < loaded.history[0]["val_mse"]
    assert loaded.provenance["train_normals"] == 72
    assert loaded.config.scoring.precision in ("fp32", "bf16", "int8")
    assert not (model / ".training").exists()


def test_training_on_from_a_model_begins_where_it_ended_and_a_twin_group_calibrates_once(
    model, split_manifest, tmp_path, ray_session
):
    table = manifest.read(str(split_manifest)).to_pandas()
    val = (table["split"] == "val") & (table["label"] == "normal")
    table.loc[val & (val.cumsum() <= 3), "group"] = table[val]["group"].iloc[0]
    twins = tmp_path / "twins.parquet"
    manifest.write(pa.Table.from_pandas(table, manifest.MANIFEST, preserve_index=False), str(twins))
    quick = TINY.model_copy(update={"training": TINY.training.model_copy(update={"epochs": 1})})
    made = training.train(str(twins), str(tmp_path / "model"), quick, start_from=str(model))
    first = artifact.load(str(model))
    assert made.history[0]["val_mse"] < first.history[0]["val_mse"]
    assert made.provenance["start_from"] == first.fingerprint
    assert len(made.calibration.image_id) == val.sum() - 2
    assert made.provenance["calibration_twins_left_out"] == 2
    assert table[val]["image_id"].iloc[0] in made.calibration.image_id


def test_training_again_says_so_and_another_config_is_refused(model, split_manifest, caplog):
    again = training.train(str(split_manifest), str(model), TINY)
    assert again.fingerprint == artifact.load(str(model)).fingerprint
    other = TINY.model_copy(update={"training": TINY.training.model_copy(update={"epochs": 9})})
    with pytest.raises(RefusedError, match=r"training\.epochs was 3, is 9"):
        training.train(str(split_manifest), str(model), other)


def test_two_workers_reach_the_validation_loss_of_one_and_listen_on_loopback(
    model, split_manifest, tmp_path, ray_session
):
    one = artifact.load(str(model)).history
    with loopback.watched() as heard:
        two = training.train(str(split_manifest), str(tmp_path / "model"), TINY, workers=2).history
    assert heard
    assert [address for address in heard if not address.startswith(loopback.PREFIXES)] == []
    assert two[-1]["images"] == one[-1]["images"]
    gained = one[0]["val_mse"] - one[-1]["val_mse"]
    assert abs(two[-1]["val_mse"] - one[-1]["val_mse"]) < gained / 2


def test_too_few_calibration_normals_are_found_before_training(split_manifest, tmp_path):
    with pytest.raises(InputError, match=r"too few for alpha 0\.05"):
        training.train(str(split_manifest), str(tmp_path / "model"), Config())
    assert not (tmp_path / "model").exists()


def test_more_workers_than_cores_are_refused_instead_of_waiting_for_ever(split_manifest, tmp_path):
    with pytest.raises(UsageError, match="--workers 999"):
        training.train(str(split_manifest), str(tmp_path / "model"), TINY, workers=999)


def test_a_manifest_without_splits_is_refused(survey, tmp_path):
    table, _ = manifest.build([str(survey)])
    manifest.write(table, str(tmp_path / "manifest.parquet"))
    with pytest.raises(InputError, match="run `crackvae split`"):
        training.train(str(tmp_path / "manifest.parquet"), str(tmp_path / "model"), TINY)


@pytest.mark.parametrize(
    ("batch", "gpus", "cpus", "workers"), [(64, 3, 16, 2), (64, 8, 8, 8), (64, 8, 4, 4), (60, 7, 99, 6), (64, 0, 2, 1)]
)
def test_as_many_gpus_train_as_have_a_processor_and_divide_the_batch(batch, gpus, cpus, workers, monkeypatch):
    monkeypatch.setattr(session, "gpus", lambda: gpus)
    monkeypatch.setattr(session, "cpus", lambda: cpus)
    assert training._workers(batch, "cuda") == workers
    assert training._workers(batch, "cpu") == 1


def test_images_without_a_hash_are_told_apart_by_where_they_lie(split_manifest):
    table = manifest.read(str(split_manifest))
    place, name = MANIFEST.get_field_index("content_hash"), MANIFEST.get_field_index("uri")
    bare = table.set_column(place, "content_hash", pa.nulls(len(table), pa.string()))
    elsewhere = pa.array([f"{uri}x" for uri in table["uri"].to_pylist()])
    moved = bare.set_column(name, "uri", elsewhere)
    assert len({claim.data(each) for each in (table, bare, moved)}) == 3
    assert claim.data(table.set_column(name, "uri", elsewhere)) == claim.data(table)
