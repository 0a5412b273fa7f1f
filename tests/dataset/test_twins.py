import itertools

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.fft import dctn, idctn

from crackvae.dataset import twins
from crackvae.dataset.twins import TWIN_CORRELATION, thumbnail_vector, twin_groups


def concrete(seed, side=96):
    """A gray image with structure at several scales."""
    rng = np.random.default_rng(seed)
    gray_HW = np.full((side, side), 128, np.float32)
    for cells in (3, 6, 12, 24):
        noise = rng.normal(size=(cells, cells)).astype(np.float32)
        gray_HW += 20 * cv2.resize(noise, (side, side), interpolation=cv2.INTER_CUBIC)
    return gray_HW.clip(0, 255).astype(np.uint8)


def symmetric(gray_HW, symmetry):
    turned = np.rot90(gray_HW, symmetry % 4)
    return np.ascontiguousarray(turned if symmetry < 4 else turned.T)


def reencoded(gray_HW, quality=70):
    return cv2.imdecode(cv2.imencode(".jpg", gray_HW, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_GRAYSCALE)


def unit(vector_ND):
    vector_ND = vector_ND - vector_ND.mean(axis=1, keepdims=True)
    length_N1 = np.linalg.norm(vector_ND, axis=1, keepdims=True)
    return (vector_ND / length_N1).astype(np.float32)


def smooth(rng, count):
    """Thumbnails of low frequencies only: the descriptor keeps all of their distances."""
    coefficient_NFF = np.zeros((count, 24, 24))
    coefficient_NFF[:, :5, :5] = rng.normal(size=(count, 5, 5))
    return unit(idctn(coefficient_NFF, axes=(1, 2), norm="ortho").reshape(count, -1))


def at_correlation(vector_ND, correlation, rng):
    """For each vector another that correlates with it by exactly that."""
    other_ND = smooth(rng, len(vector_ND))
    other_ND = unit(other_ND - (other_ND * vector_ND).sum(axis=1, keepdims=True) * vector_ND)
    return (correlation * vector_ND + np.sqrt(1 - correlation**2) * other_ND).astype(np.float32)


def all_symmetries(vector_D):
    image_HW = vector_D.reshape(24, 24)
    return [symmetric(image_HW, symmetry).ravel() for symmetry in range(8)]


def brute_force(vector_ND):
    """The groups by comparing everything with everything."""
    group = list(range(len(vector_ND)))
    for first, second in itertools.combinations(range(len(vector_ND)), 2):
        highest = max(float(vector_ND[first] @ copy) for copy in all_symmetries(vector_ND[second]))
        if highest >= TWIN_CORRELATION:
            low, high = sorted((group[first], group[second]))
            group = [low if member == high else member for member in group]
    return group


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), low=st.integers(0, 100), gain=st.floats(0.2, 0.6))
def test_thumbnail_forgets_brightness_and_contrast(seed, low, gain):
    gray_HW = concrete(seed)
    vector_D = thumbnail_vector(gray_HW)
    assert vector_D.shape == (576,)
    assert vector_D.dtype == np.float32
    assert vector_D.sum() == pytest.approx(0, abs=1e-4)
    assert np.linalg.norm(vector_D) == pytest.approx(1, abs=1e-5)
    duller_D = thumbnail_vector((low + gain * gray_HW).astype(np.uint8))
    assert vector_D @ duller_D > 0.999


@pytest.mark.parametrize("gray", [0, 77, 255])
def test_one_gray_is_near_to_nobody(gray, monkeypatch):
    monkeypatch.delattr(twins, "_near_groups")  # n images of one gray would be n^2 candidates
    flat_D = thumbnail_vector(np.full((100, 333), gray, np.uint8))
    assert not flat_D.any()
    assert twin_groups(np.stack([flat_D, flat_D]), [None, None]).tolist() == [0, 1]
    assert twin_groups(np.stack([flat_D, flat_D]), ["a", "a"]).tolist() == [0, 0]


def test_smooth_images_keep_their_twins():
    # A deviation of about one gray: a thumbnail in whole grays would not correlate with its copy.
    gray_HW = (126 + concrete(5, 227) / 42).astype(np.uint8)
    vector_ND = np.stack([thumbnail_vector(gray_HW), thumbnail_vector(gray_HW[::-1, ::-1])])
    assert gray_HW.std() < 1.5
    assert twin_groups(vector_ND, [None, None]).tolist() == [0, 0]


