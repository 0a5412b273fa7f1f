"""A review from its list to a new calibration, on runs whose scores are made up and on real ones."""

import csv
import dataclasses
import io
import json
import shutil
from pathlib import Path

import local
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import runs
from PIL import Image

from crackvae import AnomalyScorer, cli
from crackvae.cluster import calibrate, scoring
from crackvae.dataset import manifest
from crackvae.errors import InputError, RefusedError
from crackvae.images import synthetic
from crackvae.model import artifact
from crackvae.report import decisions, findings, page, repeats, review
from crackvae.run import directory, finalize, shards
from crackvae.run.shards import Work
from crackvae.schema import MANIFEST, PART
from crackvae.statistics.discovery import benjamini_hochberg

CRACKS, FILES = 60, 600


@pytest.fixture
def run(tmp_path):
    """600 images, the first 60 of which score above all of the 99 calibration normals; one was not scored."""
    made = runs.create(tmp_path / "run", files=FILES, ids="={}.jpg", labelled=False)
    score_N = np.random.default_rng(5).random(FILES)
    score_N[:CRACKS] += 1
    done = 0
    for number in range(made.plan.shards):
        names = made.plan.shard(number)["image_id"].to_pylist()
        rows = []
        for name in names:
            rows.append({"image_id": name, "status": "ok", "score": score_N[done], "reconstruction_error": 1.0})
            done += 1
        if number == 0:
            rows[-1] = {"image_id": names[-1], "status": "undecodable", "message": "damaged"}
        shards.write_part(made.location, made.identity, Work(number, 0), pa.Table.from_pylist(rows, PART))
    finalize.finalize(made)
    return made


def names(made, part):
    return made.of(part)["image_id"].tolist()


def csv_of(path, said):
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerows([["image_id", "decision", "note"], *([f"'{name}", text, ""] for name, text in said.items())])
    return str(path)


def truth(name):
    return "crack" if int(name[1:].partition(".")[0]) < CRACKS else "no crack"


def test_the_list_is_that_of_benjamini_and_hochberg_by_p_value(run):
    made = review.plan(run.location, fdr=0.1)
    results = finalize.read_results(run.location).to_pandas().dropna(subset="p_value")
    expected = results[benjamini_hochberg(results["p_value"].to_numpy(), 0.1)]
    assert set(names(made, "list")) == set(expected["image_id"])
    assert {f"={number}.jpg" for number in range(CRACKS)} <= set(expected["image_id"])
    listed = made.of("list")
    assert listed["p_value"].is_monotonic_increasing
    assert made.facts["listed"] == len(listed)
    assert made.facts["rest"] == FILES - 1 - len(listed)
    assert made.facts["least_real"] >= 0.9
    assert "at least 90% of them real findings" in made.lines()[0]


def test_the_audit_sample_is_drawn_from_the_rest_and_follows_from_the_seed(run):
    made, again, other = (review.plan(run.location, audit=80, seed=seed) for seed in (1, 1, 2))
    audit = names(made, "audit")
    assert len(audit) == len(set(audit)) == 80
    assert not set(audit) & set(names(made, "list"))
    assert names(again, "audit") == audit
    assert set(names(other, "audit")) != set(audit)
    # Of the whole sample, a share is in the list, as of all images.
    drawn = made.rows[made.rows["drawn"]]
    assert set(audit) < set(drawn["image_id"])
    assert 1 <= len(drawn) - len(audit) <= 30
    whole = review.plan(run.location, audit=10**6)
    assert len(names(whole, "audit")) == whole.facts["rest"]


def test_every_image_is_drawn_alike_whether_listed_or_not(run):
    """So that sound images of the sample are exchangeable with all sound images."""
    chosen_N = np.arange(300) < 60
    counts_N = np.zeros(300)
    for seed in range(3000):
        counts_N[review._draw(chosen_N, 40, seed)] += 1
    listed, rest = counts_N[:60].mean(), counts_N[60:].mean()
    assert rest == pytest.approx(3000 * 40 / 240)
    assert listed == pytest.approx(rest, rel=0.03)


