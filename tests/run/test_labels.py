import json
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from runs import FILES, create, everything, finished, score

from crackvae import cli
from crackvae.dataset import labels as labelling
from crackvae.errors import InputError
from crackvae.run import check, directory, finalize, judge, labels
from crackvae.schema import MANIFEST


def truth(run):
    """The labels of a run that was labelled from the start."""
    rows = finalize.read_results(run.location, ["image_id", "label"]).to_pandas()
    return rows.set_index("image_id")["label"]


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    return finished(tmp_path_factory.mktemp("labelled") / "run")


def test_labels_that_came_later_give_the_metrics_of_labels_from_the_start(labelled, tmp_path):
    late = finished(tmp_path / "run", labelled=False)
    given = truth(labelled)
    assert len(given) == FILES
    labels.keep(late, given, "late.csv")
    finalize.finalize(late)
    for name in ("metrics.json", "results.csv"):
        assert (tmp_path / "run" / name).read_bytes() == Path(labelled.path(name)).read_bytes()
    assert check.check(late.location).problems == []


def test_labels_replace_those_of_the_survey_for_their_images_only(tmp_path):
    run = finished(tmp_path / "run")
    before = truth(run)
    flipped = before.iloc[:10].map({"normal": "crack", "crack": "normal"})
    labels.keep(run, flipped, "x.csv")
    assert not directory.open_run(run.location).finished  # until its results follow from them
    finalize.finalize(run)
    after = truth(run)
    assert (after.iloc[:10] == flipped).all()
    assert (after.iloc[10:] == before.iloc[10:]).all()
    labels.keep(run, before.iloc[:3], "y.csv")  # the next file adds to the first
    finalize.finalize(run)
    after = truth(run)
    assert (after.iloc[3:10] == flipped.iloc[3:]).all()
    assert (after.drop(flipped.index[3:]) == before.drop(flipped.index[3:])).all()


def test_names_are_taken_as_the_csv_of_results_writes_them(tmp_path):
    rows = [{"image_id": name, "uri": f"file:///{row}"} for row, name in enumerate(["=1.jpg", "'2.jpg", "3.jpg"])]
    run = directory.create(str(tmp_path / "run"), [pa.Table.from_pylist(rows, MANIFEST)], {})
    given = pd.Series({"'=1.jpg": "crack", "''2.jpg": "normal", "3.jpg": "crack"})
    labels.keep(run, given, "x.csv")
    assert labels.read(run).to_dict() == {"=1.jpg": "crack", "'2.jpg": "normal", "3.jpg": "crack"}
    labels.keep(run, pd.Series({"'2.jpg": "crack"}), "x.csv")  # as it is
    assert labels.read(run)["'2.jpg"] == "crack"
    with pytest.raises(InputError, match=r"x.csv: '=1.jpg' is there twice"):
        labels.keep(run, pd.Series({"=1.jpg": "crack", "'=1.jpg": "normal"}), "x.csv")
    with pytest.raises(InputError, match=r"x.csv: 1 of 1 images are not in .*, first 'gone.jpg'"):
        labels.keep(run, pd.Series({"'gone.jpg": "crack"}), "x.csv")


def test_another_threshold_keeps_the_labels_and_doing_it_again_changes_nothing(labelled, tmp_path):
    run = finished(tmp_path / "run", labelled=False)
    labels.keep(run, truth(labelled), "late.csv")
    finalize.finalize(run)
    before = everything(tmp_path / "run")
    labels.keep(run, truth(labelled), "late.csv")
    finalize.finalize(run)
    assert everything(tmp_path / "run") == before
    judge.set_threshold(run, quantile=None, value=0.5)
    assert finalize.finalize(run)["sets"]["all"]["confusion"]["tp"] > 0


def test_images_that_the_run_does_not_have_are_an_error_and_nothing_is_written(tmp_path):
    run = finished(tmp_path / "run")
    with pytest.raises(InputError, match=r"late.csv: 1 of 2 images are not in .*run, first 'gone.jpg'"):
        labels.keep(run, pd.Series({"0.jpg": "crack", "gone.jpg": "normal"}), "late.csv")
    assert labels.read(run) is None


def test_damaged_labels_are_refused(tmp_path):
    run = finished(tmp_path / "run")
    path = tmp_path / "run" / labels.LABELS
    for content in ({"image_id": ["0.jpg", "0.jpg"], "label": ["crack", "crack"]},
                    {"image_id": ["0.jpg"], "label": ["maybe"]}, None):  # fmt: skip
        path.write_bytes(b"no parquet") if content is None else pq.write_table(pa.table(content), path)
        with pytest.raises(InputError, match=r"labels\.parquet: is damaged; remove it and give all labels again"):
            finalize.finalize(run)
    assert (tmp_path / "run" / "_SUCCESS").exists()  # the results of before are still there


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"name": ["a"], "label": ["crack"]}, "needs one column 'image_id'; found 'name', 'label'"),
        ({"image_id": ["a"], "truth": ["crack"]}, "needs one column 'label'"),
        (
            {"image_id": ["a", "a"], "label": ["crack", "normal"]},
            "1 images are named twice with different labels, first 'a'",
        ),
        ({"image_id": ["a"], "label": ["maybe"]}, "label 'maybe' is unknown"),
        ({"image_id": ["a"], "label": [None]}, "holds no label"),
        ({"image_id": [None], "label": ["crack"]}, "a row with a label has no image_id"),
    ],
)
def test_a_table_of_labels_that_cannot_be_used_says_why(table, message):
    with pytest.raises(InputError, match=f"^x.csv: .*{message}"):
        labelling.by_image(pa.table(table), "x.csv", "label")


def test_labels_of_a_table_may_be_empty_repeated_and_of_any_known_name():
    table = pa.table({"image_id": [1, 2, 3, 1, 4], "truth": ["1", "sound", None, "1", "Cracked"]})
    found = labelling.by_image(table, "x.csv", "truth")
    assert found.to_dict() == {"1": "crack", "2": "normal", "4": "crack"}


def test_the_command_evaluates_a_run_by_labels(tmp_path, capsys):
    run = finished(tmp_path / "run", labelled=False)
    path = tmp_path / "late.csv"
    path.write_text("image_id,label\n0.jpg,crack\n1.jpg,normal\n2.jpg,\n")
    assert cli.main(["evaluate", run.location, "--labels", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"results: {run.location}"
    assert lines[-2].startswith(f"2 labels from {path}")
    assert sum(json.loads((tmp_path / "run" / "metrics.json").read_text())["sets"]["all"]["confusion"].values()) == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["m"],
        ["m", "x"],
        ["m", "--out", "o"],
        ["m", "x", "--labels", "l"],
        ["m", "--labels", "l", "--out", "o"],
        ["m", "--labels", "l", "--device", "cpu"],
    ],
)
def test_what_is_neither_form_of_evaluate_is_wrong_usage(arguments, capsys):
    assert cli.main(["evaluate", *arguments]) == 2
    error = capsys.readouterr().err
    assert "MODEL MANIFEST" in error
    assert "RUN" in error


def test_a_run_that_is_not_scored_to_its_end_says_so(tmp_path, capsys):
    run = create(tmp_path / "run", labelled=False)
    score(run, [0])
    path = tmp_path / "late.csv"
    path.write_text("image_id,label\n0.jpg,crack\n")
    assert cli.main(["evaluate", run.location, "--labels", str(path)]) == 3
    assert "is not scored" in capsys.readouterr().err
