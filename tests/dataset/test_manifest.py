import io
import os
import tarfile
import tempfile
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dataset.places import column, ids, not_indexed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crackvae import storage
from crackvae.dataset import manifest, naming, table_files
from crackvae.dataset.reader import Reader
from crackvae.errors import InputError
from crackvae.schema import MANIFEST, SCHEMA_VERSION

few = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])

# Names that say nothing about labels. Folders have no dot, so that no file has a folder's name.
ODD = "aZ09 \n\t,;\"'#%!?&=+~\\é🐢"
FOLDER = st.text(ODD, min_size=1, max_size=6)
STEM = st.text(ODD + ".", min_size=1, max_size=6).filter(lambda stem: stem != "." and stem[:2] != "._")
PATH = st.builds(
    lambda folders, stem, suffix: "/".join([*folders, stem + suffix]),
    st.lists(FOLDER, max_size=2),
    STEM,
    st.sampled_from([".jpg", ".JPG", ".png"]),
)
PATHS = st.lists(PATH, min_size=1, max_size=5, unique=True)


def make_folder(place, paths):
    for path in paths:
        file = place / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(path.encode())
    return str(place)


def make_zip(place, paths):
    with zipfile.ZipFile(place, "w") as archive:
        for path in paths:
            archive.writestr(path, path.encode())
    return str(place)


def make_tar(place, paths, prefix=""):
    with tarfile.open(place, "w:gz" if place.name.endswith("gz") else "w") as archive:
        for path in paths:
            member = tarfile.TarInfo(prefix + path)
            member.size = len(path.encode())
            archive.addfile(member, io.BytesIO(path.encode()))
    return str(place)


# Makes the same survey in a folder, as every kind of source.
MAKERS = [
    lambda place, paths: make_folder(place / "a survey, #1", paths),
    lambda place, paths: make_zip(place / "b!.zip", paths),
    lambda place, paths: make_tar(place / "c%41.tar", paths),
    lambda place, paths: make_tar(place / "d.tar.gz", paths),
    lambda place, paths: make_tar(place / "e.tar", paths, prefix="./"),
]


@few
@given(PATHS)
def test_an_id_is_the_relative_place_wherever_and_in_whatever_the_survey_lies(paths):
    with tempfile.TemporaryDirectory() as temporary:
        for place in (Path(temporary, "x"), Path(temporary, "y #2")):
            place.mkdir()
            for make in MAKERS:
                table, summary = manifest.build([make(place, paths)])
                found = column(table, "image_id")
                in_order = paths if table["uri"][0].as_py().count(".tar.gz!/") else sorted(paths)
                assert found == in_order
                assert summary.images == len(paths)
                assert summary.repeated == 0


@few
@given(PATHS)
def test_a_uri_leads_to_the_bytes_of_its_id(paths):
    with tempfile.TemporaryDirectory() as temporary, Reader() as reader:
        for make in MAKERS:
            table, _ = manifest.build([make(Path(temporary), paths)])
            for row in table.to_pylist():
                assert reader.read(row["uri"], 1000) == row["image_id"].encode()
                assert row["size"] == len(row["image_id"].encode())


@few
@given(PATHS, PATHS)
def test_two_sources_with_equal_relative_paths_do_not_collide(first, second):
    with tempfile.TemporaryDirectory() as temporary:
        locations = [
            make_folder(Path(temporary, "one"), first),
            make_zip(Path(temporary, "two.zip"), second),
        ]
        table, summary = manifest.build(locations)
        found = column(table, "image_id")
        assert len(set(found)) == len(found) == len(first) + len(second) == summary.images
        assert found[: len(first)] == sorted(first)
        # What collides gets a number; what does not keeps its id.
        assert set(found[len(first) :]) >= set(second) - set(first)
        assert summary.repeated == 0


@few
@given(PATHS, st.integers(1, 2), st.sampled_from(MAKERS))
def test_a_uri_named_twice_is_one_row_and_a_warning(paths, more, make):
    with tempfile.TemporaryDirectory() as temporary:
        location = make(Path(temporary), paths)
        once, quiet = manifest.build([location])
        again, summary = manifest.build([location, storage.to_uri(location), location][: 1 + more])
        assert again.equals(once)
        assert summary.repeated == more * len(paths)
        assert any("warning: " in line for line in summary.lines())
        assert not any("warning: " in line for line in quiet.lines())


