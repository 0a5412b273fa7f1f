import dataclasses
import json

import pytest
import torch

from crackvae.config import Config
from crackvae.errors import ArtifactError
from crackvae.model import artifact
from crackvae.model.artifact import Artifact
from crackvae.model.quantised import LARGEST


@pytest.fixture
def saved(tmp_path, tiny_artifact):
    artifact.save(tiny_artifact, str(tmp_path / "model"))
    return tmp_path / "model"


def test_an_artifact_comes_back_as_it_was(saved, tiny_artifact):
    loaded = artifact.load(str(saved))
    assert loaded.config == tiny_artifact.config
    assert loaded.history == tiny_artifact.history
    assert loaded.provenance == tiny_artifact.provenance
    assert loaded.calibration.image_id == tiny_artifact.calibration.image_id
    assert loaded.calibration.as_table().equals(tiny_artifact.calibration.as_table())
    assert loaded.weights.keys() == tiny_artifact.weights.keys()
    for name, tensor in loaded.weights.items():
        assert torch.equal(tensor, tiny_artifact.weights[name])


def test_the_fingerprint_changes_with_the_calibration(tmp_path, saved, tiny_artifact):
    kept = tiny_artifact.calibration
    normals = dataclasses.replace(kept.normals, score_n=kept.normals.score_n + 1)
    other = dataclasses.replace(kept, normals=normals)
    changed = Artifact(tiny_artifact.config, tiny_artifact.weights, other, tiny_artifact.history, {})
    artifact.save(changed, str(tmp_path / "other"))
    assert artifact.load(str(tmp_path / "other")).fingerprint != artifact.load(str(saved)).fingerprint


@pytest.mark.parametrize("name", ["weights.safetensors", "calibration.parquet", "history.json"])
def test_one_flipped_bit_is_found_and_the_file_named(saved, name):
    data = bytearray((saved / name).read_bytes())
    data[len(data) // 2] ^= 1
    (saved / name).write_bytes(data)
    with pytest.raises(ArtifactError, match=rf"{name}: is truncated or altered"):
        artifact.load(str(saved))


def test_an_edited_alpha_is_found(saved):
    text = (saved / "artifact.json").read_text()
    assert '"alpha": 0.2' in text
    (saved / "artifact.json").write_text(text.replace('"alpha": 0.2', '"alpha": 0.1'))
    with pytest.raises(ArtifactError, match=r"artifact\.json: is truncated or altered"):
        artifact.load(str(saved))


def test_a_missing_file_is_named(saved):
    (saved / "weights.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"weights\.safetensors: is missing"):
        artifact.load(str(saved))


def test_a_newer_artifact_is_refused(saved):
    index = json.loads((saved / "artifact.json").read_text())
    index["schema_version"] = 99
    (saved / "artifact.json").write_text(json.dumps(index))
    with pytest.raises(ArtifactError, match="newer"):
        artifact.load(str(saved))


def test_an_older_artifact_is_refused_with_the_cure(saved):
    index = json.loads((saved / "artifact.json").read_text())
    index["schema_version"] = 1
    (saved / "artifact.json").write_text(json.dumps(index))
    with pytest.raises(ArtifactError, match="older crackvae; train the model again"):
        artifact.load(str(saved))


@pytest.mark.parametrize("text", ["{", "[]", '{"format": "another", "schema_version": 1}', ""])
def test_a_foreign_artifact_is_refused(saved, text):
    (saved / "artifact.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"artifact\.json"):
        artifact.load(str(saved))


def test_a_folder_without_artifact_is_no_model(tmp_path):
    with pytest.raises(ArtifactError, match="is no model"):
        artifact.load(str(tmp_path))


def test_an_index_cannot_point_outside(saved):
    index = json.loads((saved / "artifact.json").read_text())
    index["files"]["../secret"] = "0"
    index["sha256"] = artifact._checksum(index)
    (saved / "artifact.json").write_text(json.dumps(index))
    with pytest.raises(ArtifactError, match="is no part"):
        artifact.load(str(saved))


def test_weights_of_another_network_are_refused(tiny_artifact):
    stranger = Artifact(Config(), tiny_artifact.weights, None, [], {})
    with pytest.raises(ArtifactError, match="does not fit its config"):
        stranger.network()


@pytest.mark.parametrize(
    ("asked", "device", "chosen"),
    [("bf16", "cuda", "int8"), ("bf16", "cpu", "bf16"), ("fp32", "cuda", "fp32"), ("int8", "cpu", "int8")],
)
def test_bf16_of_a_gpu_is_the_fastest_that_another_device_has(tiny_artifact, asked, device, chosen):
    scoring = tiny_artifact.config.scoring.model_copy(update={"precision": asked})
    config = tiny_artifact.config.model_copy(update={"scoring": scoring})
    made = dataclasses.replace(tiny_artifact, config=config, provenance={"calibrated_on": {"device": device}})
    weights = made.weights | {LARGEST: torch.ones(1)}
    assert dataclasses.replace(made, weights=weights).precision == chosen
    without = {name: value for name, value in made.weights.items() if name != LARGEST}
    assert dataclasses.replace(made, weights=without).precision == ("auto" if chosen != asked else asked)
