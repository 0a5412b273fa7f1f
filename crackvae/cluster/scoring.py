"""Scoring jobs from sources to results: `score` a survey, `evaluate` on labelled splits."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

import crackvae
from crackvae import storage
from crackvae.cluster import session, survey
from crackvae.dataset import manifest, sources
from crackvae.errors import ArtifactError, ExitCode, InputError
from crackvae.model import artifact
from crackvae.model.artifact import Artifact
from crackvae.model.backend import Backend
from crackvae.run import directory, finalize
from crackvae.run.directory import Run
from crackvae.run.finalize import Judge
from crackvae.schema import EvaluationSet, Split
from crackvae.terminal import log

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
) -> Outcome:
    """Scores every image of a survey; the same call again goes on where it stopped.

    Args:
        model: Location of the model artifact.
        locations: Folders, archives, images, tables or manifests.
        out: The run directory.
        normal: Folder names that mean normal, instead of the common ones.
        crack: Folder names that mean crack, instead of the common ones.
        label_column: The column of a table that holds labels.
        device: `cpu`, `cuda` or `auto`.

    Raises:
        InputError: A source or the model cannot be used.
        RefusedError: The directory holds another run.
    """
    facts = {
        "command": "score",
        "sources": [[storage.to_uri(place), _table_hash(place)] for place in locations],
        "labels": [[*normal], [*crack], label_column],
    }

    def plan() -> tuple[pa.Table, pa.Array]:
        table, summary = manifest.build(locations, normal=normal, crack=crack, label_column=label_column)
        for line in summary.lines():
            log.info(line)
        if {Split.TRAIN, Split.VAL} & set(table["split"].to_pylist()):
            log.warning("metrics will include images of the splits train and val; `crackvae evaluate` leaves them out")
        return table, pa.nulls(table.num_rows, pa.string())

    return _job(model, out, facts, plan, device)


def evaluate(model: str, manifest_location: str, out: str, *, device: str = "auto") -> Outcome:
    """Scores the labelled splits `test` and `external` of a manifest.

    Arguments, returns and errors are those of `score`.
    """
    facts = {
        "command": "evaluate",
        "sources": [[storage.to_uri(manifest_location), _table_hash(manifest_location)]],
    }

    def plan() -> tuple[pa.Table, pa.Array]:
        table = manifest.read(manifest_location)
        table = table.filter(pc.is_in(table["split"], pa.array([str(s) for s in _SET_OF])))
        table = table.filter(pc.is_valid(table["label"]))
        if table.num_rows == 0:
            raise InputError(
                f"{manifest_location}: no labelled image has split 'test' or 'external'; "
                "run `crackvae split`, or `crackvae score` to score everything"
            )
        sets = [str(_SET_OF[Split(name)]) for name in table["split"].to_pylist()]
        return table, pa.array(sets, pa.string())

    return _job(model, out, facts, plan, device)


def _job(model: str, out: str, facts: Mapping[str, Any], plan: Any, device: str) -> Outcome:
    loaded = artifact.load(model)
    judge = _judge(loaded, model)
    facts = {**facts, "model": loaded.fingerprint, "crackvae": crackvae.__version__}
    if directory.exists(out):
        run = directory.open_run(out)
        backend_was = run.facts.get("backend")
        directory.check_same(run, {**facts, "backend": backend_was})
        if run.finished:
            log.info("%s is already finished", out)
            return _outcome(out, finalize.read_metrics(out), loaded)
        with session.session():
            computed_on = _backend(loaded, device)
            directory.check_same(run, {**facts, "backend": computed_on.as_dict()})
            _score(run, model, computed_on)
    else:
        table, sets = plan()
        with session.session():
            computed_on = _backend(loaded, device)
            run = directory.create(out, table, sets, {**facts, "backend": computed_on.as_dict()})
            _score(run, model, computed_on)
    return _outcome(out, finalize.finalize(run, judge), loaded)


def _score(run: Run, model: str, computed_on: Backend) -> None:
    scored = survey.score_missing(run, model, computed_on)
    log.info("scored %d of %d shards", scored, run.shards)


def _judge(model: Artifact, location: str) -> Judge:
    kept = model.calibration
    if kept is None:
        raise ArtifactError(f"{location}: is not calibrated; train it again to its end")
    return Judge(kept.score_N, kept.darkness_N, model.config.scoring.alpha)


def _backend(model: Artifact, device: str) -> Backend:
    """The workers' backend, in the precision that the model was calibrated in."""
    computed_on = survey.resolve_backend(device, model.config.scoring.precision)
    calibrated_on = model.provenance.get("calibrated_on", {})
    if computed_on.device != calibrated_on.get("device"):
        log.warning(
            "the model was calibrated on %s and scores on %s: p-values may shift in the 5th digit",
            calibrated_on.get("device"),
            computed_on.device,
        )
    return computed_on


def _outcome(out: str, metrics: dict[str, Any], model: Artifact) -> Outcome:
    most = model.config.scoring.max_failed_fraction
    failed = finalize.failed_fraction(metrics)
    return Outcome(out, metrics, ExitCode.TOO_MANY_FAILED if failed > most else ExitCode.DONE)


def _table_hash(location: str) -> str | None:
    """Of a table, its content counts and not its place; other sources are not read for this."""
    if sources.kind(location) != "table":
        return None
    try:
        return hashlib.sha256(storage.read_bytes(location)).hexdigest()
    except OSError as error:
        raise InputError(f"{location}: cannot be read: {error}") from error