@few
@given(PATHS, st.randoms(use_true_random=False))
def test_the_order_of_listing_does_not_matter(paths, random):
    tables = []
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary, "a.zip")
        for _ in range(2):
            tables.append(manifest.build([make_zip(place, paths)])[0].drop_columns("mtime"))
            random.shuffle(paths)
    assert tables[0].equals(tables[1])


def test_names_that_are_written_alike_keep_their_ids_in_any_order_of_listing(tmp_path):
    raw, escaped = os.fsdecode(b"\xff.jpg"), r"\xff.jpg"
    found = []
    for names in ((raw, escaped), (escaped, raw)):
        with tarfile.open(tmp_path / "a.tar", "w") as archive:
            for name in names:
                archive.addfile(tarfile.TarInfo(name))
        table, _ = manifest.build([str(tmp_path / "a.tar")])
        found.append(dict(zip(column(table, "uri"), column(table, "image_id"), strict=True)))
    assert found[0] == found[1]
    assert sorted(found[0].values()) == [r"\xff.jpg", r"\xff.jpg#2"]


def test_many_sources_with_equal_paths_are_numbered_in_their_order(tmp_path):
    folders = [make_folder(tmp_path / str(index), ["a.jpg"]) for index in range(12)]
    assert ids(*folders) == ["a.jpg"] + [f"a.jpg#{number}" for number in range(2, 13)]


@few
@given(PATHS, st.integers(1, 5), st.sampled_from(MAKERS))
def test_in_however_many_pieces_a_source_is_listed_it_is_the_same_manifest(paths, rows, make):
    with tempfile.TemporaryDirectory() as temporary, pytest.MonkeyPatch.context() as patch:
        location, out = make(Path(temporary), paths), str(Path(temporary, "manifest.parquet"))
        whole, summary = manifest.build([location])
        patch.setattr(manifest, "_BLOCK_FILES", rows)
        patch.setattr(naming, "_HASHES", rows)
        with manifest.listing([location]) as (blocks, found):
            manifest.write_blocks(blocks, out)
        assert manifest.read(out).equals(whole)
        assert found.lines() == summary.lines()
        again, summary = manifest.build([location, out])  # the second names every file again
        assert (again, summary.repeated) == (whole, len(paths))


def test_many_rows_of_one_id_are_numbered_in_no_time(tmp_path):
    table = pa.table({"uri": [f"{row}.jpg" for row in range(20_000)], "image_id": ["x"] * 20_000})
    pq.write_table(table, tmp_path / "table.parquet")
    found = ids(str(tmp_path / "table.parquet"))
    assert len(set(found)) == 20_000
    assert found[-1] == "x#20000"


@given(
    st.lists(st.tuples(st.integers(0, 9), st.sampled_from(["a", "a#2", "a#2#2", "a#3", "b", "a#"])), min_size=1),
    st.integers(1, 5),
)
def test_every_row_has_an_id_of_its_own_and_the_first_of_a_name_keeps_it(rows, size):
    with tempfile.TemporaryDirectory() as temporary, pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest, "_BLOCK_FILES", size)
        patch.setattr(table_files, "_BLOCK_ROWS", size)
        uris, names = zip(*((f"file:///{uri}.jpg", name) for uri, name in rows), strict=True)
        pq.write_table(
            pa.table({"uri": uris, "image_id": names}), Path(temporary, "table.parquet"), row_group_size=size
        )
        table, summary = manifest.build([str(Path(temporary, "table.parquet"))])
    named = {}
    for uri, name in zip(uris, names, strict=True):
        named.setdefault(uri, name)
    found = column(table, "image_id")
    assert column(table, "uri") == list(named)
    assert summary.repeated == len(rows) - len(named)
    assert len(set(found)) == len(found)
    seen = set()
    for name, unique in zip(named.values(), found, strict=True):
        assert unique == name if name not in seen else unique.startswith(f"{name}#")
        seen.add(name)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_that_is_twice_in_an_archive_is_one_row_and_a_warning(tmp_path):
    table, summary = manifest.build([make_zip(tmp_path / "a.zip", ["a.jpg", "a.jpg"])])
    assert column(table, "image_id") == ["a.jpg"]
    assert summary.lines()[-1] == "warning: 1 files were named more than once, kept once"


