import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crackvae.dataset import leakage
from crackvae.dataset.leakage import check
from crackvae.dataset.splits import plan
from crackvae.dataset.twins import TWIN_CORRELATION, twin_groups
from crackvae.schema import Split


def unit(vector_ND):
    vector_ND = vector_ND - vector_ND.mean(axis=1, keepdims=True)
    return (vector_ND / np.linalg.norm(vector_ND, axis=1, keepdims=True)).astype(np.float32)


def symmetric(vector_D, symmetry):
    turned_HW = np.rot90(vector_D.reshape(24, 24), symmetry % 4)
    return (turned_HW if symmetry < 4 else turned_HW.T).ravel()


def images_with_copies(seed, originals=12, copies=28):
    """Vectors and hashes: the copies are turned, a third of them byte-identical."""
    rng = np.random.default_rng(seed)
    vectors = list(unit(rng.normal(size=(originals, 576))))
    hashes = [f"hash-{row}" for row in range(originals)]
    for number in range(copies):
        source = int(rng.integers(originals))
        if rng.random() < 1 / 3:
            vectors.append(vectors[source])
            hashes.append(hashes[source])
        else:
            noisy = symmetric(vectors[source], int(rng.integers(8))) + rng.normal(size=576) * 0.003
            vectors.append(unit(noisy[None])[0])
            hashes.append(None if number % 2 else f"copy-{number}")
    return np.stack(vectors), hashes


def brute_force(vector_ND, hashes, split):
    """(exact pairs, near pairs, images of the second split with a twin) for each two splits."""
    counts = {pair: [0, 0, set()] for pair in itertools.combinations(Split, 2)}
    rank = list(Split).index
    for first, second in itertools.permutations(range(len(split)), 2):
        if None in {split[first], split[second]} or rank(split[first]) >= rank(split[second]):
            continue
        exact = hashes[first] is not None and hashes[first] == hashes[second]
        near = any(
            vector_ND[first] @ symmetric(vector_ND[second], symmetry) >= TWIN_CORRELATION for symmetry in range(8)
        )
        entry = counts[split[first], split[second]]
        entry[0] += exact
        entry[1] += near and not exact
        if exact or near:
            entry[2].add(second)
    return {pair: (exact, near, len(rows)) for pair, (exact, near, rows) in counts.items()}


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6), block=st.sampled_from([3, 2048]))
def test_counts_equal_those_of_brute_force(seed, block):
    vector_ND, hashes = images_with_copies(seed)
    rng = np.random.default_rng(seed)
    split = [[*Split, None][index] for index in rng.integers(5, size=len(hashes))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(leakage, "_BLOCK", block)
        found = check(vector_ND, hashes, split)
    wanted = brute_force(vector_ND, hashes, split)
    assert {
        (pair.first, pair.second): (pair.exact_pairs, pair.near_pairs, pair.second_images) for pair in found.pairs
    } == {pair: wanted[pair] for pair in itertools.combinations(found.images, 2)}
    assert found.leaks == sum(exact + near for exact, near, _ in wanted.values())
    assert found.sampled_share == 1
    for pair in found.pairs:
        leaks = pair.exact_pairs + pair.near_pairs
        assert len(set(pair.examples)) == len(pair.examples) <= leakage.EXAMPLES
        assert bool(pair.examples) == bool(leaks)
        for first, second in pair.examples:
            assert (split[first], split[second]) == (pair.first, pair.second)


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_a_plan_by_twin_groups_leaks_nothing_and_one_by_images_does(seed):
    vector_ND, hashes = images_with_copies(seed, originals=40, copies=40)
    labels = ["normal"] * 80
    groups = [str(group) for group in twin_groups(vector_ND, hashes)]
    assert check(vector_ND, hashes, plan(labels, groups, seed=seed)).leaks == 0
    random = plan(labels, [str(row) for row in range(80)], seed=seed)
    assert check(vector_ND, hashes, random).leaks > 0


def test_above_the_limit_a_sample_is_compared_and_equal_bytes_are_still_all_found():
    vector_ND, hashes = images_with_copies(3, originals=50, copies=150)
    split = [Split.TRAIN, Split.TEST] * 100
    whole = check(vector_ND, hashes, split).pairs[0]
    report = check(vector_ND, hashes, split, max_images=100)
    (sampled,) = report.pairs
    assert report.sampled_share == 25 / 200  # 100 * 100 / 2 pairs, spent on 25 x 200
    assert sampled.exact_pairs == whole.exact_pairs
    assert 0 < sampled.near_pairs < whole.near_pairs
    assert report == check(vector_ND, hashes, split, max_images=100)
    assert report != check(vector_ND, hashes, split, max_images=100, seed=1)


def test_report_is_json_and_names_the_pair():
    vector_ND, _ = images_with_copies(0, originals=4, copies=0)
    report = check(vector_ND, ["a", "b", "a", None], ["train", "val", "test", None])
    data = json.loads(json.dumps(report.as_dict(["a.jpg", "b.jpg", "c.jpg", "d.jpg"])))
    assert data["leaks"] == 1
    assert data["images"] == {"train": 1, "val": 1, "test": 1}
    assert data["pairs"][1] == {
        "first": "train",
        "second": "test",
        "exact_pairs": 1,
        "near_pairs": 0,
        "second_images": 1,
        "examples": [["a.jpg", "c.jpg"]],
    }


def test_no_images():
    report = check(np.zeros((0, 576), np.float32), [], [])
    assert (report.leaks, report.pairs, report.sampled_share) == (0, (), 1)