def test_a_budget_takes_the_smallest_p_values_and_then_the_highest_scores(run):
    made = review.plan(run.location, budget=20)
    results = finalize.read_results(run.location).to_pandas()
    assert names(made, "list") == results.sort_values("score", ascending=False)["image_id"].tolist()[:20]
    assert made.facts["least_real"] == pytest.approx(1 - (FILES - 1) * 0.01 / 66, abs=0.02)


def test_a_list_that_cannot_be_says_why(run):
    made = review.plan(run.location, fdr=0.05)  # p is never below 0.01: 120 images would have to have it
    assert made.facts["listed"] == 0
    assert "smallest p-value is 0.01, and 120 images with it would make one" in made.lines()[0]
    assert len(names(made, "audit")) == 100
    assert review.read(run).facts == made.facts


def test_the_files_are_for_spreadsheets_and_read_back(run):
    made = review.plan(run.location)
    table = list(csv.DictReader(io.StringIO(Path(run.path("review.csv")).read_text())))
    assert [row["image_id"] for row in table] == [f"'{name}" for name in made.rows["image_id"]]
    assert {row["part"] for row in table} == {"list", "audit"}
    pd.testing.assert_frame_equal(review.read(run).rows, made.rows.reset_index(drop=True), check_dtype=False)
    finalize.finalize(run)  # as another threshold does
    assert review.read(run) is None


def test_decisions_give_precision_and_a_bound_on_misses(run, tmp_path):
    made = review.plan(run.location, fdr=0.2, audit=100)
    said = {name: truth(name) for name in made.rows["image_id"]}
    counts = decisions.decide(run.location, csv_of(tmp_path / "d.csv", said)).counts()
    listed = len(names(made, "list"))
    assert counts["list"] == {"crack": CRACKS, "no crack": listed - CRACKS, "unsure": 0, "undecided": 0}
    assert counts["precision"]["value"] == pytest.approx(CRACKS / listed)
    assert counts["precision"]["low"] < CRACKS / listed < counts["precision"]["high"] <= 1
    assert counts["missed"]["share_at_most"] == pytest.approx(1 - 0.05**0.01)
    assert counts["missed"]["at_most"] == int(counts["missed"]["share_at_most"] * counts["missed"]["of"])
    assert json.loads(Path(run.path("decisions.json")).read_text()) == counts
    # What is not known of the sample is counted against the list.
    first, second = names(made, "audit")[:2]
    said[first] = "Unsure"
    said[second] = ""
    worse = decisions.decide(run.location, csv_of(tmp_path / "d.csv", said)).counts()
    assert worse["audit"] == {"crack": 0, "no crack": 98, "unsure": 1, "undecided": 1}
    assert worse["missed"]["share_at_most"] == pytest.approx(0.0616, abs=1e-4)  # 2 of 100


def test_a_sample_of_all_the_rest_is_a_count(run, tmp_path):
    made = review.plan(run.location, budget=50, audit=1000)
    said = {name: truth(name) for name in made.rows["image_id"]}
    missed = decisions.decide(run.location, csv_of(tmp_path / "d.csv", said)).counts()["missed"]
    assert (missed["at_most"], missed["of"]) == (CRACKS - 50, FILES - 1 - 50)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image_id,note\n=1.jpg,x\n", "needs one column 'decision'; found 'image_id', 'note'"),
        ("image_id,decision,decision\n=1.jpg,crack,crack\n", "needs one column 'decision'"),
        ("image_id,decision\n'=1.jpg,crack\nnone.jpg,crack\n", "row 2: .* has no image 'none.jpg'"),
        ("image_id,decision\n'=1.jpg,crak\n", "row 1: decision 'crak' is unknown; use crack, no crack, unsure"),
        ("image_id,decision\n'=1.jpg,crack\n=1.jpg,crack\n", "row 2: '=1.jpg' is in row 1 already"),
        ("image_id,decision\n,crack\n", "row 1: .* has no image ''"),
        ("image_id,decision\n'=1.jpg,\n", "holds no decision"),
        ("", "cannot be read as CSV"),
        (None, "no such file"),
    ],
)
def test_a_bad_file_of_decisions_is_one_line(text, message, run, tmp_path):
    review.plan(run.location)
    path = tmp_path / "decisions.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=message) as raised:
        decisions.decide(run.location, str(path))
    assert str(raised.value).startswith(str(path))
    assert "\n" not in str(raised.value)


