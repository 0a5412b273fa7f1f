"""Photographs of two surveys matched by position, on a sphere: no seam at the antimeridian, none at the poles."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.spatial import KDTree

POSITION = ["latitude", "longitude"]

_EARTH = 6_371_008.8  # metres, mean radius (IUGG); distances on the ellipsoid differ by up to 0.6%

Floats = NDArray[np.float64]


def partners(old: pd.DataFrame, new: pd.DataFrame, radius: float) -> NDArray[np.int64]:
    """Matches the photographs of two surveys that are each other's nearest, and within a radius.

    Of several at the very same position, the first is matched among the first of other positions, the
    second among the second, and so on.

    Args:
        old: Columns latitude and longitude in degrees, NaN where unknown; rows in order of name.
        new: Those of the other survey.
        radius: Great-circle distance in metres.

    Returns:
        partner_N: The row in `old` of each row of `new`, -1 where it has none.
    """
    (old_K, point_K4), (new_L, point_L4) = _points(old), _points(new)
    chord_L, nearest_L = KDTree(point_K4).query(point_L4)
    _, nearest_K = KDTree(point_L4).query(point_K4)
    is_mutual_L = nearest_K[nearest_L] == np.arange(len(new_L))
    is_near_L = chord_L <= 2 * math.sin(min(radius / _EARTH, math.pi) / 2)
    partner_N = np.full(len(new), -1)
    partner_N[new_L] = np.where(is_mutual_L & is_near_L, old_K[nearest_L], -1)
    return partner_N


def _points(survey: pd.DataFrame) -> tuple[NDArray[np.int64], Floats]:
    """The rows with a position, and their unit vectors; a fourth dimension tells those at one position apart."""
    row_K = np.flatnonzero(survey["latitude"].notna())
    placed = survey.iloc[row_K]
    layer_K = 4 * placed.groupby(POSITION).cumcount()  # two unit vectors are 2 apart at most
    return row_K, np.column_stack([_unit(*placed[POSITION].to_numpy().T), layer_K])


def distance(rows: pd.DataFrame) -> Floats:
    """Great-circle distance in metres of columns latitude_old to longitude_new; NaN where one is unknown."""
    old_N3, new_N3 = (_unit(*(rows[f"{name}_{side}"].to_numpy() for name in POSITION)) for side in ("old", "new"))
    half_N = np.linalg.norm(old_N3 - new_N3, axis=1) / 2
    return np.asarray(2 * _EARTH * np.arcsin(np.minimum(half_N, 1)))


def _unit(latitude_N: Floats, longitude_N: Floats) -> Floats:
    lat_N, lon_N = np.radians(latitude_N), np.radians(longitude_N)
    return np.stack([np.cos(lat_N) * np.cos(lon_N), np.cos(lat_N) * np.sin(lon_N), np.sin(lat_N)], axis=1)
