"""The commands, as processes: exit codes, one-line errors, and going on after a kill."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import runs
from faults import harness
from PIL import Image
from tiny import TINY_TOML

from crackvae import cli
from crackvae.images import synthetic
from crackvae.run import finalize
from crackvae.terminal import log


def crackvae(*arguments, **options):
    command = [sys.executable, "-m", "crackvae", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def inside(*arguments):
    """The same in this process, which has imported already what a new one takes 3 s for."""
    with (
        pytest.MonkeyPatch.context() as patch,
        redirect_stdout(io.StringIO()) as out,
        redirect_stderr(io.StringIO()) as err,
    ):
        patch.setattr(log, "handlers", [])  # one for this stderr
        patch.setattr(log, "propagate", log.propagate)
        try:
            code = cli.main([*map(str, arguments)])
        except SystemExit as stopped:
            code = stopped.code
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def refused(*arguments, code=3, by=inside):
    """Runs a command that must fail with one line; returns the line."""
    done = by(*arguments)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    return folder


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def test_help_names_every_command_with_an_example():
    top = crackvae("--help")
    assert top.returncode == 0
    commands = "index split train evaluate score nightly threshold report review export check compare reproduce demo"
    for name in [*commands.split(), "submit"]:
        assert name in top.stdout
        assert f"crackvae {name}" in crackvae(name, "--help").stdout


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        ("score m s --out r", 2, "required: --address"),
        ("--address http://x demo", 2, "submit sends train, calibrate, evaluate, score, nightly"),
        ("--address http://x score m", 2, "required: SOURCE, --out"),
        ("evaluate run --labels l.csv --address http://x", 2, "give --out"),
        ("score /m /s --out /r --address x:8265", 2, "give the URL of the dashboard"),
        (
            "score /m photos --out /r --address http://127.0.0.1:1",
            3,
            "photos: is looked for on the cluster; give",
        ),
        ("score /m s3://id:key@bucket/s --out s3://r/r --address http://127.0.0.1:1", 3, "holds a password or key"),
        ("score /m /s --out /r --structures=no.csv --address http://127.0.0.1:1", 3, "no.csv: no such file"),
        ("score /m /s --out /r --address http://127.0.0.1:1", 3, "takes no job"),
    ],
)
def test_what_cannot_be_submitted_is_refused_here(arguments, code, line, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "token")  # the command sets it
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert line in refused("submit", *arguments.split(), code=code)


def test_version():
    assert crackvae("--version").stdout.startswith("crackvae 0.")


def test_help_needs_no_heavy_library():
    code = "import sys, crackvae.cli as c\ntry: c.main(['--help'])\nexcept SystemExit: pass\n"
    heavy = "torch ray pandas pyarrow cv2 scipy sklearn matplotlib pydantic"
    check = f"print(sorted(set('{heavy}'.split()) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code + check], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("scare",),
        ("index",),
        ("index", "x"),
        ("train", "m", "--out", "o", "--workers", "0"),
        ("split", "m", "--out", "o", "--external-normal", "many"),
        ("score", "m", "s", "--out", "o", "--device", "tpu"),
    ],
)
def test_wrong_usage_is_exit_code_2(arguments):
    assert "--help" in refused(*arguments, code=2, by=inside if arguments else crackvae)


def test_a_missing_path_is_named(out):
    assert "/no/such/survey" in refused("index", "/no/such/survey", "--out", out, by=crackvae)
    assert not out.exists()


def test_an_empty_folder_is_no_survey(folder, out):
    assert "no image" in refused("index", folder, "--out", out)
    assert "no image" in refused("reproduce", folder, "--out", out)
    assert not out.exists()


def test_files_that_are_no_images_are_counted(folder, out):
    synthetic.write_survey(folder, normals=2, cracks=1, size=64)
    (folder / "normal" / "notes.txt").touch()
    done = inside("index", folder, "--out", out)
    assert done.returncode == 0
    assert "3 images" in done.stdout
    assert "1 crack, 2 normal" in done.stdout
    assert "1 .txt" in done.stdout
    assert done.stdout.strip().splitlines()[-1].startswith(f"manifest: {out}")


def test_a_survey_without_normals_cannot_be_split(folder, out, tmp_path):
    synthetic.write_survey(folder, normals=0, cracks=3, size=64)
    assert inside("index", folder, "--out", out).returncode == 0
    assert "--normal NAME" in refused("split", out, "--out", tmp_path / "split.parquet")


def test_a_folder_is_no_place_for_a_manifest_and_that_is_said_before_any_work(folder, out, tmp_path):
    synthetic.write_survey(folder, normals=4, cracks=1, size=64)
    assert inside("index", folder, "--out", out).returncode == 0
    for command in (["index", folder], ["split", out]):
        assert f"{tmp_path}: Is a directory" in refused(*command, "--out", tmp_path)
    assert not Path(f"{tmp_path}.leakage.json").exists()
    assert "share from 0.0 to 1.0" in refused("split", out, "--out", tmp_path / "s", "--external-crack", "-1.5", code=2)


def test_an_unknown_key_suggests_the_near_one(tmp_path, split_manifest, out):
    config = tmp_path / "config.toml"
    config.write_text("[training]\nepoch = 3\n")
    line = refused("train", split_manifest, "--out", out, "--config", config)
    assert "config.toml" in line
    assert "did you mean 'epochs'" in line


def test_a_file_that_is_no_manifest_is_refused(folder, out):
    synthetic.write_survey(folder, normals=1, cracks=0, size=64)
    image = folder / "normal" / "0000.jpg"
    assert "cannot be read as Parquet" in refused("split", image, "--out", out)
    assert "no such file" in refused("split", folder / "gone.parquet", "--out", out)


def test_a_folder_that_is_no_model_is_refused(folder, out):
    assert "is no model" in refused("score", folder, folder, "--out", out)


def test_an_output_that_holds_something_else_is_refused(model, survey, tmp_path):
    (tmp_path / "thesis.txt").touch()
    assert "empty directory" in refused("reproduce", survey, "--out", tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"sources": []}'])
def test_a_damaged_record_of_an_experiment_is_refused(folder, tmp_path, text):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "reproduce.json").write_text(text)
    line = refused("reproduce", folder, "--out", tmp_path / "run")
    assert line.endswith("reproduce.json: is damaged; give a new --out")


@pytest.mark.ray
def test_a_survey_is_scored_and_the_last_line_says_where(model, survey, out):
    done = crackvae("score", model, survey, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.strip().splitlines()[-1] == f"results: {out}"
    assert (out / "_SUCCESS").exists()
    assert (out / "results.csv").read_text().count("\n") == 161
    assert list((out / "figures").glob("*.png"))
    line = refused("score", model, survey / "normal", "--out", out)
    assert "is another run: sources was" in line


@pytest.mark.ray
def test_the_last_line_of_a_night_is_json_and_a_night_with_nothing_new_makes_nothing(model, survey, out):
    first = crackvae("nightly", model, survey, "--out", out)
    assert first.returncode == 0, first.stderr
    told = json.loads(first.stdout.splitlines()[-1])
    assert (told["new"], told["scored"], told["exit_code"]) == (160, 160, 0)
    assert pq.read_metadata(told["snapshot"]).num_rows == told["photographs"] == 160
    assert (out / "nights" / told["night"] / "figures" / "scores.png").exists()
    before = sorted(out.rglob("*"))
    second = crackvae("nightly", model, survey, "--out", out)
    assert second.returncode == 0, second.stderr
    quiet = json.loads(second.stdout)  # nothing else
    assert quiet == told | {"new": 0, "scored": 0, "flagged": 0}
    assert sorted(out.rglob("*")) == before
    assert "holds something that is no nightly survey" in refused("nightly", model, survey, "--out", survey.parent)
    assert "holds the nights of" in refused("nightly", model, survey / "crack", "--out", out)


@pytest.mark.ray
@pytest.mark.parametrize("command", ["train", pytest.param("reproduce", marks=pytest.mark.faults)])
def test_a_killed_training_goes_on_to_the_end(command, survey, split_manifest, tmp_path, out, ray_session):
    """SIGKILL once an epoch is kept, of a reproduction SIGTERM once a later one is, too; then it goes on from there."""
    (tmp_path / "tiny.toml").write_text(TINY_TOML.replace("epochs = 3", "epochs = 12"))
    whole = command == "reproduce"
    source, model = (survey, out / "model") if whole else (split_manifest, out)
    arguments = [command, source, "--out", out, "--config", tmp_path / "tiny.toml"]
    record = model / ".training" / "ray" / "checkpoint_manager_snapshot.json"

    def kept():
        return set(re.findall(r"checkpoint_2[\w.-]+", record.read_text())) if record.exists() else set()

    def run_until(happened, number):
        words = [sys.executable, "-m", "crackvae", *map(str, arguments)]
        process = subprocess.Popen(words, start_new_session=True, stderr=subprocess.PIPE)
        while process.poll() is None and not happened():
            time.sleep(0.1)
        assert process.poll() is None, process.stderr.read().decode()
        os.kill(process.pid, number)
        process.communicate(timeout=60)
        if number == signal.SIGKILL:
            harness.end(process.pid)  # Ray's processes outlive it, and write
        return process.returncode

    assert run_until(kept, signal.SIGKILL) == -signal.SIGKILL
    if whole:
        before = kept()
        assert run_until(lambda: kept() - before, signal.SIGTERM) == 143
    done = inside(*arguments)
    assert done.returncode == 0, done.stderr
    assert "epoch 1/12" not in done.stderr
    history = json.loads((model / "history.json").read_text())
    assert [record["epoch"] for record in history] == list(range(1, 13))
    assert not whole or (out / "evaluation" / "_SUCCESS").exists()
    again = inside(*arguments)
    assert again.returncode == 0
    assert f"already {'finished' if whole else 'complete'}" in again.stderr


def test_check_says_whole_unfinished_or_what_is_wrong(tmp_path):
    run = runs.create(tmp_path / "run", labelled=False)
    runs.score(run, [0, 2])
    unfinished = inside("check", run.location)
    assert unfinished.returncode == 3
    assert "2 of 3 shards scored, 444 of 700 files" in unfinished.stdout
    assert "not finished" in unfinished.stderr
    runs.score(run, [1])
    finalize.finalize(run)
    whole = inside("check", run.location)
    assert whole.returncode == 0
    assert whole.stdout.splitlines()[-1] == f"whole: {run.location}"
    (tmp_path / "run" / "results.csv").write_text("")
    altered = crackvae("check", run.location)
    assert altered.returncode == 3
    assert "wrong: results.csv: was altered" in altered.stdout
    assert len(altered.stderr.splitlines()) == 1


def test_threshold_prints_what_the_new_one_flags(tmp_path):
    run = runs.finished(tmp_path / "run")
    done = inside("threshold", run.location, "--value", "0.5")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert "files not scored" in lines[0]
    assert any(line.startswith("threshold 0.5, set by hand") for line in lines)
    assert lines[-1] == f"results: {run.location}"
    assert inside("check", run.location).returncode == 0


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ([], 2),
        (["--quantile", "0.9", "--value", "1"], 2),
        (["--quantile", "most"], 2),
        (["--value", "nan"], 2),
        (["--quantile", "1"], 2),
    ],
)
def test_a_threshold_that_makes_no_sense_is_refused(tmp_path, options, code):
    refused("threshold", runs.finished(tmp_path / "run", labelled=False).location, *options, code=code)


def test_only_failed_files_can_be_tried_again():
    line = refused("score", "model", "survey", "--out", "run", "--retry", "ok", code=2)
    assert "unreadable, undecodable" in line


def test_two_surveys_are_compared(tmp_path):
    old, new = (runs.finished(tmp_path / name, labelled=False).location for name in ("old", "new"))
    done = inside("compare", old, new, "--out", str(tmp_path / "changes"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"results: {tmp_path / 'changes'}"
    assert (tmp_path / "changes" / "compare.parquet").exists()
    refused("compare", old, new, "--out", str(tmp_path / "other"), "--radius", "0", code=2)
    line = refused("compare", old, new, "--out", str(tmp_path / "other"), "--radius", "5")
    assert "no photograph has a position" in line


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_wins_over_the_error_that_a_library_makes_of_it(name, tmp_path):
    code = f"""
