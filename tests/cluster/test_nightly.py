"""Nights: what each costs, and what it flags."""

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace

import cv2
import local
import pyarrow.parquet as pq
import pytest
import runs
from faults import harness
from scraping import scrape, until

from crackvae import AnomalyScorer, experiment
from crackvae.cluster import nightly, scoring
from crackvae.errors import ExitCode, InputError, RefusedError
from crackvae.images import synthetic
from crackvae.model import artifact
from crackvae.run import check, lock, snapshot

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

COSTS = ("listed", "new", "changed", "retried", "vanished", "returned", "touched", "scored", "failed")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """1,000 photographs that all differ, one in ten cracked, in an order that mixes them."""
    folder = tmp_path_factory.mktemp("images")
    synthetic.write_survey(folder, normals=900, cracks=100, size=64, seed=1)
    return sorted(folder.rglob("*.jpg"), key=lambda path: (path.stem[::-1], path.parent.name))


class Survey:
    """A folder that photographs are put into."""

    def __init__(self, folder, images):
        self.folder, self._left = folder, iter(images)
        folder.mkdir()

    def add(self, count, change=None):
        for image in (next(self._left) for _ in range(count)):
            path = self.folder / f"{image.parent.name[0]}{image.name}"
            shutil.copy(image, path)
            if change:
                cv2.imwrite(str(path), change(cv2.imread(str(path))))

    def names(self):
        return sorted(path.name for path in self.folder.iterdir())


def nights_of(*arguments, **options):
    """Of one call."""
    with local.without_ray():
        return list(nightly.nightly(*arguments, **options))


def told(night):
    return {name: night.record["tonight"][name] for name in COSTS if night.record["tonight"][name]}


def rows(root, night):
    table = pq.read_table(snapshot.photographs(str(root), night.record["night"]))
    return {row["image_id"]: row for row in table.to_pylist()}


def state(root):
    """Everything in the directory, with the time of its last change."""
    return {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.name != ".lock" and path.is_file()}