def test_without_a_review_there_is_nothing_to_decide(run, tmp_path, capsys):
    path = csv_of(tmp_path / "d.csv", {"=1.jpg": "crack"})
    assert cli.main(["review", run.location, "--decisions", path]) == 3
    assert f"has no review; make one by `crackvae review {run.location}`" in capsys.readouterr().err
    assert cli.main(["review", run.location, "--training", path]) == 2
    assert cli.main(["review", run.location, "--fdr", "1.5"]) == 2
    assert "must lie between 0 and 1" in capsys.readouterr().err
    assert cli.main(["review", run.location, "--seed", "-1"]) == 2
    assert "is no count from 0" in capsys.readouterr().err


def test_for_the_calibration_the_whole_sample_must_be_decided_and_only_its_sound_images_join(run, tmp_path):
    made = review.plan(run.location, fdr=0.2)
    said = {name: truth(name) for name in names(made, "list")}  # sound ones among them, too
    assert "no crack" in said.values()
    with pytest.raises(RefusedError, match=r"drawn at random are not decided.*selected by their scores"):
        decisions.decide(run.location, csv_of(tmp_path / "d.csv", said)).for_calibration()
    said |= {name: truth(name) for name in names(made, "audit")}
    decided = decisions.decide(run.location, csv_of(tmp_path / "d.csv", said))
    drawn = made.rows[made.rows["drawn"]]["image_id"]
    sound = {name for name in drawn if truth(name) == "no crack"}
    for rows in decided.for_calibration():  # of the results, of the manifest
        assert set(rows["image_id"].to_pylist()) == sound
    training = decided.for_training()
    rest = {name: text for name, text in said.items() if name not in set(drawn)}
    assert dict(zip(training["image_id"].to_pylist(), training["label"].to_pylist(), strict=True)) == {
        name: text.replace("no crack", "normal") for name, text in rest.items()
    }
    counted = decisions.decide(run.location, csv_of(tmp_path / "d.csv", said)).counts()["missed"]
    assert counted["at_most"] == int(counted["share_at_most"] * counted["of"])
    said |= dict.fromkeys(sound, "unsure")
    with pytest.raises(InputError, match="no image drawn at random is sound"):
        decisions.decide(run.location, csv_of(tmp_path / "d.csv", said)).for_calibration()


@pytest.fixture
def dirty(tmp_path):
    """Twelve photographs; the same hair is on four, on a fifth elsewhere."""
    folder = tmp_path / "dirty"
    synthetic.write_survey(folder, normals=12, cracks=0, size=416)
    paths = sorted((folder / "normal").iterdir())
    hair = np.zeros((416, 416), bool)
    for step in range(200):
        x = 100 + step
        y = 150 + round(30 * np.sin(step / 25))
        hair[y : y + 3, x] = True
    for number, path in enumerate(paths[:5]):
        gray_HW = np.asarray(Image.open(path).convert("L")).copy()
        gray_HW[np.roll(hair, 180, axis=0) if number == 4 else hair] //= 4
        Image.fromarray(gray_HW).save(path, quality=92)
    return folder


