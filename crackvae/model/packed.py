"""The network in fp32 on a CPU: weights in the layout that oneDNN computes in, each ReLU within its convolution.

PyTorch lays weights out anew in every pass. On one core of an AMD EPYC without AVX-512 a tile of the reference takes
5.1 ms instead of 5.5, 86% of the rate that products of matrices reach there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from crackvae.model.network import PHASES, ConvVAE, phase_kernels, split_output

_Layer = Callable[[Tensor], Tensor]
_Linear = tuple[Tensor, Tensor]  # weights and biases


class PackedVAE:
    """Encoder to mean, and decoder, of a trained network whose weights are on the CPU."""

    def __init__(self, network: ConvVAE) -> None:
        convolutions = [layer for layer in network.encoder if isinstance(layer, nn.Conv2d)]
        *ups, last = (layer for layer in network.decoder if isinstance(layer, nn.ConvTranspose2d))
        self._encoder = [_convolution(c.weight, cast(Tensor, c.bias), stride=2, relu=True) for c in convolutions]
        self._to_mu, self._from_z, self._shape = linear_layers(network)
        self._ups = [_transposed(up) for up in ups]
        bias = cast(Tensor, last.bias).repeat(len(PHASES))
        self._last = _convolution(phase_kernels(last.weight), bias, stride=1, relu=False)

    def reconstruct(self, x_B1HW: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """As `ConvVAE.reconstruct`."""
        x_BCHW = x_B1HW.contiguous(memory_format=torch.channels_last)
        for layer in self._encoder:
            x_BCHW = layer(x_BCHW)
        mu_BZ = nn.functional.linear(x_BCHW.permute(0, 2, 3, 1).flatten(1), *self._to_mu)
        x_BCHW = nn.functional.linear(mu_BZ, *self._from_z).view(-1, *self._shape).permute(0, 3, 1, 2)
        for layer in self._ups:
            x_BCHW = layer(x_BCHW)
        return *split_output(interleaved(self._last(x_BCHW))), mu_BZ


def linear_layers(network: ConvVAE) -> tuple[_Linear, _Linear, tuple[int, int, int]]:
    """The linear layers to the mean and from the latent vector, for activations that lie channel by channel of a pixel.

    The network's own are for activations that lie pixel by pixel of a channel.

    Returns:
        Both layers, and height, width and channels of what lies between encoder and decoder.
    """
    to_mu, from_z = network.to_mu, cast(nn.Linear, network.decoder[0])
    channels, height, width = shape = cast(Any, network.decoder[1]).unflattened_size
    to_mu_ZF = to_mu.weight.detach().view(-1, *shape).permute(0, 2, 3, 1).flatten(1)
    from_z_FZ = from_z.weight.detach().view(*shape, -1).permute(1, 2, 0, 3).flatten(0, 2)
    bias_F = from_z.bias.detach().view(shape).permute(1, 2, 0).flatten()
    return (to_mu_ZF, to_mu.bias.detach()), (from_z_FZ, bias_F), (height, width, channels)


def interleaved(y_BKhw: Tensor) -> Tensor:
    """The four phases of a transposed convolution, which lie channel by channel of a pixel, put beside one another."""
    y_BhwK = y_BKhw.permute(0, 2, 3, 1)
    batch, height, width, _ = y_BhwK.shape
    height, width, channels = height - 1, width - 1, y_BhwK.shape[3] // len(PHASES)
    out: Any = y_BhwK.new_empty(batch, height, 2, width, 2, channels)
    for (r, s), phase_BhwC in zip(PHASES, y_BhwK.tensor_split(len(PHASES), dim=3), strict=True):
        out[:, :, r, :, s] = phase_BhwC[:, r : r + height, s : s + width]
    return cast(Tensor, out.view(batch, 2 * height, 2 * width, channels).permute(0, 3, 1, 2))


def _convolution(weight: Tensor, bias: Tensor, *, stride: int, relu: bool) -> _Layer:
    geometry = ([1, 1], [stride, stride], [1, 1], 1)  # padding, stride, dilation, groups
    packed = torch.ops.mkldnn._reorder_convolution_weight(weight.detach().contiguous(), *geometry)
    rest: tuple[Any, ...] = (packed, bias.detach(), *geometry, "relu" if relu else "none", [], "")
    return lambda x_BCHW: torch.ops.mkldnn._convolution_pointwise(x_BCHW, *rest)


def _transposed(up: nn.ConvTranspose2d) -> _Layer:
    geometry = ([1, 1], [0, 0], [2, 2], [1, 1], 1)  # padding, that of the output, stride, dilation, groups
    packed = torch.ops.mkldnn._reorder_convolution_transpose_weight(up.weight.detach(), *geometry)
    rest: tuple[Any, ...] = (packed, cast(Tensor, up.bias).detach(), *geometry, "relu", [], "")
    return lambda x_BCHW: torch.ops.mkldnn._convolution_transpose_pointwise(x_BCHW, *rest)
