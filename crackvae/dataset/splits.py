"""Divides labelled images among train, val, test and external, whole groups at a time.

The reference plan: the external set first, 25% of the normals and 75% of the cracks; then the
other normals 80/10/10 into train, val and test, and the other cracks 10/90 into val and test.

Groups stand in a line, in an order that a hash gives, and the line is cut near the wanted sizes.
A cut moves to the nearest end of a group, by half a group at most, so each split is within one
group of its size. Only hashes and whole numbers decide: the plan is the same on any machine, and
for any order of the rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from hashlib import blake2b

import numpy as np

from crackvae.errors import InputError, UsageError
from crackvae.schema import Label, Split

TRAIN_SHARE, VAL_SHARE = 0.8, 0.1  # of the normals that are not external; the rest is for test
CRACK_VAL_SHARE = 0.1  # of the cracks that are not external; the rest is for test


def plan(
    labels: Sequence[str | None],
    groups: Sequence[str],
    *,
    external_normal: float = 0.25,
    external_crack: float = 0.75,
    seed: int = 0,
) -> list[str | None]:
    """Says what each image is used for.

    A group that holds a crack counts as a group of cracks: its normals are in no training set.

    Args:
        labels: `Label` of each image, or None.
        groups: Group of each image; equal for twins.
        external_normal: Normals for the external set: a float is a share in [0, 1], an int is a
            count. 0 for none.
        external_crack: The same for cracks.
        seed: Another seed, another order of the groups.

    Returns:
        `Split` of each image; None where it has no label.

    Raises:
        UsageError: A share is none.
        InputError: More external images are asked for than there are, or train or val is left
            without a normal.
    """
    normals, cracks = (
        Counter(group for group, found in zip(groups, labels, strict=True) if found == label) for label in Label
    )
    if not normals:
        raise InputError("no image is labelled normal; name the folder with --normal NAME")
    of_cracks = _sizes("--external-crack", external_crack, cracks.total(), {Split.VAL: CRACK_VAL_SHARE})
    split = _cut(cracks, of_cracks, seed)
    shares = {Split.TRAIN: TRAIN_SHARE, Split.VAL: VAL_SHARE}
    of_normals = _sizes("--external-normal", external_normal, normals.total(), shares)
    # Normals that went with a crack of their group are already placed.
    placed = Counter({group: n for group, n in normals.items() if group in split})
    left = Counter(of_normals)
    for group, count in placed.items():
        left[split[group]] -= count
    split |= _cut(normals - placed, left, seed)

    result = [None if label is None else split[group] for group, label in zip(groups, labels, strict=True)]
    for name in (Split.TRAIN, Split.VAL):
        if (Label.NORMAL, name) not in zip(labels, result, strict=True):
            few = normals.total() - of_normals[Split.EXTERNAL]
            tied = f", {placed.total()} of which go where a crack of their group goes," if placed else ""
            raise InputError(
                f"{few} normals that are not external{tied} are too few: none is left for {name}; add normals or lower "
                "--external-normal"
            )
    return list(result)


def _sizes(option: str, external: float, available: int, shares: Mapping[Split, float]) -> dict[Split, int]:
    """Images wanted for each split: what is not external goes by shares, and the rest of it to test."""
    size = {Split.EXTERNAL: _count(option, external, available)}
    inside = available - size[Split.EXTERNAL]
    size |= {name: round(share * inside) for name, share in shares.items()}
    return {**size, Split.TEST: available - sum(size.values())}


def _count(option: str, wanted: float, available: int) -> int:
    if wanted < 0 or (isinstance(wanted, float) and not wanted <= 1):
        raise UsageError(f"{option} {wanted}: give a share from 0.0 to 1.0, or a count")
    count = wanted if isinstance(wanted, int) else round(wanted * available)
    if count > available:
        raise InputError(f"{option} {wanted}: there are only {available}; give a smaller count")
    return count


def _cut(size: Mapping[str, int], wanted: Mapping[Split, int], seed: int) -> dict[str, Split]:
    """Stands the groups in a line and cuts it into splits of about the wanted sizes.

    Args:
        size: Number of images of each group.
        wanted: Number of images for each split, together at least as many as the groups hold.
            Less than none counts as none.
        seed: Of the order.
    """

    def place(group: str) -> tuple[bytes, str]:
        text = f"{seed}:{group}".encode("utf-8", "surrogateescape")
        return blake2b(text, digest_size=8).digest(), group

    line = sorted(size, key=place)
    size_G = np.array([size[group] for group in line], np.int64)
    cut_S = np.cumsum([max(0, count) for count in wanted.values()])
    # Twice the middle of a group against twice the cut: whole numbers, no rounding.
    split_G = np.searchsorted(2 * cut_S, 2 * np.cumsum(size_G) - size_G, side="right")
    names = list(wanted)
    return {group: names[index] for group, index in zip(line, split_G.tolist(), strict=True)}
