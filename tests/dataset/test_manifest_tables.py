import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dataset.places import bytes_of, column, ids, make_folder, not_indexed

from crackvae import storage
from crackvae.dataset import manifest
from crackvae.dataset.reader import Reader
from crackvae.errors import InputError
from crackvae.schema import MANIFEST


def csv(tmp_path, text, name="table.csv"):
    (tmp_path / name).write_text(text, encoding="utf-8")
    return str(tmp_path / name)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_table_of_relative_and_absolute_uris(tmp_path, suffix):
    make_folder(tmp_path / "in! #1", ["50%.jpg", "d/b.jpg"])
    make_folder(tmp_path, ["c.jpg"])
    frame = pd.DataFrame(
        {
            "uri": [
                "50%.jpg",
                "./d/b.jpg",
                "d/../d/b.jpg",
                str(tmp_path / "in! #1/d/b.jpg"),
                storage.to_uri(str(tmp_path / "c.jpg")),
                "s3://bucket/x%20y.jpg",
            ]
        }
    )
    path = str(tmp_path / "in! #1" / f"table.{suffix}")
    frame.to_csv(path, index=False) if suffix == "csv" else frame.to_parquet(path)
    table, summary = manifest.build([path])
    assert column(table, "uri") == [
        storage.to_uri(str(tmp_path / name)) for name in ("in! #1/50%.jpg", "in! #1/d/b.jpg", "c.jpg")
    ] + ["s3://bucket/x%20y.jpg"]
    assert column(table, "image_id") == [
        "50%.jpg",
        "./d/b.jpg",
        storage.to_uri(str(tmp_path / "c.jpg")),
        "s3://bucket/x%20y.jpg",
    ]
    assert summary.repeated == 2
    with Reader() as reader:
        assert reader.read(column(table, "uri")[0], 100) == bytes_of("50%.jpg")


def test_a_table_that_is_not_local_has_relative_uris_beside_it():
    place = "mock://manifest?x=y"
    storage.remote(place)[0].create_dir("manifest")
    storage.write_bytes(storage.join(place, "table.csv"), b"uri\na #1.jpg\n/local.jpg\n")
    table, _ = manifest.build([storage.join(place, "table.csv")])
    assert column(table, "uri") == ["mock://manifest/a%20%231.jpg?x=y", "file:///local.jpg"]


def test_a_csv_file_holds_names_with_newlines_commas_and_quotes(tmp_path):
    names = ['a,"b".jpg', "new\nline.jpg", "żółw 🐢.jpg"]
    pd.DataFrame({"uri": names}).to_csv(tmp_path / "table.csv", index=False)
    assert ids(str(tmp_path / "table.csv")) == names


def test_names_with_newlines_may_fill_a_csv_file_of_many_blocks(tmp_path):
    names = [str(row) + "\n" * 1000 + ".jpg" for row in range(1500)]  # 1.5 MB; a block has 1 MB
    pd.DataFrame({"uri": names}).to_csv(tmp_path / "table.csv", index=False)
    assert ids(str(tmp_path / "table.csv")) == names


def test_text_in_a_csv_file_stays_text(tmp_path):
    path = csv(tmp_path, "image_id,uri,group,split\n007,1,NA,12e3\n,2,,\n")
    table, _ = manifest.build([path])
    assert column(table, "image_id") == ["007", "2"]
    assert column(table, "uri") == [storage.to_uri(str(tmp_path / name)) for name in "12"]
    assert column(table, "group") == ["NA", None]
    assert column(table, "split") == ["12e3", None]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_size_time_and_hash_are_taken_from_crackvaes_own_manifests_only(tmp_path, suffix):
    """Files are checked by them, and elsewhere a size may be a number of pixels."""
    table = manifest.build([str(make_folder(tmp_path / "x", ["a.jpg"]))])[0]
    table = table.set_column(7, MANIFEST.field(7), pa.array(["hash"]))
    manifest.write(table, str(tmp_path / "own.parquet"))
    assert manifest.build([str(tmp_path / "own.parquet")])[0].equals(table)
    frame, path = table.to_pandas(), str(tmp_path / f"foreign.{suffix}")
    frame.to_csv(path, index=False) if suffix == "csv" else frame.to_parquet(path)
    [row] = manifest.build([path])[0].to_pylist()
    [own] = table.to_pylist()
    assert row == {**own, "size": None, "mtime": None, "content_hash": None}


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize("uri", ["../a.jpg", "./../a.jpg", "in/../../a.jpg", "..", "../../../../etc/a.jpg"])
def test_a_path_that_leaves_the_folder_of_its_table_is_refused_with_its_row(tmp_path, uri, suffix):
    frame, path = pd.DataFrame({"uri": ["a.jpg", uri]}), str(tmp_path / f"table.{suffix}")
    frame.to_csv(path, index=False) if suffix == "csv" else frame.to_parquet(path)
    assert not_indexed(path) == f"{path}: row 2: {uri!r} leaves the table's folder; give a full path or URI"


def test_a_path_that_leaves_a_folder_that_is_not_local_is_refused():
    place = "mock://leaving?x=y"
    storage.remote(place)[0].create_dir("leaving")
    storage.write_bytes(storage.join(place, "table.csv"), b"uri\n../a.jpg\n")
    assert "row 1: '../a.jpg' leaves the table's folder" in not_indexed(storage.join(place, "table.csv"))


@pytest.mark.parametrize("name", ["..a.jpg", ".../a.jpg", "in/../a.jpg", ". ./a.jpg"])
def test_a_name_of_dots_does_not_leave_the_folder_of_its_table(tmp_path, name):
    assert ids(csv(tmp_path, f"uri\n{name}\n")) == [name]


