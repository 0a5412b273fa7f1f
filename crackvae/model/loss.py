"""The training loss."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from crackvae.model.network import Output


class Loss(NamedTuple):
    """The loss and its terms, each a scalar tensor, averaged over the batch.

    Attributes:
        total: The negative log-likelihood of a pixel, or mse, + kl_weight * kl.
        mse: Mean squared error per pixel, of values in [-1, 1].
        kl: Kullback-Leibler divergence from the prior, in nats per tile.
    """

    total: Tensor
    mse: Tensor
    kl: Tensor


def vae_loss(output: Output, x_B1HW: Tensor, kl_weight: float) -> Loss:
    """The negative evidence lower bound of a Gaussian decoder, up to scale and a constant.

    ::

        L = 1/(B D) sum_b ||x_b - x_hat_b||^2  +  kl_weight * 1/B sum_b KL_b
        KL_b = -1/2 sum_z (1 + logvar - mu^2 - exp(logvar))

    with D pixels a tile (Kingma & Welling, Auto-Encoding Variational Bayes, 2014, eq. 10 and
    appendix B). A decoder of variance s^2 per pixel corresponds to kl_weight = 2 s^2 / D. Where the
    decoder tells a variance v of each pixel, the first term is

    ::

        1/(2 B D) sum_b sum_d (log v + (x - x_hat)^2 / v)

    and kl_weight = 1 / D makes L the bound itself, per pixel.
    """
    square_B1HW = (output.x_hat_B1HW.float() - x_B1HW).square()
    mse = fit = square_B1HW.mean()
    if output.logvar_B1HW is not None:
        logvar_B1HW = output.logvar_B1HW.float()
        fit = 0.5 * (logvar_B1HW + square_B1HW * torch.exp(-logvar_B1HW)).mean()
    mu_BZ, logvar_BZ = output.mu_BZ.float(), output.logvar_BZ.float()
    kl_B = -0.5 * torch.sum(1.0 + logvar_BZ - mu_BZ.square() - logvar_BZ.exp(), dim=1)
    kl = kl_B.mean()
    return Loss(fit + kl_weight * kl, mse, kl)
