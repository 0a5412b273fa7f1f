"""The commands. Parses, calls, says where the results are; everything heavy is imported late."""

from __future__ import annotations

import argparse
import atexit
import gc
import io
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, Self

from crackvae import __version__, logs
from crackvae.errors import CrackvaeError, DetachedError, ExitCode, LostError, UsageError

if TYPE_CHECKING:
    from crackvae.schema import Status

_EPILOG = """\
exit codes: 0 done, 1 a defect of crackvae or lost workers, 2 wrong usage, 3 bad input or refused,
            4 too many failed files (results are kept), 5 drift alarm of nightly, 130 and 143 interrupted

train, calibrate, evaluate, score, nightly, reproduce and demo go on where they stopped when they are called again.
"""


_Command = Callable[[str, str, str], argparse.ArgumentParser]  # name, about, example
_Add = Callable[..., argparse.Action]

_SCORE = ("score", "evaluate", "nightly", "calibrate")  # commands that start workers on one machine
_PATIENCE_SECONDS = 10  # Ray takes 3 to 6 to end


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see `{self.prog} --help`")


class _Stop:
    """Makes SIGINT and SIGTERM a KeyboardInterrupt, which alone Ray lets through, and keeps which it was.

    Ctrl-C reaches Ray's processes too. Where they are gone before this one hears of it, it waits for
    them for ever, in C++, where no KeyboardInterrupt gets: a thread that is told by the kernel ends it.
    One that comes in a destructor or between fork and exec is lost, and comes again.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as in a shell's background job
                signal.signal(number, self)
        self._told, self._tell = socket.socketpair()
        self._tell.setblocking(False)
        self._before = signal.set_wakeup_fd(self._tell.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._watch, daemon=True).start()

    def __call__(self, number: int, _: object) -> NoReturn:
        self.received = self.received or number
        raise KeyboardInterrupt

    def __enter__(self) -> Self:
        sys.unraisablehook = self._lost
        return self

    def __exit__(self, *_: object) -> None:
        sys.unraisablehook = sys.__unraisablehook__
        signal.set_wakeup_fd(self._before)
        self._tell.close()

    def _lost(self, lost: sys.UnraisableHookArgs) -> None:
        if not issubclass(lost.exc_type, KeyboardInterrupt) or self.received is None:
            sys.__unraisablehook__(lost)
            return
        again = threading.Timer(0.1, os.kill, (os.getpid(), self.received))
        again.daemon = True
        again.start()

    def _watch(self) -> None:
        while told := self._told.recv(1):
            if told[0] in (signal.SIGINT, signal.SIGTERM):
                time.sleep(_PATIENCE_SECONDS)
                code, message = _ending(KeyboardInterrupt(), told[0])
                os.write(2, f"crackvae: {message}\n".encode())
                os._exit(code)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command, by default that of this process's arguments; returns the exit code."""
    logs.start()
    logs.check_format()
    # A name that it cannot encode is no reason to end after the work.
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")
    # Libraries make hundreds of thousands of objects that stay: to look for garbage among them takes 0.3 s while
    # they are imported, and 0.7 s at the end.
    gc.set_threshold(50_000, 20)
    atexit.register(gc.freeze)
    with _Stop() as stop:
        try:
            options = _options(_parser(), arguments)
            if options["command"] in _SCORE and not options.get("labels"):
                from crackvae.cluster import here

                here.prepare()  # it takes as long as this process takes to import the same
            from crackvae import experiment

            return experiment.run(options.pop("command"), options)
        except (Exception, KeyboardInterrupt) as error:
            code, message = _ending(error, stop.received)
        print(logs.error_line(" ".join(message.split())), file=sys.stderr)
        if stop.received:
            if processes := sys.modules.get("crackvae.processes"):
                processes.clean()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)  # threads of Ray that were cut off can crash Python on its own way out
        return int(code)


