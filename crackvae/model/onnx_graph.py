"""A model as one ONNX graph, for what runs without PyTorch, such as a tablet on site."""

from __future__ import annotations

import logging
import warnings
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from crackvae import storage
from crackvae.errors import UsageError
from crackvae.model.artifact import Artifact
from crackvae.model.network import ConvVAE, normalise
from crackvae.statistics import calibration

# Outputs, what they are, and what stays outside.
_OF_TILES = (
    ("score", "latent"),
    "score (N), which is a crack above the metadata's threshold, and latent (N)",
    "making a tile of an image; p-values",
)
_OF_PHOTOGRAPHS = (
    ("expected", "sigma", "latent"),
    "expected (N, S, S; gray level / 127.5 - 1), sigma (N, S, S; gray levels / 127.5) and latent (N)",
    "cutting a photograph into tiles and blending them; which tiles are judged; contrast, line filters and paths, that "
    "is the score; p-values and regions",
)


class _Graph(nn.Module):
    """What `TileScorer.measure` computes of images of one tile, or `TileScorer.expect` of tiles of photographs."""

    def __init__(self, network: ConvVAE, *, of_photographs: bool) -> None:
        super().__init__()
        self.network, self._of_photographs = network, of_photographs

    def forward(self, tile_BHW: Tensor) -> tuple[Tensor, ...]:
        x_B1HW = normalise(tile_BHW)
        x_hat_B1HW, logvar_B1HW, mu_BZ = self.network.reconstruct(x_B1HW)
        latent_B = mu_BZ.square().mean(dim=1).sqrt()
        if not self._of_photographs or logvar_B1HW is None:
            return (x_hat_B1HW - x_B1HW).square().mean(dim=(1, 2, 3)), latent_B
        return x_hat_B1HW.squeeze(1), torch.exp(0.5 * logvar_B1HW).squeeze(1), latent_B


def write(model: Artifact, out: str) -> list[str]:
    """Writes a calibrated model's graph, in fp32 and for any number of tiles of uint8; its metadata say what it is.

    Returns:
        What it holds and what stays outside, for people.

    Raises:
        UsageError: The packages of the extra `onnx` are not installed.
        ArtifactError: The model is not calibrated.
    """
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise UsageError(f"--onnx needs the package {missing[0]}; pip install 'crackvae[onnx]'")
    side, rules = model.config.image.tile_size, model.config.scoring
    threshold = calibration.threshold(model.calibrated.normals.score_n, rules.alpha)
    names, holds, outside = _OF_TILES if model.photographs is None else _OF_PHOTOGRAPHS
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it names packages that are not needed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            _Graph(model.network(), of_photographs=model.photographs is not None).eval(),
            (torch.zeros(2, side, side, dtype=torch.uint8),),
            input_names=["tiles"],
            output_names=names,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    assert program is not None
    told = {"model": model.fingerprint, "threshold": f"{threshold!r}", "outputs": holds, "outside": outside}
    program.model.metadata_props.update({f"crackvae.{name}": text for name, text in told.items()})
    storage.write_bytes(out, program.model_proto.SerializeToString())
    lines = [f"the graph: tiles (N, S, S; uint8, S = {side}) to {holds}", f"outside of it: {outside}"]
    if rules.precision != "fp32":
        lines.append(
            f"it computes in fp32, and the model was calibrated in {rules.precision}: scores differ by its rounding"
        )
    return lines
