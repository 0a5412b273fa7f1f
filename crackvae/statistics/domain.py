"""What the training images look like, so that what looks otherwise is not judged.

A model of sound concrete says nothing about sky, leaves or water, nor about concrete that is out
of focus: both are anomalies, and neither is a crack.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Features = npt.NDArray[np.floating]

# Surveys differ from training in light, camera and distance more than the training images among
# themselves: a spread never counts as less than this. Gray levels, octaves of texture twice, chroma.
_LEAST_SPREAD_F = np.array([10.0, 0.3, 0.3, 4.0, 4.0])
_LEVEL = 0.999


@dataclass(frozen=True)
class Domain:
    """An ellipsoid around the features of the training tiles.

    Attributes:
        mean_F: Its centre.
        precision_FF: Inverse of the covariance.
        limit: The Mahalanobis distance up to which a tile is like them; 99.9% of them keep it.
        coarsest: mm per pixel of the coarsest training image, None where unknown.
    """

    mean_F: Features
    precision_FF: Features
    limit: float
    coarsest: float | None = None

    def contains(self, feature_NF: Features) -> npt.NDArray[np.bool_]:
        """Which tiles are like those of the training images."""
        return _distance(feature_NF - self.mean_F, self.precision_FF) <= self.limit

    def strangest(self, feature_NF: Features, names: Sequence[str]) -> str:
        """In what most of the tiles differ: `higher` or `lower` and the name of a feature."""
        spread_F = 1 / np.sqrt(np.diag(self.precision_FF))
        z_F = np.median((feature_NF - self.mean_F) / spread_F, axis=0)
        worst = int(np.argmax(np.abs(z_F)))
        return f"{'higher' if z_F[worst] > 0 else 'lower'} {names[worst]}"


def fit(feature_NF: Features, coarsest: float | None = None) -> Domain:
    """Learns the domain from the features of training tiles."""
    feature_NF = np.asarray(feature_NF, np.float64)
    mean_F = feature_NF.mean(axis=0)
    centred_NF = feature_NF - mean_F
    covariance_FF = centred_NF.T @ centred_NF / len(feature_NF) + np.diag(_LEAST_SPREAD_F**2)
    precision_FF = np.linalg.inv(covariance_FF)
    distance_N = _distance(centred_NF, precision_FF)
    return Domain(mean_F, precision_FF, float(np.quantile(distance_N, _LEVEL)), coarsest)


def _distance(difference_NF: Features, precision_FF: Features) -> Features:
    squared_N = np.einsum("nf,fg,ng->n", difference_NF, precision_FF, difference_NF)
    return np.asarray(np.sqrt(np.maximum(squared_N, 0.0)))
