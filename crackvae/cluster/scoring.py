"""Scoring jobs from sources to results: `score` a survey, `evaluate` on labelled splits, one `night`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

import crackvae
from crackvae import logs, storage
from crackvae.cluster import claim, survey
from crackvae.dataset import manifest, sources
from crackvae.errors import ArtifactError, ExitCode, InputError, UsageError
from crackvae.model import artifact
from crackvae.model.artifact import Artifact
from crackvae.model.backend import Backend
from crackvae.run import directory, finalize, judge, lock, shards, summary
from crackvae.run.directory import Run
from crackvae.schema import MANIFEST, EvaluationSet, Split, Status
from crackvae.terminal import log

Plan = Callable[[], AbstractContextManager[Iterator[pa.Table]]]

_SET_OF = {Split.TEST: EvaluationSet.INTERNAL, Split.EXTERNAL: EvaluationSet.EXTERNAL}


@dataclass(frozen=True)
class Outcome:
    """How a scoring job ended.

    Attributes:
        run: Location of the run directory.
        metrics: What metrics.json holds.
        exit_code: 4 where more files failed than the model's config allows.
    """

    run: str
    metrics: dict[str, Any]
    exit_code: ExitCode


def score(
    model: str,
    locations: Sequence[str],
    out: str,
    *,
    normal: Sequence[str] = (),
    crack: Sequence[str] = (),
    label_column: str = "label",
    device: str = "auto",
    retry: Status | None = None,
    tiles: bool = False,
    mm_per_pixel: float | None = None,
) -> Outcome:
    """Scores every image of a survey; the same call again goes on where it stopped.

    Going on reads the run's own list of files: what was added to a source since is not in it.

    Args:
        model: Location of the model artifact.
        locations: Folders, archives, images, tables or manifests.
        out: The run directory.
        normal: Folder names that mean normal, instead of the common ones.
        crack: Folder names that mean crack, instead of the common ones.
        label_column: The column of a table that holds labels.
        device: `cpu`, `cuda` or `auto`.
        retry: Files of a scored run that are to be tried once more, by their status.
        tiles: Whether the run keeps the error of every tile of a photograph.
        mm_per_pixel: Ground sampling distance of all photographs; by default that of their EXIF.

    Raises:
        InputError: A source or the model cannot be used.
        RefusedError: The directory holds another run, or another process works on it.
    """
    facts: dict[str, Any] = {
        "command": "score",
        "sources": [[storage.to_uri(place), _table_hash(place)] for place in locations],
        "labels": [[*normal], [*crack], label_column],
    }

    @contextmanager
    def plan() -> Iterator[Iterator[pa.Table]]:
        sources.check_outside(out, locations)
        listing = manifest.listing(
            locations, normal=normal, crack=crack, label_column=label_column, unlabelled_if_unclear=True
        )
        with listing as (blocks, found):
            for line in found.lines():
                log.info(line)
            if {Split.TRAIN, Split.VAL} & found.splits:
                log.warning(
                    "metrics will include images of the splits train and val; `crackvae evaluate` leaves them out"
                )
            yield blocks

    if mm_per_pixel:
        facts["given"] = {"mm_per_pixel": mm_per_pixel, "mm_per_pixel_error": 0.0}
    if tiles:
        facts["tables"] = [finalize.TILES_DIRECTORY]
    return _job(model, out, facts, plan, device, retry)


def evaluate(model: str, manifest_location: str, out: str, *, device: str = "auto") -> Outcome:
    """Scores the labelled splits `test` and `external` of a manifest.

    Arguments, returns and errors are those of `score`.
    """
    source = [storage.to_uri(manifest_location), _table_hash(manifest_location)]
    loaded = artifact.load(model)

    @contextmanager
    def plan() -> Iterator[Iterator[pa.Table]]:
        table = manifest.read(manifest_location)
        if Split.TRAIN in table["split"].to_pylist() and loaded.provenance.get("data") != claim.data(table):
            log.warning(
                "%s was not trained on the training images of %s: whether it has seen what is tested is not known",
                model, manifest_location,
            )  # fmt: skip
        table = table.filter(pc.is_in(table["split"], pa.array([str(s) for s in _SET_OF])))
        table = table.filter(pc.is_valid(table["label"]))
        if table.num_rows == 0:
            raise InputError(
                f"{manifest_location}: no labelled image has split 'test' or 'external'; "
                "run `crackvae split`, or `crackvae score` to score everything"
            )
        sets = [str(_SET_OF[Split(name)]) for name in table["split"].to_pylist()]
        yield iter([table.append_column("set", pa.array(sets, pa.string()))])

    return _job(model, out, {"command": "evaluate", "sources": [source]}, plan, device, loaded=loaded)


def night(
    model: str, loaded: Artifact, files: pa.Table, out: str, facts: Mapping[str, Any], *, device: str = "auto"
) -> Outcome:
    """Scores the files of one night, or goes on with them.

    Args are those of `score`, but for the model that the files were compared for (by now, another may lie there), a
    manifest of the files, and facts that tell this night from others.
    """
    blocks = iter([files.select(MANIFEST.names)])
    return _job(model, out, {"command": "nightly", **facts}, lambda: nullcontext(blocks), device, loaded=loaded)


def model_facts(model: str, loaded: Artifact, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of a run besides its files and its backend: what is asked for, and what the model adds.

    Raises:
        ArtifactError: The model is not calibrated.
        UsageError: It cannot do what is asked for.
    """
    if loaded.calibration is None:
        raise ArtifactError(f"{model}: is not calibrated; train it again to its end")
    rules = loaded.config.scoring
    if loaded.photographs is not None:
        tables = [finalize.RESULTS_DIRECTORY, finalize.REGIONS_DIRECTORY, *facts.get("tables", [])]
        facts = {**facts, "tables": tables}
    elif {"tables", "given"} & set(facts):
        raise UsageError(f"{model}: was trained on whole images; tiles and millimetres need tiling 'native'")
    return {
        **facts,
        "model": loaded.fingerprint,
        "crackvae": crackvae.__version__,
        "scoring": {"score": rules.score, "alpha": rules.alpha, "max_failed_fraction": rules.max_failed_fraction},
    }


