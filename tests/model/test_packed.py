import numpy as np
import pytest
import torch

from crackvae.images import synthetic
from crackvae.model import artifact
from crackvae.model.network import normalise
from crackvae.model.packed import PackedVAE


@pytest.mark.parametrize("source", ["pretrained", "model"])  # of two outputs per pixel, and of one
def test_packed_weights_reconstruct_what_the_network_does(source, request):
    location = source if source == "pretrained" else str(request.getfixturevalue("model"))
    loaded = artifact.load(location)
    rng, side = np.random.default_rng(0), loaded.config.image.tile_size
    tile_BHW = torch.from_numpy(np.stack([synthetic.concrete(rng, side, side) for _ in range(5)]))
    network = loaded.network()
    with torch.inference_mode():
        wanted, found = (vae.reconstruct(normalise(tile_BHW)) for vae in (network, PackedVAE(network)))
    for one, other in zip(found, wanted, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert one.shape == other.shape
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
