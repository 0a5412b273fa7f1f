import base64
import html
import json
import re
import shutil
from pathlib import Path

import local
import pandas as pd
import pyarrow as pa
import pytest
import runs

from crackvae import cli, experiment
from crackvae.errors import InputError
from crackvae.report import findings, page, positions, structures, views
from crackvae.report.page import Shown, write
from crackvae.run import directory, finalize, summary

pytestmark = pytest.mark.ray


def read(location, **options):
    return Path(write(location, **options)).read_text()


def words(text):
    """What is to be read, without markup."""
    body = re.sub(r"<(style|script).*?</\1>", " ", text, flags=re.S)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


@pytest.fixture(scope="module")
def of_photographs(photograph_run):
    return read(photograph_run)


def listed(text):
    return json.loads(re.search(r'<script type="application/json" id="rows">(.*?)</script>', text, re.S)[1])


def jpegs(text):
    found = re.findall(r"data:image/jpeg;base64,([^\"]+)", text) + [row[9] for row in listed(text) if row[9]]
    return [base64.b64decode(data) for data in found]


def copied(run, tmp_path):
    return shutil.copytree(run, tmp_path / "run")


def results(run):
    return finalize.read_results(str(run)).to_pandas()


def test_the_first_screen_says_first_what_was_not_scored(photograph_run, of_photographs):
    told = words(of_photographs)
    metrics = summary.read(photograph_run)
    failed = metrics["counts"]["files"] - metrics["counts"]["scored"]
    assert failed >= 2
    flagged, normal = (metrics["counts"]["predicted"].get(name, 0) for name in ("crack", "normal"))
    facts = [
        f"Not scored {failed} of {metrics['counts']['files']} files No crack is ruled out in them.",
        "undecodable",
        "damaged.jpg",
        f"Flagged {flagged} of {flagged + normal} judged At a false-alarm rate of 5.0%",
        "Drift",
        f"model {directory.open_run(photograph_run).facts['model'][:16]}",
    ]
    places = [told.index(fact) for fact in facts]
    assert places == sorted(places)


def test_the_list_holds_every_image_first_what_was_not_scored_then_what_was_flagged(photograph_run, of_photographs):
    rows, scored = listed(of_photographs), results(photograph_run).set_index("image_id")
    assert {row[0] for row in rows} == set(scored.index)
    order = [0 if row[4] is None else 1 if row[1] == "flagged" else 2 for row in rows]
    assert order == sorted(order)
    assert set(order) == {0, 1, 2}
    p_values = [row[5] for row in rows if row[1] == "flagged"]
    assert p_values == sorted(p_values)
    for name, outcome, label, _, score, p_value, *_ in rows:
        expected = scored.loc[name]
        assert label == expected["label"]
        if score is None:
            assert outcome == expected["status"].replace("_", " ")
            assert "scored" not in words(name)
        else:
            assert (score, p_value) == pytest.approx((expected["score"], expected["p_value"]), rel=0.01)
            assert outcome == {"crack": "flagged", "normal": "not flagged"}[expected["prediction"]]


@pytest.mark.parametrize("run", ["photograph_run", "tile_run"])
def test_both_kinds_of_runs_have_galleries_thumbnails_and_figures(run, request):
    location = request.getfixturevalue(run)
    text = read(location)
    told = words(text)
    for name in ("Most anomalous", "False positives", "True positives", "True negatives", "farthest", "nearest"):
        assert name in told
    assert text.count("data:image/svg+xml") == 5  # scores, ROC, precision, p-values, training
    assert "at the recall and false alarms of the labelled images" in told
    scored = results(location)["score"].notna().sum()
    assert sum(bool(row[9]) for row in listed(text)) == scored
    assert len(jpegs(text)) > scored + 20
    # Of a photograph, the whole of it comes before the part.
    assert ("whole photograph" in text) == (run == "photograph_run")


def test_no_text_of_the_run_is_markup(of_photographs):
    text = of_photographs
    assert "<img src=x" not in text
    assert "broken=1</script>" not in text
    assert any("<img src=x" in row[0] for row in listed(text))
    assert any("</script>" in row[0] for row in listed(text))


def test_the_same_run_makes_the_same_page(photograph_run, of_photographs):
    assert read(photograph_run) == of_photographs


