"""The exported graph in ONNX Runtime, beside PyTorch."""

import sys
import zipfile

import cv2
import numpy as np
import onnxruntime
import pytest

from crackvae import cli
from crackvae.images import synthetic
from crackvae.images.tile import to_tile
from crackvae.model import artifact
from crackvae.model.scorer import TileScorer
from crackvae.statistics import calibration


def opened(model, path, capsys):
    """The graph of a model, its metadata and what the command said."""
    assert cli.main(["export", str(model), "--onnx", str(path)]) == 0
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session, session.get_modelmeta().custom_metadata_map, capsys.readouterr().out


@pytest.fixture
def images(real_data):
    """70 of METU's, cracked and sound."""
    with zipfile.ZipFile(real_data / "metu-concrete-20k.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))[::290]
        return [cv2.imdecode(np.frombuffer(archive.read(name), np.uint8), cv2.IMREAD_GRAYSCALE) for name in names]


def synthetic_images(folder, size):
    synthetic.write_survey(folder, normals=30, cracks=15, size=size)
    return [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in sorted(folder.rglob("*.jpg"))]


def compare_tile_model(model, images, path, capsys):
    session, told, said = opened(model, path, capsys)
    loaded = artifact.load(str(model))
    side = loaded.config.image.tile_size
    tile_NHW = np.stack([to_tile(gray_HW, side) for gray_HW in images])
    score_N, latent_N = session.run(["score", "latent"], {"tiles": tile_NHW})
    expected_N, expected_latent_N = TileScorer(loaded, "cpu", "fp32").measure(tile_NHW)
    assert np.ptp(expected_N) > 0.1 * expected_N.max()
    np.testing.assert_allclose(score_N, expected_N, rtol=1e-4)
    np.testing.assert_allclose(latent_N, expected_latent_N, rtol=1e-4)
    (one_N,) = session.run(["score"], {"tiles": tile_NHW[:1]})  # any number of tiles
    np.testing.assert_allclose(one_N, expected_N[:1], rtol=1e-4)
    limit = calibration.threshold(loaded.calibration.normals.score_n, loaded.config.scoring.alpha)
    assert float(told["crackvae.threshold"]) == limit
    assert told["crackvae.model"] == loaded.fingerprint
    assert told["crackvae.outside"] in said


def compare_photograph_model(model, images, path, capsys):
    session, told, said = opened(model, path, capsys)
    loaded = artifact.load(str(model))
    side = loaded.config.image.tile_size
    tile_NHW = np.stack([gray_HW[:side, :side] for gray_HW in images])
    found = session.run(["expected", "sigma", "latent"], {"tiles": tile_NHW})
    expected = [np.concatenate(each) for each in zip(*TileScorer(loaded, "cpu", "fp32").expect(tile_NHW), strict=True)]
    for ours_N, theirs_N in zip(found, expected, strict=True):
        assert np.std(theirs_N) > 0
        np.testing.assert_allclose(ours_N, theirs_N, atol=1e-4)
    assert "line filters and paths" in told["crackvae.outside"]
    assert said.splitlines()[-1] == f"onnx: {path}"


@pytest.mark.ray
def test_the_graph_scores_tiles_as_pytorch_does(model, tmp_path, capsys):
    compare_tile_model(model, synthetic_images(tmp_path / "images", 96), tmp_path / "m.onnx", capsys)


def test_the_graph_expects_of_tiles_of_photographs_what_pytorch_does(tmp_path, capsys):
    compare_photograph_model("pretrained", synthetic_images(tmp_path / "images", 160), tmp_path / "m.onnx", capsys)


def test_both_do_so_on_real_images(images, tmp_path, capsys, request):
    compare_photograph_model("pretrained", images, tmp_path / "p.onnx", capsys)
    compare_tile_model(request.getfixturevalue("model"), images, tmp_path / "t.onnx", capsys)


def test_without_its_packages_the_extra_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert cli.main(["export", "pretrained", "--onnx", str(tmp_path / "m.onnx")]) == 2
    error = capsys.readouterr().err.strip()
    assert "pip install 'crackvae[onnx]'" in error
    assert "\n" not in error
    assert not (tmp_path / "m.onnx").exists()
