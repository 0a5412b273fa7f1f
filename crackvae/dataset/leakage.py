"""Looks for twins across splits, by brute force, to prove that a split does not leak.

Shares no step with the grouping: bytes are compared by their hash, and thumbnails by plain
products of pixels, each pair under each of the eight symmetries of the square.

What a plain random split leaks is told by the plan in which each image is a group of its own:
``check(vector_ND, content_hash, plan(labels, image_ids))``.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from crackvae.dataset.twins import THUMBNAIL, TWIN_CORRELATION
from crackvae.schema import Split

EXAMPLES = 5  # pairs of images that are named for each pair of splits
_BLOCK = 2_048  # rows and columns of one product, 16 MB

_Float = npt.NDArray[np.float32]
_Int = npt.NDArray[np.int64]
_Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class SplitPair:
    """The twins across two splits.

    Attributes:
        first: One split.
        second: The other; it comes later in `Split`.
        exact_pairs: Pairs of images with equal bytes.
        near_pairs: Pairs that are twins by their thumbnails only; of the sample, if there is one.
        second_images: Images of the second split that have a twin in the first.
        examples: Up to EXAMPLES such pairs, as (row of the first, row of the second).
    """

    first: Split
    second: Split
    exact_pairs: int
    near_pairs: int
    second_images: int
    examples: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Leakage:
    """The twins across all splits.

    Attributes:
        images: Number of images of each split that has any.
        sampled_share: Share of the images whose thumbnails were compared with all others, in
            (0, 1]. Below 1, `near_pairs` and `second_images` are lower bounds; `exact_pairs` are
            complete all the same.
        pairs: One entry for each two splits that have images, leaking or not.
    """

    images: dict[Split, int]
    sampled_share: float
    pairs: tuple[SplitPair, ...]

    @property
    def leaks(self) -> int:
        """Pairs of twins across splits that were found; 0 is the gate."""
        return sum(pair.exact_pairs + pair.near_pairs for pair in self.pairs)

    def as_dict(self, image_id: Sequence[str]) -> dict[str, Any]:
        """The report, ready for JSON; examples are named by the image_id of each row."""
        content = {"leaks": self.leaks, "twin_correlation": TWIN_CORRELATION, **asdict(self)}
        for pair in content["pairs"]:
            pair["examples"] = [[image_id[first], image_id[second]] for first, second in pair["examples"]]
        return content


def check(
    vector_ND: _Float,
    content_hash: Sequence[str | None],
    split: Sequence[str | None],
    *,
    max_images: int = 50_000,
    seed: int = 0,
) -> Leakage:
    """Counts the twins across every two splits.

    Costs N^2 / 2 pairs of thumbnails at most. Above max_images, that many squared and halved are
    spent on a sample: each of its images is compared with all images of the other splits.

    Args:
        vector_ND: One `twins.thumbnail_vector` per image.
        content_hash: A hash of each file's bytes; None where it is not known.
        split: `Split` of each image; None for an image that takes no part.
        max_images: The most images that are all compared with each other.
        seed: Of the sample.
    """
    # Equal bytes, equal numbers; a file without a hash has a number of its own.
    known = [row if content is None else content for row, content in enumerate(content_hash)]
    content_N = pd.factorize(pd.Series(known, dtype=object))[0]
    rows = {name: row_K for name in Split if (row_K := np.flatnonzero([found == name for found in split])).size}
    taking_part = [row for row_K in rows.values() for row in row_K.tolist()]
    total = wanted = len(taking_part)
    if total > max_images:
        wanted = max(1, max_images**2 // (2 * total))
    sampled_N = np.zeros(len(vector_ND), np.bool_)
    sampled_N[random.Random(seed).sample(taking_part, wanted)] = True
    return Leakage(
        images={name: len(row_K) for name, row_K in rows.items()},
        sampled_share=wanted / total if total else 1.0,
        pairs=tuple(
            _compare((first, second), rows, vector_ND, content_N, sampled_N)
            for first, second in itertools.combinations(rows, 2)
        ),
    )


def _compare(
    names: tuple[Split, Split], rows: Mapping[Split, _Int], vector_ND: _Float, content_N: _Int, sampled_N: _Bool
) -> SplitPair:
    row_A, row_B = (rows[name] for name in names)
    exact_N = np.bincount(content_N[row_A], minlength=len(content_N))[content_N]
    leaking_N = np.zeros(len(content_N), np.bool_)
    leaking_N[row_B] = exact_N[row_B] > 0
    examples = [
        (int(row_A[np.argmax(content_N[row_A] == content_N[row])]), row)
        for row in np.flatnonzero(leaking_N)[:EXAMPLES].tolist()
    ]
    near_pairs = 0
    for first_P, second_P in _correlated(vector_ND, row_A, row_B, sampled_N):
        near_P = content_N[first_P] != content_N[second_P]
        near_pairs += int(near_P.sum())
        leaking_N[second_P] = True
        some_P = np.flatnonzero(near_P)[: EXAMPLES - len(examples)]
        examples += zip(first_P[some_P].tolist(), second_P[some_P].tolist(), strict=True)
    return SplitPair(
        *names,
        exact_pairs=int(exact_N[row_B].sum()),
        near_pairs=near_pairs,
        second_images=int(leaking_N.sum()),
        examples=tuple(examples),
    )


def _correlated(vector_ND: _Float, row_A: _Int, row_B: _Int, sampled_N: _Bool) -> Iterator[tuple[_Int, _Int]]:
    """Yields (first_P, second_P), the rows of the pairs whose thumbnails make them twins.

    Looks at each pair of which at least one image is sampled, once, block by block.
    """
    in_A, in_B = sampled_N[row_A], sampled_N[row_B]
    for part_A, part_B in ((row_A[in_A], row_B), (row_A[~in_A], row_B[in_B])):
        for left_K in _blocks(part_A):
            symmetric_8KD = _symmetries(vector_ND[left_K])
            for right_L in _blocks(part_B):
                right_DL = vector_ND[right_L].T
                twin_KL = np.zeros((len(left_K), len(right_L)), np.bool_)
                for left_KD in symmetric_8KD:
                    twin_KL |= left_KD @ right_DL >= TWIN_CORRELATION
                first_P, second_P = np.nonzero(twin_KL)
                yield left_K[first_P], right_L[second_P]


def _blocks(row_K: _Int) -> Iterator[_Int]:
    return (row_K[start : start + _BLOCK] for start in range(0, len(row_K), _BLOCK))


def _symmetries(vector_KD: _Float) -> list[_Float]:
    """The thumbnails as they are and transposed, each mirrored in the four ways: 8 x vector_KD."""
    upright_KHW = vector_KD.reshape(-1, THUMBNAIL, THUMBNAIL)
    return [
        np.ascontiguousarray(image_KHW[:, ::down, ::right]).reshape(len(vector_KD), -1)
        for image_KHW in (upright_KHW, upright_KHW.transpose(0, 2, 1))
        for down, right in itertools.product((1, -1), repeat=2)
    ]