def test_the_summary_counts_labels_and_what_is_no_image_by_suffix(tmp_path):
    paths = [
        "normal/1.jpg",
        "normal/2.JPG",
        "crack/1.png",
        "crack/._1.png",
        "readme",
        "a.TXT",
        "b.txt",
    ]
    _, summary = manifest.build([make_folder(tmp_path / "x", paths)])
    assert summary.labels == {"normal": 2, "crack": 1}
    assert summary.skipped == {".txt": 2, "(no suffix)": 1, "._*": 1}
    assert summary.bytes == sum(map(len, paths[:3]))
    assert summary.lines() == [
        "3 images (0 MB): 1 crack, 2 normal",
        "no images by their name: 2 .txt, 1 (no suffix), 1 ._*",
    ]


def test_a_folder_that_cannot_be_listed_is_a_row_without_a_label_and_a_warning(tmp_path):
    make_folder(tmp_path / "x", ["normal/a.jpg", "crack/b.jpg"])
    at = os.open(tmp_path / "x", os.O_RDONLY)
    for _ in range(20):  # beyond the 4,095 bytes of a path
        os.mkdir("crack-" * 40, dir_fd=at)
        at = os.open("crack-" * 40, os.O_RDONLY, dir_fd=at)
    table, summary = manifest.build([str(tmp_path / "x")])
    assert column(table, "label") == [None, "crack", "normal"]
    unlisted, *_ = column(table, "image_id")
    assert unlisted.endswith("crack-/")
    assert summary.lines()[-1] == "warning: 1 folders are not listed; each is a row, unreadable, that says why"


def test_a_survey_without_labels_is_unlabelled(tmp_path):
    summary = manifest.build([make_folder(tmp_path / "x", ["a.jpg", "b/c.jpg"])])[1]
    assert summary.labels == {"unlabelled": 2}


def test_folders_label_their_files_and_so_does_the_folder_of_a_single_image(tmp_path):
    make_folder(tmp_path / "x", ["Positive/good.jpg", "Negative/crack.jpg"])
    table, _ = manifest.build([str(tmp_path / "x")])
    assert column(table, "label") == ["normal", "crack"]
    assert column(manifest.rows(table, label="crack"), "image_id") == ["Positive/good.jpg"]

    images = sorted(map(str, (tmp_path / "x").rglob("*.jpg")))
    assert column(manifest.build(images)[0], "label") == ["normal", "crack"]
    assert column(manifest.build([make_folder(tmp_path / "y", ["crack.jpg"])])[0], "label") == [None]
    assert column(manifest.build([str(tmp_path / "y/crack.jpg")])[0], "label") == [None]


def test_the_name_of_an_archive_labels_what_it_holds(tmp_path):
    locations = [
        make_zip(tmp_path / "Negative.zip", ["a.jpg"]),
        make_tar(tmp_path / "crack.tar.gz", ["b.jpg"]),
    ]
    assert column(manifest.build(locations)[0], "label") == ["normal", "crack"]


def test_given_names_label_folders_and_unknown_ones_are_told(tmp_path):
    folder = make_folder(tmp_path / "x", ["gut/1.jpg", "schlecht/1.jpg"])
    table, _ = manifest.build([folder], normal=["gut"], crack=["schlecht"])
    assert column(table, "label") == ["normal", "crack"]
    assert "'schlecht' (1)" in not_indexed(folder, normal=["gut"])
    assert "found 'gut' (1), 'schlecht' (1)" in not_indexed(folder, crack=["bad"])


def test_an_empty_folder_and_one_without_images_say_what_was_found(tmp_path):
    (tmp_path / "empty").mkdir()
    assert not_indexed(tmp_path / "empty") == f"{tmp_path}/empty: no image; found no file at all"
    make_folder(tmp_path / "x", ["a.txt", "b.txt", "c"])
    assert not_indexed(tmp_path / "x").endswith("/x: no image; found 2 .txt, 1 (no suffix)")
    assert "missing: no such file or folder" in not_indexed(tmp_path / "missing")


