from collections import Counter, defaultdict

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from crackvae.dataset import manifest, splitting
from crackvae.errors import InputError
from crackvae.images import synthetic
from crackvae.schema import MANIFEST

# Copies of normal/0000.jpg and on: what is done to the bytes, or to the pixels of each.
PLANTED = {
    "identical": None,
    "mirrored": lambda gray_HW: gray_HW[:, ::-1],
    "flipped": lambda gray_HW: gray_HW[::-1],
    "turned": np.rot90,
    "half": lambda gray_HW: gray_HW[::-1, ::-1],
    "encoded again": lambda gray_HW: gray_HW,
}


@pytest.fixture(scope="module")
def survey_with_twins(tmp_path_factory):
    """32 normals and 8 cracks, twins of six normals and of a crack, and damaged files."""
    folder = tmp_path_factory.mktemp("splitting") / "survey"
    synthetic.write_survey(folder, normals=32, cracks=8, size=80)
    for index, (name, change) in enumerate(PLANTED.items()):
        data = (folder / f"normal/{index:04d}.jpg").read_bytes()
        if change is not None:
            gray_HW = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
            changed_HW = np.ascontiguousarray(change(gray_HW))
            data = cv2.imencode(".jpg", changed_HW, (cv2.IMWRITE_JPEG_QUALITY, 60))[1].tobytes()
        (folder / f"normal/{name}.jpg").write_bytes(data)
    data = (folder / "crack/0000.jpg").read_bytes()
    (folder / "crack/copy.jpg").write_bytes(data)
    (folder / "normal/cut.jpg").write_bytes(data[: len(data) // 2])
    (folder / "normal/text.jpg").write_bytes(b"no image")
    (folder / "crack/dangling.jpg").symlink_to("nowhere.jpg")
    cv2.imwrite(str(folder / "crack/tiny.png"), np.zeros((8, 80), np.uint8))
    return folder


@pytest.fixture(scope="module")
def indexed(survey_with_twins):
    return manifest.build([str(survey_with_twins)])[0]


@pytest.fixture(scope="module")
def plan(indexed):
    return splitting.split(indexed)


def by_id(table):
    return {row["image_id"]: row for row in table.to_pylist()}


def splits_of_groups(table):
    found = defaultdict(set)
    for row in table.to_pylist():
        if row["split"] is not None:
            found[row["group"]].add(row["split"])
    return found


DAMAGED = {"normal/cut.jpg", "normal/text.jpg", "crack/dangling.jpg", "crack/tiny.png"}


@pytest.mark.parametrize("seed", range(3))
def test_no_group_crosses_a_split_and_nothing_leaks(indexed, seed):
    planned = splitting.split(indexed, seed=seed)
    assert all(len(names) == 1 for names in splits_of_groups(planned.table).values())
    assert planned.leakage.leaks == 0
    assert sum(planned.leakage.images.values()) == len(indexed) - len(DAMAGED)


def test_planted_twins_share_a_group_and_others_have_their_own(plan):
    rows = by_id(plan.table)
    expected = {name: name for name in rows}
    for index, name in enumerate(PLANTED):
        expected[f"normal/{name}.jpg"] = f"normal/{index:04d}.jpg"
    expected["crack/copy.jpg"] = "crack/0000.jpg"
    assert {name: row["group"] for name, row in rows.items()} == expected
    assert plan.groups == len(set(expected.values()))


def test_damaged_files_get_no_split_and_are_counted(plan):
    rows = by_id(plan.table)
    assert {name for name, row in rows.items() if row["split"] is None} == DAMAGED
    assert plan.failed.keys() == DAMAGED
    assert Counter(plan.failed.values()) == {"undecodable": 2, "too_small": 1, "unreadable": 1}
    assert rows["crack/dangling.jpg"]["content_hash"] is None
    assert rows["normal/text.jpg"]["content_hash"] is not None


def test_equal_bytes_have_equal_hashes_and_others_have_others(plan):
    rows = by_id(plan.table)
    hashes = [row["content_hash"] for row in rows.values() if row["content_hash"]]
    assert len(set(hashes)) == len(hashes) - 2  # two copies were planted
    assert rows["crack/copy.jpg"]["content_hash"] == rows["crack/0000.jpg"]["content_hash"]


def test_the_manifest_is_kept_but_for_what_the_split_fills_in(indexed, plan):
    filled = ["group", "split", "content_hash"]
    assert plan.table.schema.equals(MANIFEST)
    assert plan.table.drop_columns(filled).equals(indexed.drop_columns(filled))


def test_a_split_is_the_same_each_time_and_another_with_another_seed(indexed, plan):
    assert splitting.split(indexed).table.equals(plan.table)
    assert not splitting.split(indexed, seed=1).table.equals(plan.table)


def test_external_sets_follow_the_shares_and_the_counts(plan, indexed):
    rows = [row for row in plan.table.to_pylist() if row["split"]]
    for label, share in (("normal", 0.25), ("crack", 0.75)):
        names = [row["split"] for row in rows if row["label"] == label]
        assert abs(names.count("external") - share * len(names)) <= 1
    none = splitting.split(indexed, external_normal=0, external_crack=0)
    assert "external" not in none.table["split"].to_pylist()
    assert "train" not in {row["split"] for row in rows if row["label"] == "crack"}


def test_groups_that_the_manifest_brings_are_kept_together(survey_with_twins, indexed, tmp_path):
    # normal/0005.jpg has a twin without a group: it belongs to the deck as well.
    decks = {f"normal/{index:04d}.jpg": f"deck {index % 3}" for index in range(5, 30)}
    frame = indexed.to_pandas()[["uri", "image_id", "label"]]
    frame["group"] = frame["image_id"].map(decks)
    frame.to_csv(tmp_path / "table.csv", index=False)
    table, _ = manifest.build([str(tmp_path / "table.csv")])
    planned = splitting.split(table, external_normal=0.1)
    groups = {row["image_id"]: row["group"] for row in planned.table.to_pylist()}
    for deck in set(decks.values()):
        assert len({groups[name] for name, given in decks.items() if given == deck}) == 1
    assert len({groups[name] for name in decks}) == 3
    assert groups["normal/encoded again.jpg"] == groups["normal/0005.jpg"]
    assert groups["normal/0030.jpg"] == "normal/0030.jpg"
    assert all(len(names) == 1 for names in splits_of_groups(planned.table).values())
    assert planned.leakage.leaks == 0


def test_unlabelled_images_get_no_split(indexed, survey_with_twins, tmp_path):
    frame = indexed.to_pandas()[["uri", "image_id", "label"]]
    frame.loc[frame["image_id"] == "normal/0031.jpg", "label"] = None
    frame.to_parquet(tmp_path / "table.parquet")
    planned = splitting.split(manifest.build([str(tmp_path / "table.parquet")])[0])
    rows = by_id(planned.table)
    assert rows["normal/0031.jpg"]["split"] is None
    assert planned.failed.keys() == DAMAGED


def test_a_survey_without_a_readable_image_is_refused(tmp_path):
    (tmp_path / "normal").mkdir()
    (tmp_path / "normal/a.jpg").write_bytes(b"no image")
    table, _ = manifest.build([str(tmp_path)])
    with pytest.raises(InputError, match=r"^none of 1 images can be read \(undecodable\)"):
        splitting.split(table)


def test_a_survey_without_normals_is_refused(tmp_path):
    synthetic.write_survey(tmp_path, normals=0, cracks=1, size=64)
    with pytest.raises(InputError, match="no image is labelled normal"):
        splitting.split(manifest.build([str(tmp_path)])[0])


def test_an_image_that_joined_the_split_does_not_train_where_a_twin_of_it_is_tested(
    plan, survey_with_twins, tmp_path, caplog
):
    train = splitting.apart(plan.table)
    assert set(train["split"].to_pylist()) == {"train"}
    assert caplog.text == ""  # `split` has looked
    tested = next(row for row in plan.table.to_pylist() if row["split"] == "test" and row["label"] == "normal")
    (tmp_path / "copy.jpg").write_bytes((survey_with_twins / tested["image_id"]).read_bytes())
    joined = [
        {"image_id": name, "uri": (tmp_path / f"{name}.jpg").as_uri(), "label": "normal", "split": "train"}
        for name in ("copy", "other")
    ]
    table = pa.concat_tables([plan.table, pa.Table.from_pylist(joined, MANIFEST)])
    kept = splitting.apart(table)["image_id"].to_pylist()
    assert kept == [*train["image_id"].to_pylist(), "other"]
    assert "1 training images, first copy, have a twin in another split; left out" in caplog.text
    assert splitting.apart(pa.Table.from_pylist(joined, MANIFEST)).num_rows == 2  # nothing is tested
    tests_only = table.filter(pc.or_kleene(pc.equal(table["split"], "test"), pc.equal(table["image_id"], "copy")))
    with pytest.raises(InputError, match="every training normal has a twin in another split"):
        splitting.apart(tests_only)
