"""The network in 8-bit integers, for CPUs that multiply them at twice the rate of bf16 (AVX-512 VNNI).

Jacob et al. (2018), "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference". Weights are symmetric with a scale per output channel. Activations have a scale per layer, from their
largest value on training tiles; larger ones, as a crack may cause them, are cut off there.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise, product
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from crackvae.model.network import PHASES, ConvVAE, normalise, phase_kernels, split_output
from crackvae.model.packed import interleaved, linear_layers

LARGEST = "largest_activations"
"""Name of the layers' largest activations among an artifact's weights."""

_BLOCK = 4  # the side of what the last layer computes at once, in pixels
# Rows -1 to 2 of a feature map, as rows of the phases that it is computed in: which phase, and which row from there.
_PLACES = {-1: (1, 0), 0: (0, 0), 1: (1, 1), 2: (0, 1)}
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
        *ups, last = (layer for layer in network.decoder if isinstance(layer, nn.ConvTranspose2d))
        largest = iter(largest_L.tolist())
        gray = _Scale(1 / 127.5, _ZERO)  # of a gray level, which is 1 / 255 too low: half of a level
        scales = [gray, *(_Scale(next(largest) / 255, 0) for _ in convolutions)]
        biases = [cast(Tensor, conv.bias) for conv in convolutions]
        biases[0] = biases[0] + convolutions[0].weight.sum(dim=(1, 2, 3)) / 255
        first, *encoder = zip(convolutions, biases, pairwise(scales), strict=True)
        self._first = _layer(_of_blocks(first[0].weight), first[1], *first[2], relu=True, padding=0)
        self._encoder = [_layer(conv.weight, bias, *pair, relu=True, stride=2) for conv, bias, pair in encoder]
        self._mu_scale = _Scale(next(largest) / 127, _ZERO)
        z_scale = _Scale(next(largest) / 127, _ZERO)
        to_mu, from_z, self._shape = linear_layers(network)
        self._to_mu = _layer(*to_mu, scales[-1], None)
        self._from_z = _layer(*from_z, self._mu_scale, z_scale)
        scales = [z_scale, *(_Scale(next(largest) / 255, 0) for _ in ups)]
        biases = [cast(Tensor, up.bias).repeat(len(PHASES)) for up in ups]
        self._ups = [
            _layer(phase_kernels(up.weight), bias, *pair, relu=True)
            for up, bias, pair in zip(ups, biases, pairwise(scales), strict=True)
        ]
        bias = cast(Tensor, last.bias).repeat(_BLOCK * _BLOCK)
        self._last = _layer(_to_blocks(last.weight), bias, scales[-1], None, padding=0)

    def reconstruct(self, tile_BHW: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """As `ConvVAE.reconstruct`, of gray levels 0..255 (uint8)."""
        x_BCHW = self._first(_blocks(tile_BHW))
        for layer in self._encoder:
            x_BCHW = layer(x_BCHW)
        mu_BZ = self._to_mu(x_BCHW.permute(0, 2, 3, 1).flatten(1))
        z_BZ = (mu_BZ / self._mu_scale.step + _ZERO).round().clamp(0, 255).to(torch.uint8)
        x_BCHW = self._from_z(z_BZ).view(-1, *self._shape).permute(0, 3, 1, 2)
        *ups, up = self._ups
        for layer in ups:
            x_BCHW = interleaved(layer(x_BCHW))
        return *split_output(_unblocked(self._last(_without_outside(up(x_BCHW))))), mu_BZ


class _Scale(NamedTuple):
    """What the 8-bit values of a layer mean: step * (value - zero)."""

    step: float
    zero: int


def _layer(
    weight: Tensor,
    bias: Tensor,
    before: _Scale,
    after: _Scale | None,
    *,
    relu: bool = False,
    stride: int = 1,
    padding: int = 1,
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
    geometry = ([stride] * 2, [padding] * 2, [1, 1], 1)  # stride, padding, dilation, groups
    packed = ops.qconv_prepack(whole, step_K, *before, *geometry, None)
    return lambda x: cast(Tensor, ops.qconv2d_pointwise(x, *before, packed, *scales, *geometry, *out))


# The first and the last layer have one or two channels where the processor multiplies four or sixteen at once. Both are
# computed on blocks of pixels as channels (Shi et al. 2016), to the same bits: the network takes 0.33 ms a tile instead
# of 0.41, on one core of an Intel Xeon. (Without VNNI, sums of two products would be cut off in the first.)


def _of_blocks(weight_C144: Tensor) -> Tensor:
    """The kernels 4x4 of stride 2 and padding 1 for `_blocks`."""
    return weight_C144.view(-1, 2, 2, 2, 2).permute(0, 2, 4, 1, 3).flatten(1, 2)


def _blocks(tile_BHW: Tensor) -> Tensor:
    """Blocks 2x2 of a tile with a margin of one pixel, which stands for zero, as channels."""
    padded_BHW = nn.functional.pad(tile_BHW, (1, 1, 1, 1), value=_ZERO)
    pair_BHw = padded_BHW.view(torch.int16)  # two pixels of a row are one element
    return torch.stack((pair_BHw[:, ::2], pair_BHw[:, 1::2]), dim=3).view(torch.uint8).permute(0, 3, 1, 2)


def _to_blocks(weight_CK44: Tensor) -> Tensor:
    """The kernels 2x2 to blocks 4x4 of a transposed convolution 4x4 of stride 2 and padding 1, of a map in phases.

    Row m of the map adds to row t of the output by row t + 1 - 2m of the kernel; columns alike.
    """
    channels, outputs = weight_CK44.shape[:2]
    kernel_RSKrsC22 = weight_CK44.new_zeros(_BLOCK, _BLOCK, outputs, 2, 2, channels, 2, 2)
    taps = [(t, t + 1 - 2 * m, *place) for t in range(_BLOCK) for m, place in _PLACES.items() if 0 <= t + 1 - 2 * m < 4]
    for (t, k, r, y), (u, j, s, x) in product(taps, taps):
        kernel_RSKrsC22[t, u, :, r, s, :, y, x] = weight_CK44[:, :, k, j].T
    return kernel_RSKrsC22.view(_BLOCK * _BLOCK * outputs, len(PHASES) * channels, 2, 2)


def _without_outside(y_BKhw: Tensor) -> Tensor:
    """Puts zeros, in place, where the four phases of a transposed convolution reach beyond its output."""
    y_BhwK = y_BKhw.permute(0, 2, 3, 1)
    rest_BhwrsC = y_BhwK.view(*y_BhwK.shape[:3], 2, 2, -1)
    rest_BhwrsC[:, 0, :, 1] = rest_BhwrsC[:, -1, :, 0] = 0
    rest_BhwrsC[:, :, 0, :, 1] = rest_BhwrsC[:, :, -1, :, 0] = 0
    return y_BKhw


def _unblocked(y_BKhw: Tensor) -> Tensor:
    """Blocks as channels to pixels."""
    batch, _, height, width = y_BKhw.shape
    y_BhRwSC = y_BKhw.permute(0, 2, 3, 1).view(batch, height, width, _BLOCK, _BLOCK, -1).transpose(2, 3)
    return y_BhRwSC.reshape(batch, _BLOCK * height, _BLOCK * width, -1).permute(0, 3, 1, 2)
