"""Length and width of a line, such as a crack, from the region of the photograph that holds it."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates
from scipy.signal import peak_widths
from scipy.sparse import csr_array
from scipy.sparse.csgraph import minimum_spanning_tree
from skimage.graph import pixel_graph
from skimage.morphology import remove_small_holes, skeletonize

from crackvae.images.decode import Gray

Map = NDArray[np.float32]
Bools = NDArray[np.bool_]
Values = NDArray[np.float64]

_SLENDER = 4  # a line is so many times as long as its region is wide
_MAX_PIXELS = 4e6  # boxes of more are thinned at a lower resolution, and so are
_MAX_HALF = 16.0  # regions of more half-width, as thinning passes over the box once a pixel of it
_MAX_HOLE = 64  # pixels; a skeleton would go around it
_SMOOTHING = 18  # steps of diffusion along a skeleton: a Gaussian of 3 pixels
_MAX_PROFILES = 250  # across a line
_ALONG_PX = (-3, -1, 1, 3)  # a profile is the mean of those so far along the line
_FLANK_PX = (3.0, 6.5)  # outside of the region, where the sound concrete beside it is sought
_MAX_REACH_PX = 100  # wider regions are no lines
_THINNEST_PX = 0.5  # that is told apart; thinner lines are only fainter
_BLUR_PX = 2.0  # full width at half maximum of a line without width, by lens, pixels and interpolation


def measure(gray_HW: Gray, expected_HW: Gray, inside_hw: Gray, corner: tuple[int, int]) -> tuple[float, float] | None:
    """Measures a region that is line-like.

    The length is that of a smoothed skeleton. Thinning stops short of an end by half of the width,
    which is added at each, save where the region ends at the edge of the photograph. Lines side by
    side whose regions have merged are one line.

    Args:
        gray_HW: Gray levels of the photograph.
        expected_HW: Those without the line: a reconstruction, or its surroundings.
        inside_hw: 1 in the region, which is connected, and 0 in a margin around it: 2 pixels and
            a thirtieth of its box, save where the photograph ends.
        corner: The row and column of the photograph where inside_hw begins.

    Returns:
        Length with all branches, and mean width, in pixels. None where the region is under 4 times
        as long as its area over its length, or over 187 pixels wide, or where it is not darker (or
        brighter) in the middle than on both sides at more than half of the places.
    """
    point_N2, half_N, tree = _centerline(inside_hw)
    point_N2 += corner
    start_E, end_E = tree.nonzero()
    length = float(np.linalg.norm(point_N2[start_E] - point_N2[end_E], axis=1).sum()) / 2
    if length**2 < _SLENDER * np.count_nonzero(inside_hw):  # before the width, so that blobs cost no profiles
        return None
    mean_width = _mean_width(gray_HW, expected_HW, point_N2, half_N, tree)
    if mean_width is None:
        return None
    is_end_N = np.diff(tree.indptr) == 1
    to_edge_N = np.minimum(point_N2, np.array(gray_HW.shape) - 1 - point_N2).min(axis=1)
    is_free_N = is_end_N & (to_edge_N > half_N + 1)
    return length + float(is_free_N.sum()) * mean_width / 2, mean_width


def _centerline(inside_hw: Gray) -> tuple[Values, Values, csr_array]:
    """The skeleton (Zhang and Suen 1984) as a tree of pixels, without spurs, smoothed.

    Returns:
        point_N2, (y, x) in pixels of inside_hw; half_N, half the width of the region there; and
        tree_NN of what is connected. Loops are cut at one edge, which hardly shortens them.
    """
    step = max(1.0, math.sqrt(inside_hw.size / _MAX_PIXELS))
    step *= max(1.0, _depth(_shrunk(inside_hw, step)).max() / _MAX_HALF)
    pad = int(_MAX_HALF) + 2  # beyond the edge of a photograph a line goes on, and so does its skeleton
    small_hw = np.pad(_shrunk(inside_hw, step), pad, mode="edge") > 0
    small_hw = remove_small_holes(small_hw, max_size=_MAX_HOLE)
    inner = (slice(pad, -pad), slice(pad, -pad))
    skeleton_hw = skeletonize(small_hw)[inner]  # type: ignore[no-untyped-call]
    half_hw = _depth(small_hw.astype(np.uint8))[inner]
    point_N2, half_N = np.argwhere(skeleton_hw).astype(np.float64), half_hw[skeleton_hw].astype(np.float64)
    tree = _tree(skeleton_hw)
    exits_N = ((point_N2 == 0) | (point_N2 == np.array(skeleton_hw.shape) - 1)).any(axis=1)  # of the photograph
    keep_N = _without_spurs(tree, half_N, exits_N)
    point_N2, half_N, tree = point_N2[keep_N], half_N[keep_N], tree[keep_N][:, keep_N]
    degree_N1 = np.diff(tree.indptr)[:, None]
    link = tree.astype(bool).astype(np.float64)
    for _ in range(_SMOOTHING):
        mean_N2 = (link @ point_N2) / np.maximum(degree_N1, 1)
        point_N2 = np.where(degree_N1 > 1, (point_N2 + mean_N2) / 2, point_N2)
    scale_2 = np.array(inside_hw.shape) / skeleton_hw.shape
    return (point_N2 + 0.5) * scale_2 - 0.5, half_N * step, tree


def _shrunk(inside_hw: Gray, step: float) -> Gray:
    """At a lower resolution; what a region touches belongs to it, so that it stays connected."""
    height, width = (max(1, round(side / step)) for side in inside_hw.shape)
    share_hw = cv2.resize(inside_hw * np.uint8(255), (width, height), interpolation=cv2.INTER_AREA)
    return (share_hw > 0).astype(np.uint8)


def _depth(inside_hw: Gray) -> Map:
    """Distance to the nearest pixel outside; those outside of the array are."""
    return np.asarray(cv2.distanceTransform(np.pad(inside_hw, 1), cv2.DIST_L2, 5), np.float32)[1:-1, 1:-1]


def _tree(skeleton_hw: Bools) -> csr_array:
    """tree_NN of the pixels of a skeleton, row by row: the symmetric distances between neighbours."""
    graph, _ = pixel_graph(skeleton_hw, connectivity=2, sparse_type="array")  # type: ignore[no-untyped-call]
    tree = minimum_spanning_tree(graph)
    return csr_array(tree + tree.T)


def _without_spurs(tree: csr_array, half_N: Values, exits_N: Bools) -> Bools:
    """keep_N: all but branches that end hardly outside of the region's width, as a ragged edge makes them."""
    degree_N, keep_N = np.diff(tree.indptr), np.ones(len(half_N), np.bool_)
    starts, neighbours, distances = tree.indptr.tolist(), tree.indices.tolist(), tree.data.tolist()
    for end in np.flatnonzero((degree_N == 1) & ~exits_N).tolist():
        path, previous, pixel, length = [], -1, end, 0.0
        while degree_N[pixel] <= 2:
            path.append(pixel)
            onward = [k for k in range(starts[pixel], starts[pixel + 1]) if neighbours[k] != previous]
            if not onward:  # a line without branches
                break
            previous, pixel, length = pixel, neighbours[onward[0]], length + distances[onward[0]]
        else:
            keep_N[path] = length > 2 * half_N[pixel] + 2
    return keep_N


