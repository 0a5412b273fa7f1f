import pytest
import torch

from crackvae.config import Config
from crackvae.model import artifact
from crackvae.model.loss import vae_loss
from crackvae.model.network import Output, _ToPixels, normalise


@pytest.fixture(scope="module")
def reference():
    torch.manual_seed(0)
    return artifact.build_network(Config(recipe="reference"))


def test_the_reference_network_has_the_shapes_and_parameters_of_the_recipe(reference):
    x_B1HW = torch.rand(2, 1, 128, 128) * 2 - 1
    x_hat_B1HW, logvar_B1HW, mu_BZ, logvar_BZ = reference(x_B1HW)
    assert logvar_B1HW is None
    assert x_hat_B1HW.shape == x_B1HW.shape
    assert mu_BZ.shape == logvar_BZ.shape == (2, 128)
    assert x_hat_B1HW.abs().max() <= 1
    assert sum(p.numel() for p in reference.parameters()) == 7_686_081
    strides = [m.stride for m in reference.modules() if isinstance(m, torch.nn.Conv2d)]
    assert strides == [(2, 2)] * 4


def test_scoring_uses_the_mean_and_training_samples(reference):
    x_B1HW = torch.rand(1, 1, 128, 128)
    with torch.inference_mode():
        assert torch.equal(reference.reconstruct(x_B1HW)[0], reference.reconstruct(x_B1HW)[0])
        assert not torch.equal(reference(x_B1HW).x_hat_B1HW, reference(x_B1HW).x_hat_B1HW)


def test_gray_levels_become_minus_one_to_one():
    x_B1HW = normalise(torch.tensor([[[0, 255]]], dtype=torch.uint8))
    assert x_B1HW.shape == (1, 1, 1, 2)
    assert x_B1HW.flatten().tolist() == [-1.0, 1.0]


def test_the_loss_is_mse_and_weighted_divergence_from_the_prior():
    torch.manual_seed(1)
    mu_BZ, logvar_BZ = torch.randn(3, 5), torch.randn(3, 5)
    x_B1HW, x_hat_B1HW = torch.rand(3, 1, 8, 8), torch.rand(3, 1, 8, 8)
    loss = vae_loss(Output(x_hat_B1HW, None, mu_BZ, logvar_BZ), x_B1HW, kl_weight=0.5)
    posterior = torch.distributions.Normal(mu_BZ, torch.exp(logvar_BZ / 2))
    prior = torch.distributions.Normal(0.0, 1.0)
    kl = torch.distributions.kl_divergence(posterior, prior).sum(1).mean()
    mse = torch.nn.functional.mse_loss(x_hat_B1HW, x_B1HW)
    torch.testing.assert_close(loss.kl, kl)
    torch.testing.assert_close(loss.mse, mse)
    torch.testing.assert_close(loss.total, mse + 0.5 * kl)


def test_the_loss_of_a_gaussian_likelihood_is_its_negative_logarithm_but_for_a_constant():
    torch.manual_seed(2)
    x_B1HW, x_hat_B1HW, logvar_B1HW = torch.rand(3, 1, 8, 8), torch.rand(3, 1, 8, 8), torch.randn(3, 1, 8, 8)
    zero_BZ = torch.zeros(3, 5)  # the prior itself
    loss = vae_loss(Output(x_hat_B1HW, logvar_B1HW, zero_BZ, zero_BZ), x_B1HW, kl_weight=1.0)
    logarithm = torch.distributions.Normal(x_hat_B1HW, torch.exp(logvar_B1HW / 2)).log_prob(x_B1HW).mean()
    torch.testing.assert_close(loss.total, -logarithm - 0.5 * torch.log(torch.tensor(2 * torch.pi)))


def test_a_gaussian_decoder_tells_a_variance_within_bounds():
    x_hat_B1HW, logvar_B1HW = artifact.build_network(Config()).decode(1e4 * torch.randn(2, 64))
    assert x_hat_B1HW.shape == logvar_B1HW.shape == (2, 1, 128, 128)
    assert (logvar_B1HW.min(), logvar_B1HW.max()) == (-9, 2)


@pytest.mark.parametrize("outputs", [1, 2])
def test_the_last_layer_is_a_transposed_convolution(outputs):
    torch.manual_seed(0)
    last = _ToPixels(5, outputs)
    plain = torch.nn.ConvTranspose2d(5, outputs, 4, stride=2, padding=1)
    plain.load_state_dict(last.state_dict())
    x_BCHW = torch.randn(2, 5, 6, 9)
    torch.testing.assert_close(last(x_BCHW), plain(x_BCHW))
    gradients = []
    for layer in (last, plain):
        layer(x_BCHW).square().sum().backward()
        gradients.append([p.grad for p in layer.parameters()])
    torch.testing.assert_close(*gradients)
