"""What computes: device, numeric precision, and the versions of all that touches a number."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any, Literal

import torch

from crackvae.errors import UsageError

Precision = Literal["fp32", "bf16", "int8"]
_NATIVE_BY = {"int8": "avx512_vnni", "bf16": "avx512_bf16"}
_LIBRARIES = (
    "torch",
    "numpy",
    "opencv-python-headless",
    "pillow",
    "pillow-heif",
    "simplejpeg",
    "scikit-image",
    "scipy",
)


@dataclass(frozen=True)
class Backend:
    """Part of a run's identity: on one backend, scores are the same bytes.

    Attributes:
        device: `cpu` or `cuda`.
        hardware: The processor's vector instructions or the GPU's name.
        precision: Of the network's arithmetic; scores are summed in fp32 either way.
        versions: Of the libraries that touch numbers.
    """

    device: str
    hardware: str
    precision: Precision
    versions: str

    def as_dict(self) -> dict[str, str]:
        """For JSON."""
        return asdict(self)


def resolve(device: str, precision: str) -> Backend:
    """Finds out what this process computes on.

    Args:
        device: `cpu`, `cuda` or `auto`.
        precision: `fp32`, `bf16`, or the fastest that the device multiplies natively: int8 for `int8`,
            else bf16, else fp32; `auto` is one of the latter two. On a CPU without AVX-512 BF16, bf16
            is 20 times slower than fp32 (5 to 107 tiles/s on AVX2).

    Raises:
        UsageError: CUDA is asked for and there is none.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("device cuda: this process sees no CUDA device; use cpu or auto")
    if device == "cuda":
        hardware, native = torch.cuda.get_device_name(), {"bf16"} if torch.cuda.is_bf16_supported(False) else set()
    else:
        hardware = torch.backends.cpu.get_cpu_capability()
        has = torch.cpu.get_capabilities()
        native = {name for name, feature in _NATIVE_BY.items() if has.get(feature)}
    chosen: Precision = "bf16" if precision == "bf16" or "bf16" in native else "fp32"
    if precision == "fp32":
        chosen = "fp32"
    elif precision == "int8" and "int8" in native:
        chosen = "int8"
    return Backend(device, hardware, chosen, versions())


def versions() -> str:
    """Of the libraries that touch numbers."""
    return ", ".join(f"{name} {metadata.version(name)}" for name in _LIBRARIES)


def autocast(device: str, precision: str) -> AbstractContextManager[object]:
    """The context in which the network computes."""
    return torch.autocast(device, torch.bfloat16, enabled=precision == "bf16")


@contextmanager
def exact(device: str) -> Iterator[None]:
    """On a GPU, fp32 without TF32, which cuDNN takes by default from Ampere on, and the same bytes every time."""
    if device != "cuda":
        yield
        return
    cudnn: Any = torch.backends.cudnn
    before = cudnn.conv.fp32_precision, cudnn.deterministic
    cudnn.conv.fp32_precision, cudnn.deterministic = "ieee", True
    try:
        yield
    finally:
        cudnn.conv.fp32_precision, cudnn.deterministic = before