def test_copies_join_and_others_do_not():
    images = [concrete(seed) for seed in range(20)]
    copies = [reencoded(symmetric(gray_HW, seed % 8)) for seed, gray_HW in enumerate(images)]
    vector_ND = np.stack([thumbnail_vector(gray_HW) for gray_HW in images + copies])
    assert twin_groups(vector_ND, [None] * 40).tolist() == [*range(20)] * 2


def test_equal_bytes_join_whatever_the_pixels():
    vector_ND = np.stack([thumbnail_vector(concrete(seed)) for seed in range(5)])
    groups = twin_groups(vector_ND, ["a", None, "b", "a", None])
    assert groups.tolist() == [0, 1, 2, 0, 4]
    # The last has the bytes of the second, which is a turned copy of the first.
    vector_ND[1] = vector_ND[4] = symmetric(vector_ND[0].reshape(24, 24), 3).ravel()
    assert twin_groups(vector_ND, ["a", "b", "c", "d", "b"]).tolist() == [0, 0, 2, 3, 0]


def test_no_images():
    assert twin_groups(np.zeros((0, 576), np.float32), []).tolist() == []


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), symmetry=st.integers(0, 7))
def test_descriptor_is_invariant_and_never_farther_than_the_images(seed, symmetry):
    rng = np.random.default_rng(seed)
    # Close pairs are the hard ones; the distance of the second and third is small.
    vector_ND = smooth(rng, 2)
    vector_ND = np.concatenate([vector_ND, at_correlation(vector_ND[1:], 0.98, rng)])
    turned_ND = np.stack([all_symmetries(vector_D)[symmetry] for vector_D in vector_ND])

    def descriptor(some_ND):
        coefficient_NFF = dctn(some_ND.reshape(-1, 24, 24), axes=(1, 2), norm="ortho")
        return twins._descriptor(coefficient_NFF)

    plain_ND = descriptor(vector_ND)
    np.testing.assert_allclose(plain_ND, descriptor(turned_ND), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(plain_ND, axis=1), 1, atol=1e-5)
    for first, second in itertools.combinations(range(3), 2):
        apart = np.linalg.norm(vector_ND[first] - vector_ND[second])
        assert np.linalg.norm(plain_ND[first] - plain_ND[second]) <= apart + 1e-5


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_correlation_is_the_highest_over_the_symmetries(seed):
    rng = np.random.default_rng(seed)
    first_D, second_D = unit(rng.normal(size=(2, 576)))
    highest = max(float(first_D @ copy) for copy in all_symmetries(second_D))
    found_P = twins._correlation(np.stack([first_D, second_D]), np.array([[0, 1]]))
    assert found_P.tolist() == pytest.approx([highest], abs=1e-5)


@pytest.mark.parametrize("correlation", [0.97, 0.984, 0.9851, 0.999])
@settings(max_examples=3, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    searched=st.sampled_from([1, 8_000_000]),  # 1: blocks of 16
    chains=st.sampled_from([2, 12]),
)
def test_same_groups_as_brute_force(seed, correlation, searched, chains):
    rng = np.random.default_rng(seed)
    # Chains: each image at the same correlation from a turned copy of the one before.
    links = [smooth(rng, chains)]
    for _ in range(48 // chains - 1):
        turned_ND = np.stack([all_symmetries(v)[rng.integers(8)] for v in links[-1]])
        links.append(at_correlation(turned_ND, correlation, rng))
    vector_ND = np.concatenate(links)[rng.permutation(48)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(twins, "_SEARCHED", searched)
        patch.setattr(twins, "_CORRELATED", 5)
        found = twin_groups(vector_ND, [None] * 48).tolist()
    assert found == brute_force(vector_ND)
    # Below the limit, images two links apart may still meet by chance.
    assert (len(set(found)) == chains) == (correlation >= TWIN_CORRELATION)


def test_many_shots_of_one_scene_cost_few_correlations(monkeypatch):
    correlated = []
    exact = twins._correlation
    monkeypatch.setattr(twins, "_correlation", lambda c, pairs: correlated.append(len(pairs)) or exact(c, pairs))
    monkeypatch.setattr(twins, "_CORRELATED", 1000)
    rng = np.random.default_rng(0)
    vector_ND = unit(rng.normal(size=(1, 576)) + 0.03 * rng.normal(size=(1000, 576)))
    assert set(twin_groups(vector_ND, [None] * 1000).tolist()) == {0}
    assert sum(correlated) < 499_500 / 10  # a tenth of all pairs