def start(model, source, root, **options):
    command = [sys.executable, "-m", "crackvae", "nightly", str(model), str(source), "--out", str(root)]
    return subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def test_seven_nights(model, images, tmp_path, ray_session, monkeypatch):  # noqa: PLR0915  one story
    """Additions, changes, files that fail, a kill, a false start, nothing new: exactly what is new is scored."""
    survey, root, calm = Survey(tmp_path / "survey", images), tmp_path / "root", tmp_path / "calm"
    scorer = AnomalyScorer.load(str(model))

    def nights(root=root, **options):
        done = nights_of(str(model), str(survey.folder), str(root), **options)
        for night in done:
            if night.outcome:
                uris = pq.read_table(f"{night.outcome.run}/manifest.parquet")["uri"].to_pylist()
                flagged = (scorer.score(uris)["prediction"] == "crack").sum()
                assert night.record["tonight"]["flagged"] == flagged
        return done

    def night():
        """The same in a survey that nothing ever happens to."""
        (calm_night,), (done,) = nights(calm), nights()
        assert told(done) == told(calm_night)
        return done

    survey.add(300)
    first = night()
    assert told(first) == {"listed": 300, "new": 300, "scored": 300}

    survey.add(40)
    assert told(night()) == {"listed": 340, "new": 40, "scored": 40}

    names = survey.names()
    for name in names[:5]:
        shutil.copy(survey.folder / names[100], survey.folder / name)
    os.utime(survey.folder / names[5], (1, 1))
    away = [(survey.folder / name, tmp_path / name) for name in names[10:13]]
    for path, elsewhere in away:
        path.rename(elsewhere)
    (survey.folder / "text.jpg").write_bytes(b"text")
    (survey.folder / "link.jpg").symlink_to(tmp_path / "later.jpg")
    third = night()
    assert told(third) == {"listed": 339, "new": 2, "changed": 6, "vanished": 3, "scored": 6, "failed": 2}
    assert third.exit_code == ExitCode.TOO_MANY_FAILED  # 2 of 8
    found = rows(root, third)
    assert {row["missing_since"] for row in found.values() if not row["present"]} == {third.record["night"]}
    assert found["text.jpg"]["status"] == "undecodable"
    assert found[names[0]]["score"] == found[names[100]]["score"] != rows(root, first)[names[0]]["score"]

    survey.add(600)
    shutil.copy(images[0], tmp_path / "later.jpg")
    nights(calm)
    before = state(root)
    process = start(model, survey.folder, root)
    try:
        while not (scored := set((root / "nights").rglob("part-*.parquet")) - before.keys()):
            assert process.poll() is None, process.stderr.read().decode()
            time.sleep(0.01)
        process.kill()
        process.wait()
    finally:
        harness.end(process.pid)
    times = {path: path.stat().st_mtime_ns for path in scored}
    assert json.loads((root / "latest.json").read_bytes())["night"] == third.record["night"]
    survey.add(20)
    fourth, fifth = nights()
    assert told(fourth) == {"listed": 939, "new": 600, "retried": 1, "scored": 601}
    assert fourth.exit_code == ExitCode.DONE
    assert {path: path.stat().st_mtime_ns for path in scored} == times
    assert told(fifth) == {"listed": 959, "new": 20, "scored": 20}
    nights(calm)

    before = state(root)
    survey.folder.rename(tmp_path / "elsewhere")
    survey.folder.mkdir()  # a mount point
    with pytest.raises(InputError, match="no image"):
        nights()
    survey.folder.rmdir()
    (tmp_path / "elsewhere").rename(survey.folder)
    with pytest.raises(RefusedError, match=r"holds the nights of .*; give another --out"):
        nights_of(str(model), str(calm), str(root))
    with lock.holding(str(root)), pytest.raises(RefusedError, match="another process works"):
        nights()
    for path, elsewhere in away:
        elsewhere.rename(path)
    sixth = night()
    assert told(sixth) == {"listed": 962, "returned": 3}
    assert state(root).items() >= {(p, t) for p, t in before.items() if p.name != "latest.json"}

    before = state(root)
    monkeypatch.setattr(scoring, "night", None)  # nothing is scored
    seventh = night()
    assert told(seventh) == {"listed": 962}
    assert seventh.record["night"] == sixth.record["night"]
    assert state(root) == before

    ours, undisturbed = (runs.everything(place) for place in (root, calm))
    ours = {name: data for name, data in ours.items() if not name.endswith(".tmp")}  # what a killed writer leaves
    records = {name for name in ours if name.endswith(("night.json", "latest.json"))}  # they hold how long it took
    assert ours.keys() == undisturbed.keys()
    assert [name for name in ours if ours[name] != undisturbed[name] and name not in records] == []
    for made in (root / "nights").iterdir():
        assert check.check(str(made)).problems == []


def test_one_odd_night_is_no_alarm_and_a_lasting_change_is_until_accepted(model, images, tmp_path, ray_session):
    survey, root, before = Survey(tmp_path / "survey", images), tmp_path / "root", scrape()

    def night(change=None, **options):
        survey.add(30, change)
        (done,) = nights_of(str(model), str(survey.folder), str(root), **options)
        return done

    def strapped(image_HW3):
        """A dark strap in front of the lens."""
        image_HW3[:, 24:40] = 0
        return image_HW3

    def alarms(done):
        assert (done.exit_code == ExitCode.DRIFT_ALARM) == any(c["alarm"] for c in done.record["drift"].values())
        return {name: chart["alarm"] for name, chart in done.record["drift"].items() if chart["alarm"]}

    quiet = [night() for _ in range(6)]
    odd = night(strapped)
    assert odd.record["tonight"]["flagged"] == 30
    assert max(done.record["tonight"]["flagged"] for done in quiet) < 20
    after = [night()]
    assert [alarms(done) for done in (*quiet, odd, *after)] == 8 * [{}]
    lasting = []
    while not lasting or not alarms(lasting[-1]):
        lasting.append(night(strapped))
        assert len(lasting) < 8
    assert len(lasting) > 1
    assert alarms(lasting[-1]).items() <= {
        "flagged": "higher", "score_quantile_0.5": "higher", "score_quantile_0.95": "higher"
    }.items()  # fmt: skip
    flagged = lasting[-1].record["drift"]["flagged"]
    assert flagged["nights"] == 8 + len(lasting)
    assert flagged["value"] == lasting[-1].record["tonight"]["flagged"] / 30
    assert flagged["calibration"] == pytest.approx(0.2)
    counted = [("ray_crackvae_drift_alarms_total", name) for name in alarms(lasting[-1])]
    assert until(lambda: all(scrape().get(key, 0) == before.get(key, 0) + 1 for key in counted))
    accepted = night(strapped, accept_drift=True)
    assert alarms(accepted) == {}
    assert accepted.record["nights"] == [accepted.record["night"]]