def _options(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> dict[str, Any]:
    """What was given, by name. What `submit` sends is parsed here, too: what is wrong with it is said at once."""
    parsed, sent = parser.parse_known_args(arguments)
    if parsed.command != "submit":
        if sent:
            parser.error(f"unrecognized arguments: {' '.join(sent)}")
        return vars(parsed)
    from crackvae.experiment import ON_CLUSTERS

    if not sent or sent[0] not in ON_CLUSTERS:
        raise UsageError(f"submit sends {', '.join(ON_CLUSTERS)}; see `{parser.prog} submit --help`")
    job = vars(parser.parse_args(sent))
    if not job["out"]:
        raise UsageError("submit sends what scores or trains; give --out")
    return {**vars(parsed), "arguments": sent, "job": job}


def _ending(error: BaseException, stopped_by: int | None) -> tuple[ExitCode, str]:
    """The exit code and the message of an error; one that nobody raised on purpose is raised again."""
    if isinstance(error, DetachedError):
        return ExitCode.TERMINATED if stopped_by == signal.SIGTERM else error.exit_code, str(error)
    if stopped_by == signal.SIGTERM:
        return ExitCode.TERMINATED, "terminated; the same command goes on"
    if stopped_by or isinstance(error, KeyboardInterrupt):
        return ExitCode.INTERRUPTED, "interrupted; the same command goes on"
    if isinstance(error, CrackvaeError):
        return error.exit_code, f"{error}; the same command goes on" if isinstance(error, LostError) else str(error)
    if isinstance(error, OSError):
        return ExitCode.INPUT, f"{error.filename or 'storage'}: {error.strerror or error}"
    raise error


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="crackvae",
        description="Finds cracks in photographs of concrete as anomalies.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"crackvae {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, dest="command")

    def command(name: str, about: str, example: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            help=about,
            description=about[0].upper() + about[1:] + ".",
            epilog=f"example:\n  crackvae {name} {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    _add_models(command)
    _add_scoring(command)
    _add_judging(command)
    _add_others(command)
    return parser


def _add_models(command: _Command) -> None:
    about = "list images into a manifest; opens none of them"
    add = command("index", about, "metu.zip --out manifest.parquet").add_argument
    _add_sources(add)
    _add_out(add, "the manifest (Parquet)")

    example = "manifest.parquet --out split.parquet --external-normal 0.25"
    add = command("split", "group twins and plan splits that do not leak", example).add_argument
    add("manifest", help="from `crackvae index`")
    _add_out(add, "the manifest with splits; its leakage report lies beside it (.leakage.json)")
    _add_split_options(add)

    about = "train and calibrate a model on the normals of a split manifest"
    add = command("train", about, "split.parquet --out model").add_argument
    add("manifest", help="from `crackvae split`")
    _add_out(add, "directory of the model")
    _add_config(add)
    add("--workers", type=_positive, metavar="N", help="training processes (default: one per GPU, or one)")
    add("--from", dest="start_from", metavar="MODEL", help="begin with its weights")
    _add_device(add)

    example = "model split.parquet --out evaluation\n  crackvae evaluate runs/bridge-17 --labels found-on-site.csv"
    about = "score labelled splits, or take a scored run and labels, and add up metrics"
    add = command("evaluate", about, example).add_argument
    add("model", help="from `crackvae train`, or `pretrained`; with --labels, a run of `crackvae score`")
    add("manifest", nargs="?", help="from `crackvae split`; not with --labels")
    add("--out", metavar="PATH", help="the run directory; not with --labels")
    labels = "table (.csv, .parquet) of image_id and label, for a run that is scored already; scores nothing"
    add("--labels", metavar="FILE", help=labels)
    _add_label_column(add)
    _add_device(add)

    about = "calibrate a model on sound images of your own, which it was not trained on"
    add = command("calibrate", about, "pretrained /data/sound --out model").add_argument
    _add_model(add)
    _add_sources(add)
    _add_out(add, "directory of the new model")
    _add_device(add)


def _add_scoring(command: _Command) -> None:
    about = "tell what scoring a survey will take, from its listing and a sample of it"
    add = command("plan", about, "model s3://surveys/2026").add_argument
    _add_model(add)
    _add_sources(add)
    _add_device(add)

    add = command("score", "score every image of a survey", "model /data/bridge-17 --out runs/bridge-17").add_argument
    _add_model(add)
    _add_sources(add)
    _add_out(add, "the run directory")
    _add_device(add)
    pitch = "ground sampling distance of the photographs (default: what their EXIF says)"
    add("--mm-per-pixel", type=_positive_number, metavar="MM", help=pitch)
    add("--tiles", action="store_true", help="keep every tile's score and error, in tiles/")
    _add_structures(add)
    retry = "try the files of this status once more (unreadable, crashed, ...); all other rows are kept"
    add("--retry", type=_failed_status, metavar="STATUS", help=retry)

    about = "score what is new since the night before"
    add = command("nightly", about, "model s3://bucket/survey --out nights").add_argument
    _add_model(add)
    add("source", metavar="SOURCE", help="folder, archive, or table of URIs, always the same")
    _add_out(add, "directory of all nights; latest.json names the newest snapshot")
    _add_device(add)
    by_content = "read new and changed files first: one with another time and equal content is not scored again"
    add("--content-hash", action="store_true", help=by_content)
    anew = "another model or kind of machine scores everything anew; no effect where it is the same"
    add("--new-generation", action="store_true", help=anew)
    accept = "compare later nights with tonight's level, once (not in a schedule)"
    add("--accept-drift", action="store_true", help=accept)


def _add_judging(command: _Command) -> None:
    about = "judge a scored run by another threshold; scores nothing"
    sub = command("threshold", about, "runs/bridge-17 --quantile 0.99")
    add = sub.add_argument
    add("run", help="from `crackvae score` or `evaluate`")
    either = sub.add_mutually_exclusive_group(required=True).add_argument
    of_normals = "of the scores of the model's calibration normals; 0.95 is the one of the recipe"
    either("--quantile", type=float, metavar="Q", help=of_normals)
    either("--value", type=float, metavar="V", help="a score above it is a crack")

    about = "make one HTML page of a run: what was found, and how far to believe it"
    sub = command("report", about, "runs/bridge-17 --no-location")
    add = sub.add_argument
    add("run", help="from `crackvae score` or `evaluate`, which make the page at their end, too")
    add("--model", metavar="MODEL", help="what scored it (default: where it lay then)")
    either = sub.add_mutually_exclusive_group().add_argument
    _add_structures(either)
    either("--folders", action="store_true", help="results by folder again, not by structure")
    where = "--no-location leaves out where photographs were taken, to share it (default: as in the page before)"
    add("--location", action=argparse.BooleanOptionalAction, help=where)

    example = "runs/bridge-17 --fdr 0.1\n  crackvae review runs/bridge-17 --decisions decisions.csv"
    sub = command("review", "list what to look at, as much as statistics choose; add up what people decided", example)
    add = sub.add_argument
    add("run", help="from `crackvae score` or `evaluate`")
    either = sub.add_mutually_exclusive_group().add_argument
    fdr = "the longest list of which a share of at most Q is expected to be sound (default: 0.1)"
    either("--fdr", type=float, metavar="Q", help=fdr)
    either("--budget", type=_positive, metavar="N", help="or the N images of smallest p-value")
    decisions = "CSV of image_id, decision (crack, no crack, unsure) and note, as the page writes it"
    either("--decisions", metavar="FILE", help=decisions)
    audit = "images drawn at random of those not listed, to bound what is missed (default: %(default)s)"
    add("--audit", type=_positive, default=100, metavar="N", help=audit)
    add("--seed", type=_count, default=0, metavar="N", help="of the draw (default: %(default)s)")
    add("--model", metavar="MODEL", help="what scored the run (default: where it lay then)")
    calibrated = "a new version of the model, calibrated with the sound images of the random sample, too"
    add("--calibrated", metavar="NEW_MODEL", help=f"with --decisions: {calibrated}")
    training = "with --decisions: a manifest of the other images that were decided, labelled, to train with"
    add("--training", metavar="MANIFEST", help=training)


def _add_others(command: _Command) -> None:
    example = "runs/bridge-17 --coco findings.json\n  crackvae export model --onnx model.onnx"
    sub = command("export", "write a run's findings, or a model, for other tools", example)
    add = sub.add_argument
    add("source", metavar="RUN|MODEL", help="a finished run for --coco, a model for --onnx")
    either = sub.add_mutually_exclusive_group(required=True).add_argument
    either("--coco", metavar="FILE", help="boxes and outlines of what was flagged, as COCO JSON")
    either("--onnx", metavar="FILE", help="the network as an ONNX graph, with the score if reference")

    add = command("check", "verify a run from its files alone, or say how far it is", "runs/bridge-17").add_argument
    add("run", help="from `crackvae score` or `evaluate`")

    add = command("compare", "show where two surveys differ", "runs/2025 runs/2026 --out changes").add_argument
    add("old", help="a finished run")
    add("new", help="a later one")
    _add_out(add, "directory of compare.parquet and compare.csv")
    by_place = "match photographs by position, within this distance (default: by name)"
    add("--radius", type=_positive_number, metavar="METRES", help=by_place)
    other = "allow runs of different models; only their p-values and predictions are compared"
    add("--other-model", action="store_true", help=other)

    about = "run the reference experiment from images to metrics"
    add = command("reproduce", about, "metu.zip --out runs/metu").add_argument
    _add_sources(add)
    _add_out(add, "directory of manifest, splits, model and evaluation")
    _add_split_options(add)
    _add_config(add)
    _add_device(add)

    add = command("demo", "run everything on images that crackvae makes itself", "--out crackvae-demo").add_argument
    add("--out", default="crackvae-demo", metavar="DIR", help="default: %(default)s")

    example = "score s3://bucket/model s3://bucket/survey --out s3://bucket/run --address http://localhost:8265"
    sub = command("submit", "send train, calibrate, evaluate, score or nightly to a Ray cluster and follow it", example)
    sub.usage = f"{sub.prog} [-h] COMMAND ... --address URL [--image-code]"
    add = sub.add_argument
    add("--address", required=True, metavar="URL", help="of the dashboard; its token is in RAY_AUTH_TOKEN")
    add("--image-code", action="store_true", help="run the crackvae that the cluster has; this one is not sent")


def _add_model(add: _Add) -> None:
    add("model", help="from `crackvae train`, or `pretrained`")


def _add_sources(add: _Add) -> None:
    sources = (
        "folder, .zip, .tar, .tar.gz, image, table of URIs (.parquet, .csv) or manifest; "
        "a path or a URI (s3://, gs://, file://)"
    )
    add("sources", nargs="+", metavar="SOURCE", help=sources)
    for label in ("normal", "crack"):
        names = f"folder or label that means {label} (default: the usual names)"
        add(f"--{label}", action="append", default=[], metavar="NAME", help=names)
    _add_label_column(add)


def _add_label_column(add: _Add) -> None:
    add("--label-column", default="label", metavar="NAME", help="a table's column of labels (default: %(default)s)")


def _add_out(add: _Add, what: str) -> None:
    add("--out", required=True, type=_place, metavar="PATH", help=what)


def _add_split_options(add: _Add) -> None:
    for label, default in (("normal", 0.25), ("crack", 0.75)):
        amount = f"{label}s in the external set: a count, or a share with a point (default: %(default)s)"
        add(f"--external-{label}", type=_amount, default=default, metavar="N|F", help=amount)
    add("--seed", type=_count, default=0, metavar="N", help="of the split (default: %(default)s)")


def _add_structures(add: _Add) -> None:
    structures = "CSV with the columns pattern, structure, element: adds up results by structure"
    add("--structures", metavar="FILE", help=structures)


def _add_config(add: _Add) -> None:
    add("--config", metavar="FILE", help="TOML; what it leaves out follows from its recipe")


def _add_device(add: _Add) -> None:
    default = "default: cuda where the cluster has a GPU"
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help=default)


def _count(text: str, least: int = 0) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} is no count from {least}")
    return int(text)


def _positive(text: str) -> int:
    return _count(text, 1)


def _place(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty; give a path or a URI")
    return text


def _positive_number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return value


def _failed_status(text: str) -> Status:
    from crackvae.schema import Status

    failed = [str(status) for status in Status if status not in {Status.OK, Status.CANNOT_JUDGE}]
    if text not in failed:
        raise argparse.ArgumentTypeError(f"{text!r} is no status of a failed file; use one of {', '.join(failed)}")
    return Status(text)


def _amount(text: str) -> int | float:
    """A count without a decimal point, a share with one."""
    try:
        return int(text) if text.isdigit() else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a count nor a share") from None
