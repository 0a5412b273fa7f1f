"""The network in 8-bit integers, for CPUs that multiply them at twice the rate of bf16 (AVX-512 VNNI).

Jacob et al. (2018), "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference". Weights are symmetric with a scale per output channel. Activations have a scale per layer, from their
largest value on training tiles; larger ones, as a crack may cause them, are cut off there.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from crackvae.model.network import PHASES, ConvVAE, normalise, phase_kernels, split_output
from crackvae.model.packed import interleaved, linear_layers

LARGEST = "largest_activations"
"""Name of the layers' largest activations among an artifact's weights."""

_AT_A_TIME = 64  # tiles: with gradients off, 64 take 0.1 GB
_ZERO = 128  # stands for zero where values have both signs


@torch.inference_mode()
def largest_activations(network: ConvVAE, tile_BHW: Tensor) -> Tensor:
    """The largest absolute output of each layer that is quantised, for these tiles of gray levels 0..255 (uint8).

    Returns:
        largest_L: Of the encoder's convolutions, of mu, of the decoder's linear layer, and of its
            convolutions but the last.
    """
    encoded, decoded = ([m for m in part if isinstance(m, nn.ReLU)] for part in (network.encoder, network.decoder))
    kept: list[nn.Module] = [*encoded, network.to_mu, network.decoder[0], *decoded]
    largest_L = torch.zeros(len(kept))

    def note(layer: nn.Module, _: Any, y: Tensor) -> None:
        number = kept.index(layer)
        largest_L[number] = torch.maximum(largest_L[number], y.abs().max())

    hooks = [layer.register_forward_hook(note) for layer in kept]
    for start in range(0, len(tile_BHW), _AT_A_TIME):
        network.reconstruct(normalise(tile_BHW[start : start + _AT_A_TIME]))
    for hook in hooks:
        hook.remove()
    return largest_L


class QuantisedVAE:
    """Encoder to mean, and decoder, of a trained network, by its `largest_activations`."""

    def __init__(self, network: ConvVAE, largest_L: Tensor) -> None:
        convolutions = [layer for layer in network.encoder if isinstance(layer, nn.Conv2d)]
        ups = [layer for layer in network.decoder if isinstance(layer, nn.ConvTranspose2d)]
        largest = iter(largest_L.tolist())
        gray = _Scale(1 / 127.5, _ZERO)  # of a gray level, which is 1 / 255 too low: half of a level
        scales = [gray, *(_Scale(next(largest) / 255, 0) for _ in convolutions)]
        biases = [cast(Tensor, conv.bias) for conv in convolutions]
        biases[0] = biases[0] + convolutions[0].weight.sum(dim=(1, 2, 3)) / 255
        self._encoder = [
            _layer(conv.weight, bias, *pair, relu=True, stride=2)
            for conv, bias, pair in zip(convolutions, biases, pairwise(scales), strict=True)
        ]
        self._mu_scale = _Scale(next(largest) / 127, _ZERO)
        z_scale = _Scale(next(largest) / 127, _ZERO)
        to_mu, from_z, self._shape = linear_layers(network)
        self._to_mu = _layer(*to_mu, scales[-1], None)
        self._from_z = _layer(*from_z, self._mu_scale, z_scale)
        scales = [z_scale, *(_Scale(next(largest) / 255, 0) for _ in ups[1:])]
        biases = [cast(Tensor, up.bias).repeat(len(PHASES)) for up in ups]
        self._ups = [
            _layer(phase_kernels(up.weight), bias, scale, after, relu=after is not None)
            for up, bias, scale, after in zip(ups, biases, scales, [*scales[1:], None], strict=True)
        ]

    def reconstruct(self, tile_BHW: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """As `ConvVAE.reconstruct`, of gray levels 0..255 (uint8)."""
        x_BCHW = tile_BHW.unsqueeze(1).contiguous(memory_format=torch.channels_last)
        for layer in self._encoder:
            x_BCHW = layer(x_BCHW)
        mu_BZ = self._to_mu(x_BCHW.permute(0, 2, 3, 1).flatten(1))
        z_BZ = (mu_BZ / self._mu_scale.step + _ZERO).round().clamp(0, 255).to(torch.uint8)
        x_BCHW = self._from_z(z_BZ).view(-1, *self._shape).permute(0, 3, 1, 2)
        for layer in self._ups:
            x_BCHW = interleaved(layer(x_BCHW))
        return *split_output(x_BCHW), mu_BZ


class _Scale(NamedTuple):
    """What the 8-bit values of a layer mean: step * (value - zero)."""

    step: float
    zero: int


def _layer(
    weight: Tensor, bias: Tensor, before: _Scale, after: _Scale | None, *, relu: bool = False, stride: int = 1
) -> Callable[[Tensor], Tensor]:
    """A convolution, or a linear layer, of unsigned bytes to unsigned bytes, or to float32 without a scale after it."""
    ops: Any = torch.ops.onednn
    weight = weight.detach()
    step_K = weight.flatten(1).abs().amax(dim=1).clamp(min=1e-12) / 127
    whole = (weight / step_K.view(-1, *[1] * (weight.dim() - 1))).round().to(torch.int8)
    scales = (step_K, torch.zeros(len(step_K), dtype=torch.int64), bias.detach())
    post: tuple[Any, ...] = ("relu" if relu else "none", [], "")
    out = (*(after or (1.0, 0)), torch.uint8 if after else torch.float32, *post)
    if weight.dim() == 2:
        packed = ops.qlinear_prepack(whole, None)
        return lambda x: cast(Tensor, ops.qlinear_pointwise(x, *before, packed, *scales, *out))
    geometry = ([stride] * 2, [1, 1], [1, 1], 1)  # stride, padding, dilation, groups
    packed = ops.qconv_prepack(whole, step_K, *before, *geometry, None)
    return lambda x: cast(Tensor, ops.qconv2d_pointwise(x, *before, packed, *scales, *geometry, *out))