@pytest.mark.ray
def test_repeats_of_one_false_alarm_are_shown_once(dirty, tmp_path, capsys):
    out = str(tmp_path / "run")
    with local.without_ray():
        scoring.score("pretrained", [str(dirty)], out)
    assert cli.main(["review", out, "--budget", "8", "--audit", "1"]) == 0
    made = review.read(directory.open_run(out))
    results = finalize.read_results(out).to_pandas()
    flagged = results.sort_values("score", ascending=False).head(8)["image_id"].tolist()
    assert set(made.of("list")["image_id"]) | set(made.of("repeat")["image_id"]) == set(flagged)
    shown = made.of("list")["image_id"].tolist()
    repeated = made.of("repeat")
    drawn = made.rows[made.rows["drawn"]]["image_id"]
    hairy = [name for name in flagged if name in {f"normal/{number:04d}.jpg" for number in range(4)}]
    assert set(repeated["image_id"]) == set(hairy[1:]) - set(drawn)  # the whole sample is looked at
    assert len(repeated) >= 1
    assert set(repeated["repeat_of"]) == {hairy[0]}
    assert "normal/0004.jpg" in shown  # its hair is elsewhere
    text = Path(out, "report.html").read_text()
    assert f"{len(repeated)} more show the same at the same place" in text
    assert f'["{repeated["image_id"].iloc[0]}"' not in text  # it has no row
    assert f"page: {out}/report.html\nlist: {out}/review.csv" in capsys.readouterr().out


def test_the_same_place_alone_or_the_same_look_alone_is_no_repeat(tmp_path):
    generator = np.random.default_rng(0)
    looks = generator.integers(60, 200, (2, 64, 64)).astype(np.uint8)
    rows, boxes = [], {}
    for number, (look, x) in enumerate([(0, 10), (1, 10), (0, 14), (0, 120), (0, 10)]):
        gray_HW = np.full((200, 200), 128, np.uint8)
        gray_HW[10:74, x : x + 64] = looks[look]
        path = tmp_path / f"{number}.png"
        Image.fromarray(gray_HW).save(path)
        rows.append({"image_id": path.name, "uri": f"file://{path}", "width": 200, "height": 200})
        boxes[path.name] = [[x, 10, 64, 64]]
    frame = pd.DataFrame(rows)
    assert repeats.find(frame, boxes).tolist() == [0, 1, 2, 3, 0]
    (tmp_path / "4.png").unlink()
    assert repeats.find(frame, boxes).tolist() == [0, 1, 2, 3, 4]
    assert repeats.find(frame.assign(width=[200] * 4 + [201]), boxes).tolist() == [0, 1, 2, 3, 4]
    assert repeats.find(frame[:0], {}).tolist() == []


def test_a_dark_border_at_the_lower_edge_of_a_panorama_is_compared(tmp_path):
    """Shown with 1,024 pixels a side, its height is rounded down to 170, and the border lies in row 170."""
    for number in range(2):
        Image.new("L", (20_000, 3_330), 128).save(tmp_path / f"{number}.png")
    rows = [
        {"image_id": path.name, "uri": path.as_uri(), "width": 20_000, "height": 3_330}
        for path in sorted(tmp_path.glob("*.png"))
    ]
    boxes = {row["image_id"]: [[100, 3_327, 5_000, 3]] for row in rows}
    assert len(repeats.find(pd.DataFrame(rows), boxes)) == 2


@pytest.fixture(scope="module")
def decided(tile_run, tmp_path_factory):
    """A review of a run of the tiny model, and what its labels say of every image: run and CSV."""
    run = shutil.copytree(tile_run, tmp_path_factory.mktemp("decided") / "run")
    review.plan(str(run), budget=50, audit=30)
    results = finalize.read_results(str(run)).to_pandas()
    path = run.parent / "decisions.csv"
    said = results.set_index("image_id")["label"].map({"crack": "crack", "normal": "no crack"})
    return run, csv_of(path, said.to_dict())