def test_another_model_is_refused_with_what_it_would_cost_or_begins_a_generation(model, images, tmp_path, ray_session):
    survey, root, other = Survey(tmp_path / "survey", images), tmp_path / "root", tmp_path / "model"
    survey.add(30)
    loaded = artifact.load(str(model))
    artifact.save(replace(loaded, provenance={**loaded.provenance, "date": "another"}), str(other))
    arguments = (str(survey.folder), str(root))
    (first,) = nights_of(str(model), *arguments, new_generation=True)  # without effect
    assert first.record["generation"] == 1
    survey.add(4)
    gone = survey.folder / survey.names()[0]
    gone.unlink()
    before = state(root)
    refusal = (
        r"its nights were scored otherwise: model was '\w+', is '\w+'; give what it was, or begin another generation "
        r"with --new-generation, which scores all 30 photographs anew, about \S+ hours at the \S+ a second"
    )
    with pytest.raises(RefusedError, match=refusal):
        nights_of(str(other), *arguments)
    assert state(root) == before
    (second,) = nights_of(str(other), *arguments, new_generation=True)
    assert told(second) == {"listed": 33, "new": 33, "scored": 33}
    assert (second.record["generation"], second.record["nights"]) == (2, [second.record["night"]])
    assert len(rows(root, second)) == 33
    assert rows(root, first)[gone.name]["present"]
    (quiet,) = nights_of(str(other), *arguments, new_generation=True)
    assert (told(quiet), quiet.record["night"]) == ({"listed": 33}, second.record["night"])
    with pytest.raises(RefusedError, match="model was"):
        nights_of(str(model), *arguments)


def test_another_kind_of_machine_is_another_generation_too(model, images, tmp_path, ray_session, monkeypatch):
    survey, root = Survey(tmp_path / "survey", images), tmp_path / "root"
    survey.add(3)
    arguments = (str(model), str(survey.folder), str(root))
    nights_of(*arguments)
    path = root / "latest.json"
    path.write_text(path.read_text().replace('"device": "cpu"', '"device": "cuda"'))
    (quiet,) = nights_of(*arguments)  # nothing is scored
    assert told(quiet) == {"listed": 3}
    survey.add(1)
    with pytest.raises(RefusedError, match=r"backend\.device was 'cuda', is 'cpu'"):
        nights_of(*arguments)
    (second,) = nights_of(*arguments, new_generation=True)
    assert told(second) == {"listed": 4, "new": 4, "scored": 4}
    assert second.record["generation"] == 2


def test_a_night_that_was_cut_off_is_left_where_another_model_begins(model, images, tmp_path, ray_session, monkeypatch):
    survey, root, other = Survey(tmp_path / "survey", images), tmp_path / "root", tmp_path / "model"
    survey.add(3)
    loaded = artifact.load(str(model))
    artifact.save(replace(loaded, provenance={**loaded.provenance, "date": "another"}), str(other))
    arguments = (str(survey.folder), str(root))
    with monkeypatch.context() as patched:
        patched.setattr(snapshot, "write", None)
        with pytest.raises(TypeError):
            nights_of(str(model), *arguments)
    assert not (root / "latest.json").exists()
    with pytest.raises(RefusedError, match="at a pace that is not known yet"):
        nights_of(str(other), *arguments)
    (done,) = nights_of(str(other), *arguments, new_generation=True)
    assert told(done) == {"listed": 3, "new": 3, "scored": 3}
    assert done.record["night"].endswith("-2")
    assert check.check(str(root / "nights" / done.record["night"])).problems == []


def test_a_folder_whose_name_means_a_label_may_come_any_night(model, images, tmp_path, ray_session):
    survey, root = Survey(tmp_path / "survey", images), tmp_path / "root"
    survey.add(2)
    list(nightly.nightly(str(model), str(survey.folder), str(root)))
    (survey.folder / "crack").mkdir()
    shutil.copy(images[5], survey.folder / "crack")
    (second,) = nightly.nightly(str(model), str(survey.folder), str(root))  # this one by Ray
    assert told(second) == {"listed": 3, "new": 1, "scored": 1}
    assert {row["label"] for row in rows(root, second).values()} == {None}


