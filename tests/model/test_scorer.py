import numpy as np
import pytest
import torch

from crackvae.model import backend
from crackvae.model.scorer import TileScorer


@pytest.fixture(scope="module")
def tiles_NHW():
    return np.random.default_rng(0).integers(0, 256, (21, 32, 32)).astype(np.uint8)


@pytest.fixture(scope="module")
def scorer(tiny_artifact):
    return TileScorer(tiny_artifact, "cpu", "fp32")


def test_a_score_is_the_mean_squared_error_of_the_reconstruction(scorer, tiles_NHW):
    x_NHW = tiles_NHW / 127.5 - 1
    expected_N = np.mean((scorer.reconstruct(tiles_NHW) - x_NHW) ** 2, axis=(1, 2))
    np.testing.assert_allclose(scorer.measure(tiles_NHW)[0], expected_N, rtol=1e-5)


def test_a_score_does_not_depend_on_its_neighbours(scorer, tiles_NHW):
    """Batches are 8: 21 tiles fill two and a part of a third."""
    whole_N = scorer.measure(tiles_NHW)[0]
    np.testing.assert_array_equal(scorer.measure(tiles_NHW[:8])[0], whole_N[:8])
    np.testing.assert_allclose(scorer.measure(tiles_NHW[5:6])[0], whole_N[5:6], rtol=1e-5)
    blanked_NHW = tiles_NHW.copy()
    blanked_NHW[3] = 0
    kept_N = np.arange(21) != 3
    np.testing.assert_array_equal(scorer.measure(blanked_NHW)[0][kept_N], whole_N[kept_N])


def test_no_tiles_no_scores(scorer):
    assert scorer.measure(np.empty((0, 32, 32), np.uint8))[0].shape == (0,)


def test_on_a_gpu_fp32_is_not_tf32_and_the_callers_settings_come_back():
    """The settings are there without a GPU, too."""
    cudnn = torch.backends.cudnn
    before = cudnn.conv.fp32_precision, cudnn.deterministic
    with backend.exact("cuda"):
        assert (cudnn.conv.fp32_precision, cudnn.deterministic) == ("ieee", True)
    with backend.exact("cpu"):
        assert (cudnn.conv.fp32_precision, cudnn.deterministic) == before
    assert (cudnn.conv.fp32_precision, cudnn.deterministic) == before
