import numpy as np
import pytest
import torch
from torch import nn

from crackvae.errors import ArtifactError
from crackvae.images import synthetic
from crackvae.model import artifact, backend
from crackvae.model.network import normalise, phase_kernels
from crackvae.model.quantised import (
    LARGEST,
    QuantisedVAE,
    _blocks,
    _of_blocks,
    _to_blocks,
    _unblocked,
    _without_outside,
    largest_activations,
)
from crackvae.model.scorer import TileScorer

has_vnni = torch.cpu.get_capabilities().get("avx512_vnni")
needs_vnni = pytest.mark.skipif(not has_vnni, reason="int8 is not chosen without VNNI, and is less exact")


def tiles(count, seed, side):
    rng = np.random.default_rng(seed)
    return np.stack([synthetic.concrete(rng, side, side) for _ in range(count)])


@needs_vnni
@pytest.mark.parametrize("source", ["pretrained", "model"])  # of two outputs per pixel, and of one
def test_eight_bits_reconstruct_what_fp32_does(source, request):
    location = source if source == "pretrained" else str(request.getfixturevalue("model"))
    network = artifact.load(location).network()
    side = artifact.load(location).config.image.tile_size
    quantised = QuantisedVAE(network, largest_activations(network, torch.from_numpy(tiles(32, 0, side))))
    tile_BHW = torch.from_numpy(tiles(8, 1, side))
    with torch.inference_mode():
        x_hat, logvar, mu = network.reconstruct(normalise(tile_BHW))
        coarse_x_hat, coarse_logvar, coarse_mu = quantised.reconstruct(tile_BHW)
    assert coarse_x_hat.shape == x_hat.shape
    difference_BHW = (coarse_x_hat - x_hat).squeeze(1) * 127.5  # gray levels
    edges = [difference_BHW[:, 0], difference_BHW[:, -1], difference_BHW[:, :, 0], difference_BHW[:, :, -1]]
    for part in (difference_BHW, *edges):
        assert part.square().mean().sqrt() < 1.5
    assert (coarse_mu - mu).square().mean().sqrt() < 0.03 * mu.std()
    if logvar is not None:
        assert (coarse_logvar - logvar).square().mean().sqrt() < 0.1
        assert (x_hat.roll(1, 0) - x_hat).square().mean().sqrt() * 127.5 > 5  # of another tile


def integers(*shape, least=-9):
    """Of which sums are exact in any order."""
    return torch.randint(least, 10, shape, generator=torch.Generator().manual_seed(sum(shape))).float()


def test_a_convolution_of_a_tile_is_one_of_its_blocks():
    tile_BHW, weight = integers(2, 6, 10, least=0), integers(3, 1, 4, 4)
    blocks_BKhw = _blocks((tile_BHW + 128).byte()).float() - 128
    expected = nn.functional.conv2d(tile_BHW.unsqueeze(1), weight, stride=2, padding=1)
    assert torch.equal(nn.functional.conv2d(blocks_BKhw, _of_blocks(weight)), expected)


@pytest.mark.parametrize("outputs", [1, 2])
def test_blocks_from_phases_are_the_pixels_of_two_transposed_convolutions(outputs):
    x_BCHW, inner, outer = integers(2, 4, 6, 10), integers(4, 3, 4, 4), integers(3, outputs, 4, 4)
    map_BCHW = nn.functional.conv_transpose2d(x_BCHW, inner, stride=2, padding=1)
    expected_BCHW = nn.functional.conv_transpose2d(map_BCHW, outer, stride=2, padding=1)
    phases_BKhw = nn.functional.conv2d(x_BCHW, phase_kernels(inner), padding=1).to(memory_format=torch.channels_last)
    blocks_BKhw = nn.functional.conv2d(_without_outside(phases_BKhw), _to_blocks(outer))
    assert torch.equal(_unblocked(blocks_BKhw.to(memory_format=torch.channels_last)), expected_BCHW)


def test_the_largest_activations_are_those_of_all_tiles_whatever_their_order():
    network = artifact.load("pretrained").network()
    tile_BHW = torch.from_numpy(tiles(70, 0, 128))  # more than one batch
    largest_L = largest_activations(network, tile_BHW)
    torch.testing.assert_close(largest_activations(network, tile_BHW.flip(0)), largest_L)
    assert (largest_activations(network, tile_BHW[:4]) <= largest_L).all()
    assert (largest_L > 0).all()


def test_a_trained_model_scores_in_eight_bits_where_the_processor_is_fast_at_them(model):
    loaded = artifact.load(str(model))
    assert LARGEST in loaded.weights
    fastest = backend.resolve("cpu", "int8").precision
    assert loaded.config.scoring.precision == fastest == loaded.provenance["calibrated_on"]["precision"]


@needs_vnni
def test_eight_bits_score_as_fp32_does(model):
    loaded = artifact.load(str(model))
    tile_NHW = tiles(12, 2, loaded.config.image.tile_size)
    fine_N, coarse_N = (TileScorer(loaded, "cpu", precision).measure(tile_NHW)[0] for precision in ("fp32", "int8"))
    np.testing.assert_allclose(coarse_N, fine_N, rtol=0.03)
    assert not np.array_equal(coarse_N, fine_N)


def test_a_model_without_largest_activations_says_what_to_do(tiny_artifact):
    with pytest.raises(ArtifactError, match="which int8 needs; train the model again"):
        TileScorer(tiny_artifact, "cpu", "int8")


@pytest.mark.parametrize(
    ("features", "chosen"),
    [
        ({"avx512_vnni", "avx512_bf16"}, {"int8": "int8", "auto": "bf16", "bf16": "bf16", "fp32": "fp32"}),
        ({"avx512_bf16"}, {"int8": "bf16", "auto": "bf16", "bf16": "bf16", "fp32": "fp32"}),
        (set(), {"int8": "fp32", "auto": "fp32", "bf16": "bf16", "fp32": "fp32"}),
    ],
)
def test_the_precision_is_the_fastest_that_the_processor_has(features, chosen, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(features, True))
    assert {asked: backend.resolve("cpu", asked).precision for asked in chosen} == chosen