def test_equal_content_under_another_time_costs_a_read_and_no_score(model, images, tmp_path, ray_session):
    survey, root = Survey(tmp_path / "survey", images), tmp_path / "root"
    survey.add(6)
    (survey.folder / "z.jpg").symlink_to(tmp_path / "nowhere")
    arguments = (str(model), str(survey.folder), str(root))
    (first,) = nights_of(*arguments, content_hash=True)
    assert told(first) == {"listed": 7, "new": 7, "scored": 6, "failed": 1}
    names = survey.names()
    for name in names[:3]:
        os.utime(survey.folder / name, (1, 1))
    data = bytearray((survey.folder / names[0]).read_bytes())
    data[-3] ^= 1
    (survey.folder / names[0]).write_bytes(data)
    (second,) = nights_of(*arguments, content_hash=True)
    assert told(second) == {"listed": 7, "changed": 1, "retried": 1, "touched": 2, "scored": 1, "failed": 1}
    assert second.exit_code == ExitCode.DONE  # what stays unreadable is not news
    assert [rows(root, second)[name]["night"] == second.record["night"] for name in names[:3]] == [True, False, False]
    (third,) = nights_of(*arguments)
    assert told(third) == {"listed": 7, "retried": 1, "failed": 1}


def test_a_night_that_could_not_be_shown_is_shown_by_the_next_call(model, images, tmp_path, ray_session):
    survey, root, shown = Survey(tmp_path / "survey", images), tmp_path / "root", []
    survey.add(2)
    (survey.folder / "damaged.jpg").write_text("no image")
    arguments = (str(model), str(survey.folder), str(root))

    def full(outcome):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        nights_of(*arguments, show=full)
    assert snapshot.latest(str(root)) is None
    (first,) = nights_of(*arguments, show=lambda outcome: shown.append(outcome.run))
    assert (shown, first.exit_code) == ([str(root / "nights" / first.record["night"])], ExitCode.TOO_MANY_FAILED)
    assert told(first) == {"listed": 3, "new": 3, "scored": 2, "failed": 1}
    (quiet,) = nights_of(*arguments, show=full)
    assert quiet.record["night"] == first.record["night"]


def test_hashes_learnt_on_a_night_with_nothing_new_are_kept(model, images, tmp_path, ray_session):
    survey, root = Survey(tmp_path / "survey", images), tmp_path / "root"
    survey.add(2)
    paths = sorted(survey.folder.iterdir())
    (table := tmp_path / "survey.csv").write_text("\n".join(["uri", *map(str, paths)]))
    arguments = (str(model), str(table), str(root))
    nights_of(*arguments)
    (second,) = nights_of(*arguments, content_hash=True)
    assert told(second) == {"listed": 2}
    before = state(root)
    nights_of(*arguments, content_hash=True)
    assert state(root) == before
    shutil.copy(images[9], paths[0])
    (third,) = nights_of(*arguments, content_hash=True)
    assert told(third) == {"listed": 2, "changed": 1, "scored": 1}


def test_the_alarm_of_a_night_that_was_cut_off_is_not_lost_where_tonight_fails(monkeypatch, tmp_path, caplog, capsys):
    """A schedule tries exit code 3 again, and finds nothing new then."""
    record = {"night": "2026-01-01", "generation": 1, "tonight": {}, "counts": {"photographs": 1}, "drift": {}}

    def nights(*_, **__):
        yield nightly.Night(record, None, code)
        raise InputError("survey: is gone")

    monkeypatch.setattr(nightly, "nightly", nights)
    for code in (ExitCode.DRIFT_ALARM, ExitCode.TOO_MANY_FAILED):
        assert experiment.nightly("model", "survey", str(tmp_path)) == code
        assert json.loads(capsys.readouterr().out)["exit_code"] == code
        assert "after a night that was cut off and is finished now: survey: is gone" in caplog.text
    code = ExitCode.DONE
    with pytest.raises(InputError, match="survey: is gone"):
        experiment.nightly("model", "survey", str(tmp_path))