def _mean_width(gray_HW: Gray, expected_HW: Gray, point_N2: Values, half_N: Values, tree: csr_array) -> float | None:
    """Mean full width at half depth, in pixels; None where fewer than half of the profiles have one.

    Half of the depth is where a threshold errs least (Cho, Yoon, Jung: Effects of the ground
    resolution and thresholding on crack width measurements, Sensors 18(8):2644, 2018). A blur b
    widens a line w to (w^3 + b^3)^(1/3), which is within 0.2 px of a bar blurred by a Gaussian.
    """
    middle_M = np.flatnonzero(np.diff(tree.indptr) == 2)
    middle_M = middle_M[:: -(-len(middle_M) // _MAX_PROFILES) or 1]
    reach = float(half_N[middle_M].max(initial=0)) + _FLANK_PX[1]
    if len(middle_M) < 3 or reach > _MAX_REACH_PX:
        return None
    before_M, after_M = tree.indices[tree.indptr[middle_M] + np.array([[0], [1]])]
    along_M2 = point_N2[after_M] - point_N2[before_M]
    along_M2 /= np.maximum(np.linalg.norm(along_M2, axis=1, keepdims=True), 1e-9)
    offset_P = np.linspace(-reach, reach, 2 * math.ceil(2 * reach) + 1)  # every half a pixel or less
    depth_MP = _profiles(gray_HW, expected_HW, point_N2[middle_M], along_M2, offset_P)
    width_V = np.sort(_widths(depth_MP, half_N[middle_M], offset_P))
    if 2 * len(width_V) < len(middle_M):
        return None
    tenth = len(width_V) // 10
    width = float(width_V[tenth : len(width_V) - tenth].mean())
    return math.cbrt(max(width**3 - _BLUR_PX**3, _THINNEST_PX**3))


def _profiles(gray_HW: Gray, expected_HW: Gray, point_M2: Values, along_M2: Values, offset_P: Values) -> Values:
    """depth_MP: how much darker than expected the photograph is, across the line at each point."""
    across_M2 = along_M2[:, ::-1] * (1, -1)
    place_2MAP = (
        point_M2.T[:, :, None, None]
        + np.array(_ALONG_PX)[:, None] * along_M2.T[:, :, None, None]
        + offset_P * across_M2.T[:, :, None, None]
    )
    expected_MAP, gray_MAP = (
        map_coordinates(image_HW, place_2MAP, output=np.float32, order=1, mode="nearest")
        for image_HW in (expected_HW, gray_HW)
    )
    return np.asarray((expected_MAP - gray_MAP).mean(axis=1), np.float64)


def _widths(depth_MP: Values, half_M: Values, offset_P: Values) -> Values:
    """width_V of the profiles that cross half of their depth on both sides, in pixels."""
    outside_MP = np.abs(offset_P) - half_M[:, None]
    is_flank_MP = (outside_MP > _FLANK_PX[0]) & (outside_MP <= _FLANK_PX[1])
    depth_MP -= np.nanmedian(np.where(is_flank_MP, depth_MP, np.nan), axis=1, keepdims=True)
    depth_MP *= np.sign(np.median(np.where(outside_MP <= 0, depth_MP, 0).sum(axis=1)))  # bright lines are lines too
    deepest_M = np.where(outside_MP <= 0, depth_MP, -np.inf).argmax(axis=1)
    count, samples = depth_MP.shape
    first_M = np.arange(count) * samples  # one profile after the other, as a single signal
    has_depth_M = np.take_along_axis(depth_MP, deepest_M[:, None], 1)[:, 0] > 0
    first_V, peak_V = first_M[has_depth_M], (first_M + deepest_M)[has_depth_M]
    bounds = (depth_MP.ravel()[peak_V], first_V, first_V + samples - 1)
    width_V, _, left_V, right_V = peak_widths(depth_MP.ravel(), peak_V, rel_height=0.5, prominence_data=bounds)
    crosses_V = (left_V > bounds[1]) & (right_V < bounds[2])
    return np.asarray(width_V[crosses_V] * (offset_P[1] - offset_P[0]), np.float64)