@pytest.mark.ray
def test_sound_images_of_the_sample_make_a_new_version_of_the_model(decided, model, survey, tmp_path, capsys):
    run, path = decided
    out, training = tmp_path / "new", tmp_path / "training.parquet"
    arguments = ["review", str(run), "--decisions", path, "--calibrated", str(out), "--training", str(training)]
    assert cli.main(arguments) == 0
    before, made, scored = artifact.load(str(model)), artifact.load(str(out)), directory.open_run(str(run))
    drawn = review.read(scored).rows.query("drawn")["image_id"]
    sound = [name for name in finalize.read_results(str(run))["image_id"].to_pylist()
             if name in set(drawn) and name.startswith("normal")]  # fmt: skip
    assert len(sound) > 10
    assert made.calibration.image_id == [*before.calibration.image_id, *sound]
    (joined,) = made.provenance["calibration_joined"]
    assert (joined["run"], joined["images"], len(joined["content_hash"])) == (scored.identity, sound, len(sound))
    assert made.provenance["calibrated_model"] == before.fingerprint
    frame = AnomalyScorer.load(str(out)).score([survey / name for name in sound])
    np.testing.assert_allclose(frame["score"], made.calibration.normals.score_n[-len(sound) :], rtol=1e-5)
    np.testing.assert_allclose(frame["latent"], made.calibration.looks["latent"][-len(sound) :], rtol=1e-4)
    assert f"{len(sound)} of them drawn at random from run {scored.identity[:16]}" in (out / "README.md").read_text()
    told = capsys.readouterr().out.splitlines()
    assert told[-1] == f"results: {run}/decisions.json"
    assert f"model: {out}; {len(sound)} sound images drawn at random have joined its calibration" in told
    # It is another model: runs of the one before do not join it, and it is not overwritten.
    assert cli.main([*arguments, "--model", str(out)]) == 3
    assert "is not the model that scored" in capsys.readouterr().err
    assert cli.main(arguments) == 3
    assert "is not empty; give an empty directory" in capsys.readouterr().err
    # What was selected by its score never calibrates.
    table = manifest.read(str(training))
    assert not set(table["image_id"].to_pylist()) & set(drawn)
    with pytest.raises(RefusedError, match="selected by their scores"):
        calibrate.recalibrate(str(model), [str(training)], str(tmp_path / "never"))
    assert not (tmp_path / "never").exists()


@pytest.mark.ray
def test_the_page_shows_the_review(decided):
    run, _ = decided
    text = Path(page.write(str(run))).read_text()
    rows = json.loads(text.partition('id="rows">')[2].partition("</script>")[0])
    made = review.read(directory.open_run(str(run)))
    parts = [row[11] for row in rows]
    assert parts[: len(made.of("list"))] == ["list"] * len(made.of("list"))
    assert parts.count("audit") == 30
    assert [row[0] for row in rows if row[11] == "list"] == made.of("list")["image_id"].tolist()
    assert '<select id="review">' in text


def test_a_page_of_a_longer_list_has_the_whole_audit_sample(tmp_path):
    made = runs.finished(tmp_path / "run", files=findings.MOST_ROWS + 500, labelled=False)
    audit = review.plan(made.location, budget=findings.MOST_ROWS + 200, audit=120).of("audit")["image_id"].tolist()
    text = Path(page.write(made.location)).read_text()
    rows = json.loads(text.partition('id="rows">')[2].partition("</script>")[0])
    assert len(audit) >= 100
    assert {row[0] for row in rows if row[11] == "audit"} == set(audit)
    assert len(rows) == findings.MOST_ROWS


def test_a_list_that_was_filled_in_is_kept_when_another_one_or_another_threshold_comes(run, capsys, caplog):
    review.plan(run.location, budget=2)
    folder, path = Path(run.location), Path(run.location) / "review.csv"
    review.plan(run.location, budget=3)
    assert not [*folder.glob("review-edited-*")]
    texts = []
    for command in (["review", "--budget", "4"], ["threshold", "--value", "0.5"]):
        texts.append(path.read_text().replace(",,", ',"crack",', 1))
        path.write_text(texts[-1])
        assert cli.main([command[0], run.location, *command[1:]]) == 0
        assert f"{path} was edited, and is kept as {folder}/review-edited-{len(texts)}.csv" in caplog.text
        assert [(folder / f"review-edited-{n}.csv").read_text() for n in range(1, len(texts) + 1)] == texts
    assert not path.exists()


