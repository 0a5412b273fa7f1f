"""Scoring tiles, with no Ray in sight."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from crackvae.model import backend
from crackvae.model.artifact import Artifact
from crackvae.model.network import normalise
from crackvae.model.packed import PackedVAE
from crackvae.model.quantised import QuantisedVAE

_FULL = 256  # a shard of images: fewer leave a GPU waiting, while more than 32 leave a core's cache


class TileScorer:
    """The network in evaluation mode, on a device.

    With one thread, what comes out for a tile depends on its pixels and its place in the call
    alone, or on the number of tiles too where that is said.

    Args:
        model: What to score with.
        device: `cpu` or `cuda`.
        precision: `fp32`, `bf16`, or `int8` on a CPU.

    Raises:
        ArtifactError: For int8, the model has no `quantised.LARGEST`.
    """

    def __init__(self, model: Artifact, device: str, precision: str) -> None:
        self._device = torch.device(device)
        self._batch_size = model.config.scoring.batch_size
        self._dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self._is_quantised = precision == "int8"
        self._reconstruct: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]]
        if self._is_quantised:
            self._reconstruct = QuantisedVAE(model.network(), model.largest_activations()).reconstruct
            return
        # The same numbers as under autocast, which would convert the weights for every batch.
        network = model.network().to(self._device, self._dtype)
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        on_x86 = device == "cpu" and torch.backends.cpu.get_cpu_capability().startswith("AVX")
        self._reconstruct = (PackedVAE(network) if on_x86 and precision == "fp32" else network).reconstruct

    def check_device(self) -> None:
        """Tells whether the device still computes.

        Raises:
            torch.AcceleratorError: CUDA has met an error that its context does not survive.
        """
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    @torch.inference_mode()
    def measure(self, tile_NHW: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Mean squared error of each tile against its reconstruction, and the size of its latent mean.

        Every batch has the same shape: the last one is filled up with zeros.

        Args:
            tile_NHW: Gray levels.

        Returns:
            error_N, in units of the network's input range [-1, 1], squared; and latent_N, the root mean
            square of mu over its dimensions.
        """
        size = self._batch_size if self._device.type == "cpu" else max(self._batch_size, _FULL)
        measured = [torch.empty(2, 0)]
        for start in range(0, len(tile_NHW), size):
            batch_BHW = np.zeros((size, *tile_NHW.shape[1:]), np.uint8)
            taken = tile_NHW[start : start + size]
            batch_BHW[: len(taken)] = taken
            x_B1HW, x_hat_B1HW, _, latent_B = self._pass(batch_BHW)
            measured.append(torch.stack((x_hat_B1HW.sub_(x_B1HW).square_().mean(dim=(1, 2, 3)), latent_B)))
        # Fetched at the end, so that a GPU computes a batch while the next one is filled and on its way.
        error_N, latent_N = torch.cat([of_batch.cpu() for of_batch in measured], dim=1)[:, : len(tile_NHW)].numpy()
        return error_N, latent_N

    def reconstruct(self, tile_NHW: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Reconstructions x_hat_NHW in [-1, 1]; the input is `tile / 127.5 - 1`."""
        return np.concatenate([x_hat_BHW for x_hat_BHW, _, _ in self.expect(tile_NHW)])

    def expect(
        self, tile_NHW: NDArray[np.uint8]
    ) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]]:
        """What sound concrete would look like, batch by batch.

        The last batch is as small as it is, so that an image of four tiles costs four.

        Yields:
            Reconstructions x_hat_BHW and standard deviations sigma_BHW around them, in units of the
            network's input range, ones where the likelihood tells none; and latent_B as by `measure`.
        """
        for start in range(0, len(tile_NHW), self._batch_size):
            _, x_hat_B1HW, logvar_B1HW, latent_B = self._pass(tile_NHW[start : start + self._batch_size])
            sigma_B1HW = torch.exp(0.5 * (torch.zeros_like(x_hat_B1HW) if logvar_B1HW is None else logvar_B1HW))
            yield x_hat_B1HW.squeeze(1).cpu().numpy(), sigma_B1HW.squeeze(1).cpu().numpy(), latent_B.cpu().numpy()

    @torch.inference_mode()
    def _pass(
        self, tile_BHW: NDArray[np.uint8]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor]:
        device_BHW = torch.from_numpy(tile_BHW)
        if self._device.type == "cuda":
            device_BHW = device_BHW.pin_memory().to(self._device, non_blocking=True)
        x_B1HW = normalise(device_BHW)
        network_BHW = device_BHW if self._is_quantised else x_B1HW.to(self._dtype)
        with backend.exact(self._device.type):
            x_hat_B1HW, logvar_B1HW, mu_BZ = self._reconstruct(network_BHW)
        latent_B = mu_BZ.float().square().mean(dim=1).sqrt()
        return x_B1HW, x_hat_B1HW.float(), logvar_B1HW, latent_B