import signal, crackvae.cli, crackvae.experiment

def index(**_):
    try:
        signal.raise_signal(signal.{name})
    except KeyboardInterrupt as stop:
        raise SystemError("a built-in returned a result with an exception set") from stop

crackvae.experiment.index = index
crackvae.cli.main(["index", "photos", "--out", "manifest"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 128 + getattr(signal, name)
    assert done.stderr.splitlines()[-1].endswith("the same command goes on")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_ends_even_a_process_that_waits_in_c_for_ever(name, code, tmp_path):
    """As Ray's driver does for Ray processes that Ctrl-C ended first."""
    waits = """
import ctypes, crackvae.cli, crackvae.experiment

def index(**_):
    mutex = ctypes.create_string_buffer(64)
    ctypes.CDLL(None).pthread_mutex_lock(mutex)
    print("waiting", flush=True)
    ctypes.CDLL(None).pthread_mutex_lock(mutex)

crackvae.experiment.index = index
crackvae.cli._PATIENCE_SECONDS = 0.5
crackvae.cli.main(["index", "photos", "--out", "manifest"])
"""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", waits], cwd=tmp_path, **pipes) as process:
        try:
            assert process.stdout.readline() == "waiting\n"
            process.send_signal(getattr(signal, name))
            assert process.wait(60) == code
            assert process.stderr.read().splitlines()[-1].endswith("the same command goes on")
        finally:
            process.kill()


def test_a_signal_that_a_destructor_swallows_comes_again(tmp_path):
    loses = """
import signal, time, crackvae.cli, crackvae.experiment

class Loses:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)

def index(**_):
    Loses()
    time.sleep(60)

crackvae.experiment.index = index
crackvae.cli._PATIENCE_SECONDS = 60
crackvae.cli.main(["index", "photos", "--out", "manifest"])
"""
    done = subprocess.run(
        [sys.executable, "-c", loses], capture_output=True, text=True, cwd=tmp_path, timeout=50, check=False
    )
    assert done.returncode == 130
    assert done.stderr == "crackvae: interrupted; the same command goes on\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8:strict"])
def test_a_name_that_the_terminal_cannot_show_does_not_end_a_command_after_its_work(encoding, tmp_path):
    survey = os.fsencode(tmp_path) + b"/caf\xe9 \xd0\x8f"
    os.mkdir(survey)
    Image.new("L", (64, 64)).save(os.fsdecode(survey + b"/a.png"))
    out = survey + b".parquet"
    done = subprocess.run(
        [sys.executable, "-m", "crackvae", "index", survey, "--out", out],
        env={**os.environ, "PYTHONIOENCODING": encoding}, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert b"manifest: " in done.stdout
    assert Path(os.fsdecode(out)).exists()
