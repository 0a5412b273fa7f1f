"""What the commands do, step by step, and what they print: tables to standard output.

A command is the function of its name, and its options, as `cli` has them, are the arguments.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from crackvae import config as configuration
from crackvae import processes, storage
from crackvae.config import Config, TrainingConfig
from crackvae.dataset import labels as labelling
from crackvae.dataset import manifest, table_files
from crackvae.errors import CrackvaeError, ExitCode, InputError, RefusedError, UsageError
from crackvae.images import synthetic
from crackvae.report import tables
from crackvae.run import check as checking
from crackvae.run import directory, finalize, judge, labels, lock, snapshot, summary
from crackvae.run.directory import Run, differences
from crackvae.schema import Label, Split
from crackvae.terminal import log

if TYPE_CHECKING:
    import pyarrow as pa

    from crackvae.cluster.nightly import Night
    from crackvae.cluster.scoring import Outcome
    from crackvae.report import page

# Ray and torch take 3 s to import: `index` and `split` do without.

_STRUCTURES = f"{directory.STRUCTURES}: the command that made it"
FACTS = "reproduce.json"
_WORST_FIRST = (ExitCode.TOO_MANY_FAILED, ExitCode.DRIFT_ALARM)
LEAKAGE_SUFFIX = ".leakage.json"
ON_CLUSTERS = ("train", "calibrate", "evaluate", "score", "nightly")

# The demonstration: 85 s on two cores.
_DEMO_NORMALS, _DEMO_CRACKS = 360, 90
_DEMO_TRAINING = TrainingConfig(epochs=6)


def run(command: str, options: dict[str, Any]) -> int:
    """Runs a command; in a cluster, only what its nodes can do. Returns the exit code."""
    act = globals()[command]
    if command not in ON_CLUSTERS or not options["out"] or not os.environ.get("RAY_ADDRESS"):
        return int(act(**options))
    from crackvae.cluster import probe, session

    with session.session():
        probe.check(options)
        return int(act(**options))


def index(sources: Sequence[str], out: str, **options: Any) -> ExitCode:
    """Lists sources into a manifest, prints what was found. Labels are options of `manifest.listing`."""
    with manifest.listing(sources, **options) as (blocks, summary):
        manifest.write_blocks(blocks, out)
    print("\n".join(summary.lines()))
    print(f"manifest: {out} ({summary.seconds:.1f} s)")
    return ExitCode.DONE


def split(manifest: str, out: str, *, external_normal: float, external_crack: float, seed: int) -> ExitCode:
    """Splits a manifest, prints what went where and the leakage report, writes both.

    Raises:
        InputError: The manifest cannot be split, or its splits leak; then none is written.
    """
    _split(manifest, out, external_normal=external_normal, external_crack=external_crack, seed=seed)
    print(f"manifest: {out}")
    return ExitCode.DONE


def _split(source: str, out: str, **options: Any) -> None:
    from crackvae.dataset import splitting  # takes half a second to import

    storage.check_file(out)  # now: not after minutes of comparing
    plan = splitting.split(manifest.read(source), **options)
    report = plan.leakage
    content = {**report.as_dict(plan.table["image_id"].to_pylist()), "failed": plan.failed}
    storage.write_bytes(out + LEAKAGE_SUFFIX, json.dumps(content, indent=1).encode())
    for status, count in Counter(plan.failed.values()).items():
        log.warning("%d images are %s and get no split; %s names them", count, status, out + LEAKAGE_SUFFIX)
    images = Counter(zip(plan.table["split"].to_pylist(), plan.table["label"].to_pylist(), strict=True))
    rows = [[name, *(f"{images[name, label]:,}" for label in Label)] for name in Split]
    print(tables.markdown(["split", *Label], rows))
    print(f"{plan.groups:,} groups of twins among {len(plan.table):,} images\n")
    rows = [[f"{pair.first} - {pair.second}", f"{pair.exact_pairs:,}", f"{pair.near_pairs:,}"] for pair in report.pairs]
    print(tables.markdown(["twins across", "exact", "near"], rows))
    print(f"{report.sampled_share:.0%} of the images compared with all others")
    if report.leaks:
        raise InputError(
            f"{source}: {report.leaks} twins cross the splits, see {out}{LEAKAGE_SUFFIX}; please report it"
        )
    manifest.write(plan.table, out)


def train(manifest: str, out: str, *, config: str | None, **options: Any) -> ExitCode:
    """Trains and calibrates a model, prints how well it reconstructs. Options are those of `training.train`."""
    from crackvae.cluster import training

    model = training.train(manifest, out, _config(config), **options)
    print(f"validation mse {model.history[-1]['val_mse']:.5f} after {len(model.history)} epochs")
    print(f"model: {out}")
    return ExitCode.DONE


def calibrate(model: str, sources: Sequence[str], out: str, **options: Any) -> ExitCode:
    """Calibrates a model on other sound images, prints what its threshold promises.

    Options are those of `calibrate.recalibrate`.
    """
    from crackvae.cluster.calibrate import recalibrate
    from crackvae.statistics import calibration

    made = recalibrate(model, sources, out, **options)
    normals = made.calibrated.normals
    limit = calibration.threshold(normals.score_n, made.config.scoring.alpha)
    rate = normals.promise(limit)._asdict()
    told = {"value": limit, "calibration_normals": len(normals.score_n), "false_alarm_rate": rate}
    print(tables.threshold_line(told))
    print(f"model: {out}")
    return ExitCode.DONE


def plan(model: str, sources: Sequence[str], **options: Any) -> ExitCode:
    """Prints what scoring a survey will take. Options are those of `planning.estimate`."""
    from crackvae.cluster import planning

    print("\n".join(planning.estimate(model, sources, **options).lines()))
    print(f"nothing was scored; for that: crackvae score {model} {' '.join(sources)} --out RUN")
    return ExitCode.DONE


def score(model: str, sources: Sequence[str], out: str, *, structures: str | None = None, **options: Any) -> ExitCode:
    """Scores a survey, draws it, prints counts and where the results are. Options are those of `scoring.score`."""
    from crackvae.cluster import scoring
    from crackvae.report import page  # noqa: F401  a second, while a process imports what the workers need
    from crackvae.report import structures as by_structure

    table = by_structure.read(structures) if structures else None  # now: not after hours of scoring
    outcome = scoring.score(model, sources, out, **options)
    if table is not None:
        aggregates = by_structure.aggregate(finalize.read_blocks(outcome.run, columns=by_structure.COLUMNS), table)
        aggregates.write_csv(storage.join(outcome.run, directory.STRUCTURES))
        print(aggregates.text(), end="\n\n")
    return _show(outcome, model, table)


def report(run: str, *, model: str | None, structures: str | None, folders: bool, location: bool | None) -> ExitCode:
    """Makes the page of a finished run, and its pictures where it has none; prints where the page is.

    Results are added up as in the page before, where neither structures nor folders are asked for, and positions are
    shown as there, where location is None. A model that is not given is looked for where it lay then.
    """
    from crackvae.report import page
    from crackvae.report import structures as by_structure

    shows = page.kept(directory.open_finished(run))
    if structures or folders:
        shows = shows._replace(by=by_structure.read(structures) if structures else None)
    if location is not None:
        shows = shows._replace(with_positions=location)
    _draw(run, model, shows)
    print(f"page: {storage.join(run, directory.REPORT)}")
    return ExitCode.DONE


def _draw(run: str, model: str | None, shows: page.Shown | None) -> None:
    """The page, if one is asked for, and beside it pictures, where they are missing."""
    from crackvae.report import page, pictures

    drawn = storage.exists(storage.join(run, directory.FIGURES, pictures.LAST))
    with nullcontext() if drawn else processes.beside(pictures.draw, run, model):
        if shows is not None:
            page.write(run, model=model, shows=shows)


def review(
    run: str, *, decisions: str | None, model: str | None, calibrated: str | None, training: str | None, **options: Any
) -> ExitCode:
    """Lists what of a run is to be looked at and makes its page anew; or adds up what people decided.

    Other options are those of `review.plan`.

    Raises:
        UsageError: The arguments do not go together.
        InputError: Something cannot be used.
        RefusedError: What would join a calibration must not.
    """
    from crackvae.report import page
    from crackvae.report import review as reviewing

    if decisions is not None:
        return _decide(run, decisions, model, calibrated, training)
    if calibrated or training:
        raise UsageError("--calibrated and --training need --decisions FILE")
    made = reviewing.plan(run, **options)
    print("\n".join([*tables.drift_lines(summary.read(run)["drift"]), *made.lines()]))
    print(f"page: {page.write(run, model=model)}")
    print(f"list: {storage.join(run, directory.REVIEW_CSV)}")
    return ExitCode.DONE


def _decide(run: str, file: str, model: str | None, calibrated: str | None, training: str | None) -> ExitCode:
    from crackvae.report import decisions, pictures

    decided = decisions.decide(run, file)
    print("\n".join(decided.lines()))
    if training:
        manifest.write(decided.for_training(), training)
        print(f"training: {training}")
    if calibrated:
        from crackvae.cluster.calibrate import join

        (sound, images), scored_by = decided.for_calibration(), pictures.model_of(decided.run, model)
        if scored_by is None:
            raise InputError(f"{run}: the model that scored it does not lie where it lay; give it by --model MODEL")
        made = join(scored_by, decided.run, sound, images, calibrated)
        joined = len(made.calibrated.image_id) - len(scored_by.calibrated.image_id)
        print(f"model: {calibrated}; {joined:,} sound images drawn at random have joined its calibration")
    print(f"results: {storage.join(run, directory.DECISIONS)}")
    return ExitCode.DONE


def export(source: str, *, coco: str | None, onnx: str | None) -> ExitCode:
    """Writes the findings of a run as COCO JSON, or a model as an ONNX graph; prints what is in it."""
    if coco is not None:
        from crackvae.report import coco as as_coco

        images, boxes = as_coco.write(source, coco)
        print(f"{images:,} flagged images with {boxes:,} boxes\ncoco: {coco}")
    if onnx is not None:
        from crackvae.model import artifact, onnx_graph

        print("\n".join([*onnx_graph.write(artifact.load(source), onnx), f"onnx: {onnx}"]))
    return ExitCode.DONE


def nightly(model: str, source: str, out: str, **options: Any) -> ExitCode:
    """Scores what is new since the night before, draws it, prints counts; the last line is JSON.

    Options are those of `nightly.nightly`.
    """
    from crackvae.cluster import nightly as nights

    codes = set()
    try:
        for night in nights.nightly(model, source, out, show=lambda outcome: _show(outcome, model), **options):
            codes.add(night.exit_code)
            _tell(night, out)
    except (CrackvaeError, OSError) as error:
        if not codes & set(_WORST_FIRST):
            raise
        # Called again, the night that was done before it would not be told a second time.
        log.error("after a night that was cut off and is finished now: %s", " ".join(str(error).split()))
    return next((code for code in _WORST_FIRST if code in codes), ExitCode.DONE)


def _tell(night: Night, out: str) -> None:
    for line in tables.alarm_lines(night.record["drift"]):
        print(line)
    record = night.record
    told = {
        **{name: record[name] for name in ("night", "generation")},
        **record["tonight"],
        "photographs": record["counts"]["photographs"],
        "snapshot": snapshot.photographs(out, record["night"]),
        "alarm": {name: chart["alarm"] for name, chart in record["drift"].items() if chart["alarm"]},
        "exit_code": night.exit_code,
    }
    print(json.dumps(told), flush=True)


def _write_positions(run: str) -> None:
    from crackvae.report import geo

    parquet, geojson = (storage.join(run, name) for name in (directory.POSITIONS, directory.POSITIONS_GEOJSON))
    if not storage.exists(parquet) and geo.any_position(finalize.read_blocks(run, columns=["latitude"])):
        count = geo.write(finalize.read_blocks(run), parquet, geojson)
        log.info("%s photographs have a position: %s", f"{count:,}", geojson)


def evaluate(
    model: str,
    manifest: str | None,
    out: str | None,
    *,
    labels: str | None = None,
    label_column: str = "label",
    device: str = "auto",
) -> ExitCode:
    """Evaluates a model, draws it, prints metrics and where the results are; or a scored run by labels.

    With labels, the model is the run, and there is neither manifest nor out.

    Raises:
        UsageError: The arguments are neither those of a model nor those of a run.
        InputError: Something cannot be used.
        RefusedError: Another process works on the run.
    """
    if labels is not None:
        if manifest or out or device != "auto":
            raise UsageError(
                "--labels evaluates a run as it was scored: give RUN --labels FILE without MANIFEST, --out and "
                "--device, or MODEL MANIFEST --out RUN"
            )
        return _evaluate_run(model, labels, label_column)
    if manifest is None or out is None:
        raise UsageError("give MODEL MANIFEST and --out RUN, or RUN and --labels FILE")
    from crackvae.cluster import scoring

    return _show(scoring.evaluate(model, manifest, out, device=device), model)


def _evaluate_run(run: str, location: str, column: str) -> ExitCode:
    from crackvae.report import page

    by_image = labelling.by_image(table_files.read_table(location, {"image_id", column}), location, column)
    metrics = _judge_anew(run, lambda scored: labels.keep(scored, by_image, location))
    print(f"page: {page.write(run)}")
    print(f"{len(by_image):,} labels from {location}; pictures: `crackvae report {run}`; {_STRUCTURES}")
    if not metrics["sets"]:
        print("no image with a label has a score that can be compared: there are no metrics")
    print(f"results: {run}")
    return ExitCode.DONE


def _show(outcome: Outcome, model: str, by_structure: pa.Table | None = None) -> ExitCode:
    from crackvae.report import page

    _write_positions(outcome.run)
    figures, path = (storage.join(outcome.run, name) for name in (directory.FIGURES, directory.REPORT))
    shows = None
    if by_structure is not None or not storage.exists(path):
        shows = page.kept(directory.open_run(outcome.run))
        shows = shows._replace(by=by_structure or shows.by)
    _draw(outcome.run, model, shows)
    _print_metrics(outcome.metrics)
    print(f"pictures: {figures}")
    print(f"page: {path}")
    print(f"results: {outcome.run}")
    return outcome.exit_code


def _print_metrics(metrics: dict[str, Any]) -> None:
    """What was not scored comes first: nobody may take it for sound."""
    print("\n".join(tables.counts_lines(metrics)))
    if metrics["sets"]:
        print("\n" + tables.metrics_table(metrics) + "\n")


def submit(address: str, arguments: Sequence[str], job: dict[str, Any], image_code: bool) -> int:
    """Sends a command to a cluster and follows it, as `submit.submit`, whose job is its options."""
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # Ray reads it when it is imported
    from crackvae.cluster import submit as submission

    return submission.submit(address, arguments, job, image_code=image_code)


def compare(old: str, new: str, out: str, *, radius: float | None, other_model: bool) -> ExitCode:
    """Compares two surveys, prints what changed most and where the table is."""
    from crackvae.report import compare as comparing

    print(comparing.compare(old, new, out, radius=radius, other_model=other_model).text())
    print(f"results: {out}")
    return ExitCode.DONE


def threshold(run: str, *, quantile: float | None, value: float | None) -> ExitCode:
    """Judges a scored run by another threshold: a value, or a quantile of what its calibration normals scored.

    Needs neither images nor model.

    Raises:
        InputError: There is no such run, or shards of it are not scored.
        RefusedError: Another process works on it.
    """
    _judge_anew(run, lambda scored: judge.set_threshold(scored, quantile=quantile, value=value))
    print(f"page and pictures: `crackvae report {run}`; {_STRUCTURES}")
    print(f"results: {run}")
    return ExitCode.DONE


def _judge_anew(run: str, change: Callable[[Run], object]) -> dict[str, Any]:
    scored = directory.open_run(run)
    with lock.holding(run):
        finalize.check_scored(scored)
        change(scored)
        metrics = finalize.finalize(scored)
    _write_positions(run)
    _print_metrics(metrics)
    return metrics


def check(run: str) -> ExitCode:
    """Verifies a run from its files alone, prints how far it is and what is wrong.

    Raises:
        InputError: It is no run; it is not finished; or a file is not what it should be.
    """
    report = checking.check(run)
    plan = report.run.plan
    print(f"identity: {report.run.identity}")
    print(f"{report.done:,} of {plan.shards:,} shards scored, {report.rows:,} of {plan.rows:,} files")
    for problem in report.problems:
        print(f"wrong: {problem}")
    if report.problems:
        raise InputError(
            f"{run}: {len(report.problems)} files are not what they should be, first {report.problems[0]}; "
            f"{directory.REPAIR if report.finished else 'the command that made the run goes on and makes them anew'}"
        )
    if not report.finished:
        raise InputError(f"{run}: is not finished; the command that began it goes on")
    print(f"whole: {run}")
    return ExitCode.DONE


def reproduce(
    sources: Sequence[str],
    out: str,
    *,
    config: str | Config | None,
    normal: Sequence[str] = (),
    crack: Sequence[str] = (),
    label_column: str = "label",
    external_normal: float = 0.25,
    external_crack: float = 0.75,
    seed: int = 0,
    device: str = "auto",
) -> ExitCode:
    """Index, split, train, calibrate, evaluate, draw. What is done already is not done again.

    Raises:
        InputError: The sources or the model cannot be used.
        RefusedError: The directory holds another experiment.
    """
    from crackvae.cluster import training

    recipe = _config(config, "reference")
    facts = {
        "sources": [storage.to_uri(source) for source in sources],
        "labels": [list(normal), list(crack), label_column],
        "external": [str(external_normal), str(external_crack)],  # 1 is one image, 1.0 all of them
        "seed": seed,
        "config": recipe.model_dump(mode="json"),
    }
    indexed, planned = (storage.join(out, name) for name in ("manifest.parquet", "split.parquet"))
    model, evaluation = storage.join(out, "model"), storage.join(out, "evaluation")
    _refuse_other(out, facts)
    if not storage.exists(indexed):
        table, summary = manifest.build(sources, normal=normal, crack=crack, label_column=label_column)
        print("\n".join(summary.lines()), flush=True)
        storage.write_bytes(storage.join(out, FACTS), json.dumps(facts, indent=1).encode())
        manifest.write(table, indexed)
    if not storage.exists(planned):
        _split(indexed, planned, external_normal=external_normal, external_crack=external_crack, seed=seed)
    changes = ", ".join(f"{key} = {value}" for key, value in recipe.changes().items())
    log.info("training the %s recipe%s", recipe.recipe, f" with {changes}" if changes else "")
    training.train(planned, model, recipe, device=device)
    return evaluate(model, planned, evaluation, device=device)


def _refuse_other(out: str, facts: dict[str, Any]) -> None:
    path = storage.join(out, FACTS)

    def read(was: Any) -> dict[str, Any]:
        return {**was, "config": configuration.complete(was["config"], path)}

    was = storage.read_json(path, read, "give a new --out")
    if was is None:
        if next(storage.list_files(out), None) is not None:
            raise RefusedError(f"{out}: holds something else; give an empty directory")
    elif differs := differences(was, json.loads(json.dumps(facts))):
        raise RefusedError(f"{out}: is another experiment: {'; '.join(differs)}; give a new --out")


def _config(config: str | Config | None, recipe: Literal["default", "reference"] = "default") -> Config:
    if isinstance(config, Config):
        return config
    return configuration.load(Path(config), recipe) if config else Config(recipe=recipe)


def demo(out: str) -> ExitCode:
    """The whole experiment on procedural concrete, in about a minute and a half on two cores."""
    path = storage.local_path(out)
    if path is None:
        raise InputError(f"{out}: the demonstration writes to a local folder; give a path")
    print("A demonstration on synthetic concrete: its numbers say nothing about real cracks.")
    images, experiment = path / "images", path / "experiment"
    if path.is_dir() and set(path.iterdir()) - {images, experiment}:
        raise RefusedError(f"{out}: holds something else; give an empty directory")
    if not (experiment / "manifest.parquet").exists():
        synthetic.write_survey(images, normals=_DEMO_NORMALS, cracks=_DEMO_CRACKS)
    return reproduce([str(images)], str(experiment), config=Config(training=_DEMO_TRAINING))
