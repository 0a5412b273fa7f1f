"""Photographs of two surveys matched by position, on a sphere: no seam at the antimeridian, none at the poles."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.spatial import KDTree

from crackvae.errors import InputError

POSITION = ("latitude", "longitude")

_EARTH = 6_371_008.8  # metres, mean radius (IUGG); distances on the ellipsoid differ by up to 0.6%
_MOST_PAIRS = 10_000_000  # of places, held at a time
_CLOSEST = 1e-9  # of the radius of the Earth: 6 mm

Indices = NDArray[np.int64]
Floats = NDArray[np.float64]


class Places:
    """The positions of a run, each once, with the photographs at each in order of image_id.

    Attributes:
        unit_P3: Each place as a unit vector.
        row_N: The photographs with a position, place by place.
        next_P: Where in row_N the first photograph of each place lies that has no partner yet.
        end_P: Where those of each place end.
        unplaced: Photographs without a position.
        sharing: Photographs at a place with others.
    """

    def __init__(self, location: str, table: pa.Table) -> None:
        degrees_N2 = np.stack([table[name].to_numpy() for name in POSITION], axis=1)
        placed_N = np.flatnonzero(~np.isnan(degrees_N2[:, 0]))
        if not len(placed_N):
            raise InputError(f"{location}: no photograph has a position; leave out --radius to match by name")
        degrees_P2, place_N, count_P = np.unique(degrees_N2[placed_N], axis=0, return_inverse=True, return_counts=True)
        self.unit_P3 = _unit(*degrees_P2.T)
        self.row_N = placed_N[np.argsort(place_N, kind="stable")]
        self.end_P = np.cumsum(count_P)
        self.next_P = self.end_P - count_P
        self.unplaced = len(table) - len(placed_N)
        self.sharing = int(count_P[count_P > 1].sum())


def pairs(old: Places, new: Places, radius: float) -> tuple[Indices, Indices]:
    """The photographs, each at most once, whose places are within a radius, nearest first.

    Equally near ones are taken in the order of latitude, longitude and row. The reach grows to the
    radius in steps, so that there are few pairs to choose from in each: what is left after a step has
    no partner within its reach.

    Args:
        old: Places of one run; the photographs that are taken are so no more.
        new: Places of the other.
        radius: Great-circle distance in metres.

    Returns:
        old_M, new_M: Rows of the two tables.

    Raises:
        InputError: More pairs than memory holds are equally far apart.
    """
    full, done = 2 * math.sin(min(radius / _EARTH, math.pi) / 2), 0.0
    steps: list[tuple[Indices, Indices]] = []
    while done < full:
        free_old, free_new = (np.flatnonzero(places.next_P < places.end_P) for places in (old, new))
        trees = KDTree(old.unit_P3[free_old]), KDTree(new.unit_P3[free_new])
        reach = full
        while (count := int(trees[0].count_neighbors(trees[1], reach))) > _MOST_PAIRS:
            reach = (done + reach) / 2
            if reach - done < _CLOSEST:
                raise InputError(f"--radius {radius:g}: {count:,} pairs of places are within it; give a smaller one")
        near_M = trees[0].sparse_distance_matrix(trees[1], reach, output_type="ndarray")
        near_M = near_M[np.lexsort((near_M["j"], near_M["i"], near_M["v"]))]
        steps.append(_take(old, new, free_old[near_M["i"]], free_new[near_M["j"]]))
        done = reach
    old_M, new_M = (np.concatenate(rows) for rows in zip(*steps, strict=True))
    return old_M, new_M


def _take(old: Places, new: Places, i_M: Indices, j_M: Indices) -> tuple[Indices, Indices]:
    """Pairs the free photographs of the places i and j, as many as both have, one after the other."""
    next_i, end_i, next_j, end_j = (a.tolist() for a in (old.next_P, old.end_P, new.next_P, new.end_P))
    taken_i: list[int] = []
    taken_j: list[int] = []
    for i, j in zip(i_M.tolist(), j_M.tolist(), strict=True):
        count = min(end_i[i] - next_i[i], end_j[j] - next_j[j])
        if count:
            taken_i.extend(range(next_i[i], next_i[i] + count))
            taken_j.extend(range(next_j[j], next_j[j] + count))
            next_i[i] += count
            next_j[j] += count
    old.next_P, new.next_P = np.array(next_i), np.array(next_j)
    return old.row_N[np.array(taken_i, int)], new.row_N[np.array(taken_j, int)]


def distance(old: pa.Table, new: pa.Table) -> pa.Array:
    """Great-circle distance in metres; null where one has no position."""
    old_N3, new_N3 = (_unit(*(table[name].to_numpy() for name in POSITION)) for table in (old, new))
    half_N = np.linalg.norm(old_N3 - new_N3, axis=1) / 2
    return pa.array(2 * _EARTH * np.arcsin(np.minimum(half_N, 1)), from_pandas=True)


def _unit(latitude_N: Floats, longitude_N: Floats) -> Floats:
    """Unit vectors of positions in degrees: no seam at the antimeridian, none at the poles."""
    lat_N, lon_N = np.radians(latitude_N), np.radians(longitude_N)
    return np.stack([np.cos(lat_N) * np.cos(lon_N), np.cos(lat_N) * np.sin(lon_N), np.sin(lat_N)], axis=1)
