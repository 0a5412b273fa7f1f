"""Names that rows share: found, and numbered, by hashes instead of the names themselves."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Hashes: TypeAlias = NDArray[np.uint64]

SECOND_KEY = "6543219876543210"
"""Of a second hash: were two URIs alike by one of 64 bits, a file would vanish."""

_HASHES = 2**20  # held at a time


def repeats(path: Path) -> bool:
    """Whether a file of 64-bit numbers holds one twice, in memory for a million of them."""
    parts = math.ceil(path.stat().st_size / (8 * _HASHES))
    for part in range(parts):
        kept = []
        with path.open("rb") as stream:
            while len(piece := np.fromfile(stream, np.uint64, _HASHES)):
                kept.append(piece[piece % np.uint64(parts) == part])
        if (np.diff(np.sort(np.concatenate(kept))) == 0).any():
            return True
    return False


def numbered(ids: list[str], before_N: NDArray[np.int64], taken_N: Hashes, made: set[str]) -> list[str]:
    """Gives rows ids of their own: `#2`, `#3` where an earlier row has the same.

    Args:
        ids: Of some rows.
        before_N: How many rows before each have its id.
        taken_N: Hashes of all ids, sorted.
        made: Keeps those that were made and that others could come to, too.
    """

    def are_taken(names: list[str]) -> NDArray[np.bool_]:
        hash_N = hashed(names)
        return np.asarray(taken_N[np.searchsorted(taken_N, hash_N).clip(max=taken_N.size - 1)] == hash_N)

    def free(name: str) -> str:
        while name in made or are_taken([name])[0]:
            name += "#2"
        made.add(name)
        return name

    places = np.flatnonzero(before_N).tolist()
    wanted = [f"{ids[place]}#{before_N[place] + 1}" for place in places]
    for place, name, is_taken in zip(places, wanted, are_taken(wanted), strict=True):
        ids[place] = free(name) if is_taken or "#" in ids[place] else name
    return ids


def hashed(names: list[str], key: str = "0123456789123456") -> Hashes:
    """Hashes of 64 bits; by another key, others."""
    return pd.util.hash_array(np.array(names, object), hash_key=key, categorize=False)


def earlier(*hashes_N: Hashes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of each row the first one with the same hashes, and how many of these come before it."""
    order_N = np.lexsort(hashes_N)  # stable
    place_N = np.arange(order_N.size)
    is_new_N = np.ones(order_N.size, np.bool_)
    is_new_N[1:] = np.any([hash_N[order_N[1:]] != hash_N[order_N[:-1]] for hash_N in hashes_N], axis=0)
    start_N = np.maximum.accumulate(np.where(is_new_N, place_N, 0))
    first_N, before_N = np.empty((2, order_N.size), np.int64)
    first_N[order_N], before_N[order_N] = order_N[start_N], place_N - start_N
    return first_N, before_N