def test_repeats_are_looked_for_among_the_first_of_the_list(run, monkeypatch):
    seen = []
    monkeypatch.setattr(review, "_MOST_COMPARED", 7)
    find = review._repeats
    monkeypatch.setattr(review, "_repeats", lambda place, rows, order: seen.append(order) or find(place, rows, order))
    made = review.plan(run.location, budget=20)
    listed = finalize.read_results(run.location).to_pandas().set_index("image_id")["p_value"][names(made, "list")]
    assert len(listed) == 20
    assert [len(order) for order in seen] == [7]


@pytest.mark.parametrize("make", [page.write, review.plan])
def test_what_tells_of_another_threshold_is_not_written(run, monkeypatch, make):
    read = finalize.read_blocks

    def meanwhile(*arguments, **options):
        monkeypatch.setattr(finalize, "read_blocks", read)
        blocks = list(read(*arguments, **options))
        assert cli.main(["threshold", run.location, "--value", "0.5"]) == 0
        return iter(blocks)

    monkeypatch.setattr(finalize, "read_blocks", meanwhile)
    with pytest.raises(RefusedError, match="was judged anew meanwhile"):
        make(run.location)
    assert not (Path(run.location) / "report.html").exists()
    assert not (Path(run.location) / "review.csv").exists()


@pytest.mark.parametrize("cracks", [1, 15, 29])
def test_where_all_of_the_rest_is_looked_at_what_was_missed_is_a_count(run, cracks, tmp_path):
    """1 of 49 is no share from which one comes back: int(1 / 49 * 49) is 0."""
    made = review.plan(run.location, budget=FILES - 1 - 49, audit=100)
    rest = names(made, "audit")
    assert len(rest) == 49
    said = dict.fromkeys(rest, "no crack") | dict.fromkeys(rest[:cracks], "crack")
    missed = decisions.decide(run.location, csv_of(tmp_path / "d.csv", said)).counts()["missed"]
    assert missed == {"of": 49, "share_at_most": cracks / 49, "at_most": cracks}


@pytest.mark.ray
def test_an_image_joins_a_calibration_once_and_a_twin_of_it_never(decided, model, tmp_path, caplog):
    run, path = decided
    scored = directory.open_run(str(run))
    sound, images = decisions.decide(scored.location, path).for_calibration()
    twice = pa.concat_tables([images, images.slice(0, 1).set_column(0, MANIFEST.field("image_id"), pa.array(["copy"]))])
    base = artifact.load(str(model))
    made = calibrate.join(base, scored, sound, twice, str(tmp_path / "first"))
    assert len(made.calibrated.image_id) == len(base.calibrated.image_id) + images.num_rows
    assert f"1 of {images.num_rows + 1} images do not join" in caplog.text
    with pytest.raises(InputError, match="none of its sound images can join"):
        calibrate.join(made, scored, sound, images, str(tmp_path / "second"))
    cracked = images.set_column(images.schema.get_field_index("label"), "label", pa.array(["crack"] * len(images)))
    (record,) = made.provenance["calibration_joined"]
    older = dataclasses.replace(base, provenance={"calibration_joined": [{"run": record["run"], "images": []}]})
    made = calibrate.join(older, scored, sound, cracked, str(tmp_path / "third"))  # people say what it is, not a folder
    assert len(made.calibrated.image_id) == len(base.calibrated.image_id) + images.num_rows


def test_the_samples_of_two_runs_are_drawn_independently(run, tmp_path):
    """Of one survey, scored by two models, the same images would join a calibration twice."""
    other = runs.create(tmp_path / "other", files=FILES, ids="={}.jpg", labelled=False, facts={"model": "other"})
    for number in range(other.plan.shards):
        part = shards.read_part(run, number, range(1)).table
        shards.write_part(other.location, other.identity, Work(number, 0), part)
    finalize.finalize(other)
    drawn = [set(review.plan(made.location, budget=60).rows.query("drawn")["image_id"]) for made in (run, other)]
    assert len(drawn[0] & drawn[1]) < 40  # of 100 and more each; 18 are to be expected