def test_a_row_holds_size_and_time(tmp_path):
    make_folder(tmp_path / "x", ["a.jpg"])
    os.utime(tmp_path / "x/a.jpg", (1_700_000_000, 1_700_000_000.25))
    table, _ = manifest.build([str(tmp_path / "x")])
    assert table.schema.equals(MANIFEST)
    assert table.to_pylist() == [
        {
            "image_id": "a.jpg",
            "uri": storage.to_uri(str(tmp_path / "x/a.jpg")),
            "size": 5,
            "mtime": datetime.fromtimestamp(1_700_000_000.25, UTC),
            **dict.fromkeys(("label", "group", "split", "content_hash")),
        }
    ]


def test_a_manifest_comes_back_from_its_file_and_is_a_source_too(tmp_path):
    table, _ = manifest.build([make_folder(tmp_path / "x", ["normal/a,\n#.jpg", "crack/b.jpg"])])
    group = table.schema.get_field_index("group")
    table = table.set_column(group, MANIFEST.field("group"), pa.array(["one", None]))
    path = str(tmp_path / "manifest.parquet")
    manifest.write(table, path)
    assert manifest.read(path).equals(table)
    assert manifest.build([path])[0].equals(table)


@pytest.mark.parametrize("data", [b"", b"uri\na.jpg\n", b"PAR1" + bytes(50) + b"PAR1"])
def test_a_damaged_parquet_file_is_refused(tmp_path, data):
    (tmp_path / "table.parquet").write_bytes(data)
    assert "table.parquet: cannot be read as Parquet: " in not_indexed(tmp_path / "table.parquet")
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        manifest.read(str(tmp_path / "table.parquet"))


NEWER = str(SCHEMA_VERSION + 1)


def foreign(version, **columns):
    table = MANIFEST.empty_table()
    for name, value in columns.items():
        index = table.schema.get_field_index(name)
        table = table.remove_column(index) if value is None else table.set_column(index, name, value)
    return table.replace_schema_metadata({"crackvae.schema_version": version} if version else {})


@pytest.mark.parametrize(
    ("table", "told"),
    [
        (foreign(NEWER), "was written by a newer crackvae"),
        (foreign(NEWER, split=None), "was written by a newer crackvae"),
        (foreign(None), "is no manifest"),
        (foreign("one"), "is no manifest"),
        (foreign("1", split=None), "is no manifest"),
        (foreign("1", size=pa.array([], pa.list_(pa.int8()))), "is no manifest"),
    ],
)
def test_a_parquet_file_that_is_no_manifest_is_refused(tmp_path, table, told):
    pq.write_table(table, tmp_path / "other.parquet")
    with pytest.raises(InputError, match=f"other.parquet: {told}"):
        manifest.read(str(tmp_path / "other.parquet"))


def test_a_missing_manifest_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"missing.parquet: no such file"):
        manifest.read(str(tmp_path / "missing.parquet"))


def test_names_of_labels_need_a_column_of_labels(tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("uri,kind\na.jpg,sound\nb.jpg,cracked\n")
    assert manifest.build([str(table)])[1].images == 2
    for names in ({"normal": ["sound"]}, {"crack": ["cracked"]}):
        with pytest.raises(InputError, match=r"table.csv: has no column 'label'; found 'uri', 'kind'"):
            manifest.build([str(table)], **names)
    labelled, _ = manifest.build([str(table)], normal=["sound"], crack=["cracked"], label_column="kind")
    assert column(labelled, "label") == ["normal", "crack"]


def test_a_survey_whose_folders_mean_labels_only_in_part_is_listed_without(tmp_path):
    for name in ("up", "down"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.jpg").touch()
    with pytest.raises(InputError, match="some folders mean no label"):
        manifest.build([str(tmp_path)])
    with manifest.listing([str(tmp_path)], unlabelled_if_unclear=True) as (blocks, found):
        assert pa.concat_tables(blocks)["label"].to_pylist() == [None, None]
        assert found.labels == {"unlabelled": 2}
    names = {"normal": ["up"], "unlabelled_if_unclear": True}
    with pytest.raises(InputError, match="some folders mean no label"), manifest.listing([str(tmp_path)], **names):
        pass