def test_a_page_without_positions_tells_none(photograph_run, of_photographs, monkeypatch):
    before = of_photographs
    assert "46.12500" in before
    assert '<svg class="map"' in before
    with monkeypatch.context() as patch:
        patch.setattr(findings, "triptychs", lambda *_: {})
        without = read(photograph_run, shows=Shown(with_positions=False))
        assert read(photograph_run) == without  # by a command that does not say
    assert "Positions were left out" in without
    assert "46.12" not in without
    assert '<svg class="map"' not in without
    assert read(photograph_run, shows=Shown()) == before
    for picture in jpegs(before):  # nor does a picture
        assert b"Exif" not in picture[:64]


def test_what_a_page_shows_outlives_reviews_labels_and_thresholds(photograph_run, tmp_path, monkeypatch):
    run = copied(photograph_run, tmp_path)
    monkeypatch.setattr(findings, "triptychs", lambda *_: {})  # most of a page's time, and eleven are made here
    (run / "figures").mkdir(exist_ok=True)
    (run / "figures" / "training.png").touch()  # nor other pictures
    table = tmp_path / "structures.csv"
    table.write_text("pattern,structure,element\n**,Long Bridge,deck\n")
    assert cli.main(["report", str(run), "--no-location", "--structures", str(table)]) == 0
    image = results(run)["image_id"].iloc[0]
    late = tmp_path / "late.csv"
    pd.DataFrame({"image_id": [image], "label": ["crack"]}).to_csv(late, index=False)
    for command in (
        ["review", "--budget", "3"],
        ["evaluate", "--labels", str(late)],
        ["review", "--budget", "3"],
        ["report"],
    ):
        assert cli.main([command[0], str(run), *command[1:]]) == 0
        text = (run / "report.html").read_text()
        assert "Long Bridge" in text
        assert "46.12" not in text
    assert cli.main(["report", str(run), "--folders"]) == 0
    text = (run / "report.html").read_text()
    assert "Long Bridge" not in text
    assert "46.12" not in text
    assert cli.main(["report", str(run), "--folders", "--structures", str(table)]) == 2
    (run / directory.SHOWN).write_text("[]")
    with pytest.raises(InputError, match=r"shown.json: is damaged; delete it and say again what the page shows"):
        write(str(run))
    (run / directory.SHOWN).unlink()
    for option, with_positions in ((["--no-location"], False), ([], False), (["--location"], True), ([], True)):
        assert cli.main(["report", str(run), *option]) == 0
        assert ("46.12" in (run / "report.html").read_text()) == with_positions


def test_images_that_are_gone_leave_a_page_that_says_so(photograph_run, photographs, tmp_path):
    run = copied(photograph_run, tmp_path)
    hidden = photographs.with_name("hidden")
    photographs.rename(hidden)
    try:
        text = read(str(run))
    finally:
        hidden.rename(photographs)
    assert not jpegs(text)
    assert words(text).count("No such file") > 14
    assert all("No such file" in row[10] for row in listed(text) if row[4] is not None)


def test_an_image_that_is_another_by_now_is_not_shown(photograph_run, photographs, tmp_path):
    run = copied(photograph_run, tmp_path)
    path = photographs / "normal" / "0003.jpg"
    kept = path.read_bytes()
    shutil.copy(photographs / "normal" / "small.jpg", path)
    try:
        (row,) = (row for row in listed(read(str(run))) if row[0] == "normal/0003.jpg")
    finally:
        path.write_bytes(kept)
    assert row[9:11] == ["", "changed since it was scored"]


def test_without_its_model_a_page_has_no_heat_maps_and_says_so(tile_run, model, tmp_path):
    run = copied(tile_run, tmp_path)
    moved = Path(model).with_name("moved")
    Path(model).rename(moved)
    try:
        text = read(str(run))
        assert "does not lie where it lay" in words(text)
        assert text.count("data:image/svg+xml") == 4
        assert "expected surface" not in text
        assert "expected surface" in read(str(run), model=str(moved))
        with pytest.raises(InputError, match="is not the model that scored"):
            write(str(run), model="pretrained")
    finally:
        moved.rename(model)


def test_a_page_is_bounded_and_says_what_it_leaves_out(photograph_run, of_photographs, monkeypatch):
    whole = of_photographs
    most = len(whole.encode()) - 12_000
    monkeypatch.setattr(page, "MOST_BYTES", most)
    monkeypatch.setattr(page, "_SPARE_BYTES", 1000)
    text = read(photograph_run)
    assert len(text.encode()) <= most
    missing = sum(row[4] is not None and not row[9] for row in listed(text))
    assert f"{missing} rows have no thumbnail" in words(text)
    assert 0 < missing < 17
    monkeypatch.setattr(findings, "MOST_ROWS", 6)
    monkeypatch.setattr(findings, "MOST_FAILED", 1)
    text = read(photograph_run)
    rows = listed(text)
    assert len(rows) == 6
    failed, flagged = (
        sum(row[1] == "flagged" if which else row[4] is None for row in listed(whole)) for which in (0, 1)
    )
    assert f"Left out here: {failed - 1} of {failed} not scored, {flagged - 5} of {flagged} flagged" in words(text)


