"""Finds twins: copies of one image, be they mirrored, turned or re-encoded.

Two images are twins if their bytes are equal, or if their thumbnails correlate by at least
TWIN_CORRELATION under one of the eight symmetries of the square.

The DCT-II is what makes the search near-linear. With c = DCT of a thumbnail, mirroring multiplies
c_uv by (-1)^u or (-1)^v, and transposing swaps u and v (every turn is made of these). So

    (|c_uv| + |c_vu|) / sqrt 2,   ||c_uv| - |c_vu|| / sqrt 2   for u < v,   and |c_uu|

do not change under any symmetry. The DCT is orthonormal, a 2x2 rotation is, and |.| never moves
two numbers apart: the map is 1-Lipschitz, and stays so if only its first numbers are kept. Unit
vectors that correlate by r lie sqrt(2 (1 - r)) apart, so a search within that radius among the
short descriptors finds every twin, and the exact correlation then drops those that are none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt
from scipy.fft import dctn
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

THUMBNAIL = 24  # pixels a side; even, so that half of the frequencies are odd
# No two of 20,000 METU images correlate by 0.980 to 0.9875: copies lie above, others below.
TWIN_CORRELATION = 0.985

# float32 sums differ by up to 1e-6 with their order. Grouping links a little below the limit, so
# that the leakage check, which sums in another order, finds no twin that grouping just missed.
_LINK = TWIN_CORRELATION - 1e-5
_RADIUS = math.sqrt(2 * (1 - _LINK)) + 1e-5

# Frequencies a side of the descriptor. Candidate pairs of 20,000 METU images: 4: 437,000; 5: 20,000; 6: 2,900.
_FREQUENCIES = 5

_SEARCHED = 8_000_000  # most candidates of one search, 24 bytes each
_CORRELATED = 16_384  # pairs that are correlated at once, 7 kB each

_Float = npt.NDArray[np.float32]
_Int = npt.NDArray[np.int64]


def thumbnail_vector(gray_HW: npt.NDArray[np.uint8]) -> _Float:
    """Describes an image by its thumbnail, whatever its brightness and contrast.

    Args:
        gray_HW: A gray image of any size.

    Returns:
        vector_D, D = 576: the 24x24 thumbnail, row by row, minus its mean, of unit length. All
        zeros for an image of one gray, which is thus near to nobody.
    """
    # In float: the thumbnail of a smooth wall deviates by 1.3 grays, rounding it alone by 0.3.
    thumbnail_HW = cv2.resize(gray_HW.astype(np.float32), (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA)
    vector_D: _Float = (thumbnail_HW - thumbnail_HW.mean(dtype=np.float64)).astype(np.float32)
    length = float(np.linalg.norm(vector_D))
    # Rounding gives one gray a length of up to 1e-3.
    return (vector_D / length if length > 0.01 else np.zeros_like(vector_D)).ravel()


def twin_groups(vector_ND: _Float, content_hash: Sequence[str | None]) -> _Int:
    """Joins twins, and twins of twins, to groups.

    Near-linear in N; n shots of one scene cost n^2 steps of the search, but few correlations: what
    is joined is not looked at again. Memory is bounded by 10 kB an image and 0.8 GB.

    Args:
        vector_ND: One `thumbnail_vector` per image.
        content_hash: A hash of each file's bytes; None where it is not known.

    Returns:
        group_N, in [0, N): the row of the first image of the group.
    """
    group_N = first_rows(content_hash)
    row_M = np.flatnonzero((group_N == np.arange(len(group_N))) & vector_ND.any(axis=1))
    if row_M.size:
        group_N[row_M] = row_M[_near_groups(vector_ND[row_M])]
    return group_N[group_N]


def first_rows(names: Sequence[str | None]) -> _Int:
    """The first row that has the name of each row; its own where it has none."""
    first: dict[str, int] = {}
    return np.array([row if name is None else first.setdefault(name, row) for row, name in enumerate(names)], np.int64)


def joined(group_N: _Int, links: Sequence[_Int]) -> _Int:
    """The groups after joining those that a link connects.

    Args:
        group_N: The first row of the group of each row.
        links: Arrays of pairs of rows.

    Returns:
        group_N, as before.
    """
    count = len(group_N)
    from_E, to_E = np.concatenate([np.stack([np.arange(count), group_N], axis=1), *links]).T
    graph = coo_array((np.ones(len(from_E), np.int8), (from_E, to_E)), shape=(count, count))
    component_N = connected_components(graph, directed=False)[1]
    _, first_C, component_N = np.unique(component_N, return_index=True, return_inverse=True)
    return first_C[component_N]


def _near_groups(vector_ND: _Float) -> _Int:
    """`twin_groups` of images that are neither byte-identical nor of one gray."""
    count = len(vector_ND)
    coefficient_NFF = dctn(vector_ND.reshape(-1, THUMBNAIL, THUMBNAIL), axes=(1, 2), norm="ortho")
    descriptor_ND = _descriptor(coefficient_NFF[:, :_FREQUENCIES, :_FREQUENCIES])
    tree = cKDTree(descriptor_ND)
    group_N = np.arange(count)
    links: list[_Int] = []
    step = max(16, _SEARCHED // count)
    for start in range(0, count, step):
        row_K = tree.indices[start : start + step]  # neighbours in the tree: a compact part
        hit_P = cKDTree(descriptor_ND[row_K]).sparse_distance_matrix(tree, _RADIUS, output_type="ndarray")
        pair_P2 = np.stack([row_K[hit_P["i"]], hit_P["j"]], axis=1)
        pair_P2 = pair_P2[pair_P2[:, 0] < pair_P2[:, 1]]
        for block in range(0, len(pair_P2), _CORRELATED):
            block_P2 = pair_P2[block : block + _CORRELATED]
            block_P2 = block_P2[group_N[block_P2[:, 0]] != group_N[block_P2[:, 1]]]
            links.append(block_P2[_correlation(vector_ND, block_P2) >= _LINK])
            # Joining costs N steps: only worth it once there is much to join.
            if sum(map(len, links)) > count // 8:
                group_N, links = joined(group_N, links), []
    return joined(group_N, links)


def _descriptor(coefficient_NFF: _Float) -> _Float:
    """The numbers of the lowest FxF frequencies that no symmetry changes: descriptor_N(F^2)."""
    size_NFF = np.abs(coefficient_NFF)
    u, v = np.triu_indices(size_NFF.shape[1], 1)
    total_NK = size_NFF[:, u, v] + size_NFF[:, v, u]
    difference_NK = np.abs(size_NFF[:, u, v] - size_NFF[:, v, u])
    diagonal_NF = np.diagonal(size_NFF, axis1=1, axis2=2) * np.float32(math.sqrt(2))
    descriptor_ND: _Float = np.hstack([total_NK, difference_NK, diagonal_NF])
    return descriptor_ND / np.float32(math.sqrt(2))


def _correlation(vector_ND: _Float, pair_P2: _Int) -> _Float:
    """The highest correlation of each pair over the eight symmetries: correlation_P in [-1, 1]."""
    first_PD, second_PD = vector_ND[pair_P2[:, 0]], vector_ND[pair_P2[:, 1]]
    upright_PHW = second_PD.reshape(-1, THUMBNAIL, THUMBNAIL)
    turned_8PHW = (
        np.rot90(image_PHW, turns, axes=(1, 2))
        for image_PHW in (upright_PHW, upright_PHW.transpose(0, 2, 1))
        for turns in range(4)
    )
    each_8P = [np.einsum("pd,pd->p", first_PD, image_PHW.reshape(first_PD.shape)) for image_PHW in turned_8PHW]
    highest_P: _Float = np.max(each_8P, axis=0)
    return highest_P