def _job(
    model: str,
    out: str,
    facts: Mapping[str, Any],
    plan: Plan,
    device: str,
    retry: Status | None = None,
    loaded: Artifact | None = None,
) -> Outcome:
    loaded = loaded or artifact.load(model)
    facts = model_facts(model, loaded, facts)
    with ExitStack() as stack:
        planned = None
        if directory.exists(out):
            run = _open(out, facts)
            if run.finished and (retry is None or str(retry) not in summary.read(out)["counts"]["status"]):
                log.info("%s is already finished%s", out, f"; none of its files is {retry}" if retry else "")
                return _outcome(run, loaded)
        elif retry is not None:
            raise InputError(f"{out}: is no run; --retry tries the failed files of a scored one again")
        else:
            directory.check_empty(out)
            planned = stack.enter_context(plan())
        stack.enter_context(lock.holding(out))
        if planned is not None and not directory.exists(out):
            calibration = loaded.calibrated.as_table().drop_columns("image_id")
            computed_on = _backend(loaded, device)
            place = model if model == artifact.PRETRAINED else storage.to_uri(model)
            run = directory.create(out, planned, {**facts, "backend": computed_on.as_dict()}, calibration, place)
            survey.score(run, shards.missing(run)[0], model, computed_on)
        else:
            run = _open(out, facts)
            stack.enter_context(logs.about(run.short_identity))
            run = _go_on(run, retry, model, loaded, device)
        finalize.finalize(run)
    return _outcome(run, loaded)


def _open(out: str, facts: Mapping[str, Any]) -> Run:
    """Opens a run if it is the one asked for. A list of files that grew meanwhile is the same."""
    run = directory.open_run(out)
    was = run.facts.get("sources", [])
    if (
        facts["command"] == "score"
        and was != facts["sources"]
        and [p for p, _ in was] == [p for p, _ in facts["sources"]]
    ):
        log.warning("a table of files has changed since it was listed at %s; the files of then are scored", run.created)
        facts = {**facts, "sources": was}
    directory.check_same(run, {**facts, "backend": run.facts.get("backend")})
    return run


def _go_on(run: Run, retry: Status | None, model: str, loaded: Artifact, device: str) -> Run:
    """Scores what is missing, then what is to be tried again. Starts Ray only for that."""
    judge.load(run)  # refuses a run that can only be read, before anything is scored
    later = "a further night finds" if run.facts["command"] == "nightly" else "a new --out takes"
    log.info(
        "going on with the %s files listed at %s; did files come later, %s", f"{run.plan.rows:,}", run.created, later
    )
    if device == "auto" and run.facts["backend"]["device"] == "cpu":  # a GPU that has come since does not end the run
        device = "cpu"
    _score_missing(run, model, loaded, device)
    if retry is not None and (run.finished or run.retries[-1:] != (retry,)):
        run = _score_missing(run, model, loaded, device, retry)
    return run


def _score_missing(run: Run, model: str, loaded: Artifact, device: str, retry: Status | None = None) -> Run:
    """Scores what is missing, or what a retry adds to it, which begins once the backend is known to be the run's."""
    work, damaged = shards.missing(run)
    for name, why in damaged.items():
        log.warning("%s: %s; it is scored again", name, why)
    log.info("%d of %d shards are left to score", len(work), run.plan.shards)
    if not work and retry is None:
        return run
    computed_on = _backend(loaded, device)
    directory.check_same(run, {**run.facts, "backend": computed_on.as_dict()})
    if retry is not None:
        run = directory.add_retry(run, retry)
        work, _ = shards.missing(run)
    survey.score(run, work, model, computed_on)
    return run


def _backend(model: Artifact, device: str) -> Backend:
    """The workers' backend, in the precision that the model was calibrated in."""
    computed_on = survey.resolve_backend(device, model.precision)
    calibrated_on = model.provenance.get("calibrated_on", {})
    both = (calibrated_on, computed_on.as_dict())
    before, now = (f"{one.get('device')} in {one.get('precision')}" for one in both)
    if before != now:
        log.warning("the model was calibrated on %s and scores on %s: p-values may shift in the 3rd digit", before, now)
    return computed_on


def _outcome(run: Run, model: Artifact) -> Outcome:
    metrics = summary.read(run.location)
    too_many = summary.failed_fraction(metrics) > model.config.scoring.max_failed_fraction
    return Outcome(run.location, metrics, ExitCode.TOO_MANY_FAILED if too_many else ExitCode.DONE)


def _table_hash(location: str) -> str | None:
    """Of a table, its content counts and not its place; other sources are not read for this."""
    if sources.kind(location) != "table":
        return None
    try:
        return storage.sha256(location)
    except OSError as error:
        raise InputError(f"{location}: cannot be read: {error}") from error