def test_the_longest_names_do_not_make_a_page_too_large(tmp_path):
    folders = "/".join(["<" * 200] * 15)
    run = runs.finished(tmp_path / "run", files=findings.MOST_ROWS + 300, ids=f"{folders}/{{}}-{'&' * 200}.jpg")
    text = read(run.location)
    assert len(text.encode()) < page.MOST_BYTES
    assert len(listed(text)) == findings.MOST_ROWS


def test_results_are_added_up_by_structure_or_folder(photograph_run, of_photographs, tmp_path):
    assert {row[3] for row in listed(of_photographs)} >= {"crack", "normal"}
    table = tmp_path / "structures.csv"
    table.write_text("pattern,structure,element\ncrack/**,Bridge <1>,deck\n**,Bridge 2,\n")
    text = read(str(copied(photograph_run, tmp_path)), shows=Shown(structures.read(str(table))))
    assert {row[3] for row in listed(text)} == {"Bridge <1> deck", "Bridge 2"}
    assert "By structure What was judged least comes first." in words(text)
    assert "Bridge &lt;1&gt; deck" in text


def test_a_run_in_which_nothing_was_scored_has_a_page(model, tmp_path):
    from crackvae.cluster import scoring

    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(b"none")
    with local.without_ray():
        scoring.score(str(model), [str(tmp_path / "images")], str(tmp_path / "run"))
    told = words(read(str(tmp_path / "run")))
    assert "Not scored 1 of 1 files" in told
    assert "No image was flagged." in told
    assert "Flagged 0 of 0 judged" in told


def test_late_labels_make_a_page_with_them(tile_run, tmp_path, capsys):
    run = copied(tile_run, tmp_path)
    table = pa.Table.from_pandas(results(run)[["image_id", "label"]])
    labels = tmp_path / "labels.csv"
    labels.write_text("image_id,label\n" + "\n".join(",".join(row.values()) for row in table.to_pylist()[:40]))
    assert experiment.evaluate(str(run), None, None, labels=str(labels)) == 0
    assert f"page: {run}/report.html" in capsys.readouterr().out
    experiment.threshold(str(run), quantile=None, value=0.5)
    assert not (run / "report.html").exists()  # it would tell of another threshold


def test_the_command_says_where_the_page_is(tile_run, tmp_path, capsys):
    run = copied(tile_run, tmp_path)
    options = {"model": None, "structures": None, "location": None}
    assert experiment.report(str(run), folders=False, **options) == 0
    assert capsys.readouterr().out == f"page: {run}/report.html\n"
    (run / "_SUCCESS").unlink()
    with pytest.raises(InputError, match="is not finished"):
        experiment.report(str(run), folders=False, **options)
    with pytest.raises(InputError, match="is no run"):
        experiment.report(str(tmp_path), folders=False, **options)


@pytest.mark.parametrize("length", [100, 384, 385, 3000])
@pytest.mark.parametrize("middle", [0, 50, 1500, 2999])
@pytest.mark.parametrize("factor", [1.0, 0.5, 1.7])
def test_a_part_of_a_photograph_lies_in_it_and_holds_its_middle(length, middle, factor):
    middle = min(middle, length - 1)
    span = views._span(length, middle, factor)
    assert 0 <= span.start <= span.first < span.last <= span.stop <= length
    assert span.last - span.first == min(length, round(views.SIDE / factor))
    assert span.first <= middle <= span.last
    whole = span.of(length)
    assert (whole.start, whole.stop) == (span.start, span.stop)


@pytest.mark.parametrize("longitudes", [[179.9999, -179.9999], [-179.9999, 179.9999], [179.9999, -179.9999, 179.9998]])
def test_a_map_across_the_antimeridian_is_as_large_as_what_it_shows(longitudes):
    frame = pd.DataFrame({"image_id": list("abc")[: len(longitudes)], "latitude": 10.0, "longitude": longitudes})
    drawing, shown = positions.draw(frame.assign(prediction="normal"))
    assert shown == len(longitudes)
    assert re.search(r">(5|10) m<", drawing)