@pytest.mark.parametrize("uri", ["s3://key:hunter2@bucket/a.jpg", "https://host/a.jpg?token=hunter2"])
def test_a_row_that_holds_a_secret_is_refused_without_telling_it(tmp_path, uri):
    path = csv(tmp_path, f"uri\na.jpg\n{uri}\n")
    message = not_indexed(path)
    assert message.startswith(f"{path}: row 2: holds a password or key, ")
    assert "hunter2" not in message


@pytest.mark.parametrize(("header", "value"), [(b"uri", b"\xe4.jpg"), (b"uri,\xe4", b"a.jpg,1")])
def test_text_that_is_not_utf8_is_refused(tmp_path, header, value):
    (tmp_path / "latin-1.csv").write_bytes(header + b"\n" + value + b"\n")
    assert "latin-1.csv: cannot be read as CSV: " in not_indexed(tmp_path / "latin-1.csv")


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_rows_are_counted_over_the_pieces_in_which_a_table_is_read(tmp_path, suffix):
    frame = pd.DataFrame({"uri": [f"{'x' * 20}{row}.jpg" for row in range(70_000)], "label": "normal"})
    path = tmp_path / f"table.{suffix}"
    write = frame.to_csv if suffix == "csv" else frame.to_parquet
    write(path, index=False)
    table, summary = manifest.build([str(path)])
    assert column(table, "image_id") == frame.uri.to_list()
    assert summary.labels == {"normal": 70_000}
    frame.loc[69_998, "uri"] = None
    write(path, index=False)
    assert "row 69999 has no uri" in not_indexed(path)


@pytest.mark.parametrize("text", [b"x.jpg", b"other"])
def test_text_in_a_parquet_file_that_is_not_utf8_is_refused(tmp_path, text):
    table = pa.table({"uri": ["x.jpg"], "other": [1]})
    pq.write_table(table, tmp_path / "a.parquet", compression="none", use_dictionary=False, store_schema=False)
    data = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(data.replace(text, b"\xe4" + text[1:]))
    assert "a.parquet: cannot be read as Parquet: " in not_indexed(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 1], ["normal", "crack"]),
        ([1.0, None], ["crack", None]),
        ([False, True], ["normal", "crack"]),
        (["negative", "Positive"], ["normal", "crack"]),
        ([None, None], [None, None]),
    ],
)
@pytest.mark.parametrize("name", ["label", "has crack?"])
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_column_of_labels(tmp_path, values, expected, name, suffix):
    frame = pd.DataFrame({"uri": ["a.jpg", "b.jpg"], name: values})
    path = str(tmp_path / f"table.{suffix}")
    frame.to_csv(path, index=False) if suffix == "csv" else frame.to_parquet(path)
    assert column(manifest.build([path], label_column=name)[0], "label") == expected


def test_given_values_of_a_column_mean_labels(tmp_path):
    path = csv(tmp_path, "uri,label\na.jpg,1\nb.jpg,0\n")
    assert column(manifest.build([path], normal=["1"], crack=["0"])[0], "label") == [
        "normal",
        "crack",
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("path,label\na.jpg,1\n", "table.csv: has no column 'uri'; found 'path', 'label'"),
        ('"pa\nth"\na.jpg\n', r"has no column 'uri'; found 'pa\nth'"),
        ("uri,label\na.jpg,1\n,0\n", "table.csv: row 2 has no uri; fill or remove it"),
        ("uri,label\na.jpg,maybe\n", "table.csv: label 'maybe' is unknown; use "),
        ("uri,label\na.jpg,-1\n", "table.csv: label '-1' is unknown; use "),
        ("uri,uri\na.jpg,b.jpg\n", "table.csv: has several columns 'uri'; keep one"),
        ("uri\na.jpg,b.jpg\n", "table.csv: cannot be read as CSV: "),
        ("", "table.csv: cannot be read as CSV: "),
        ("uri\n", "table.csv: no image; found no file at all"),
    ],
)
def test_a_wrong_table_is_refused_in_one_line(tmp_path, text, told):
    assert told in not_indexed(csv(tmp_path, text))


def test_a_null_uri_and_a_missing_label_column_of_a_parquet_file_are_refused(tmp_path):
    path = tmp_path / "table.parquet"
    pq.write_table(pa.table({"uri": ["a.jpg", None]}), path)
    assert "table.parquet: row 2 has no uri" in not_indexed(path)
    assert "has no column 'crack'; found 'uri'" in not_indexed(path, label_column="crack")


def test_a_column_of_the_wrong_type_is_refused(tmp_path):
    path = tmp_path / "table.parquet"
    pq.write_table(pa.table({"uri": ["a.jpg"], "group": [[1, 2]]}), path)
    assert "table.parquet: a column has the wrong type: " in not_indexed(path)


def test_a_row_without_an_id_is_named_by_its_uri(tmp_path):
    pq.write_table(
        pa.table({"uri": ["a.jpg", "b.jpg", "c.jpg"], "image_id": [7, None, None]}),
        tmp_path / "table.parquet",
    )
    assert ids(str(tmp_path / "table.parquet")) == ["7", "b.jpg", "c.jpg"]


def test_uris_as_bytes_are_refused(tmp_path):
    path = tmp_path / "table.parquet"
    pq.write_table(pa.table({"uri": [b"a.jpg"]}), path)
    with pytest.raises(InputError, match="its column 'uri' is of the type binary; write it as text"):
        manifest.build([str(path)])
