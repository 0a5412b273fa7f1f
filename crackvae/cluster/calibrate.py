"""Calibration: what sound images score that the model was not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Unpack

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crackvae import storage
from crackvae.cluster import claim, survey
from crackvae.dataset import manifest, splitting
from crackvae.dataset.labels import Naming
from crackvae.errors import InputError, RefusedError
from crackvae.model import artifact
from crackvae.model.artifact import Artifact, Calibration
from crackvae.model.quantised import LARGEST
from crackvae.run import directory, shards
from crackvae.run.directory import Run
from crackvae.schema import Label, Split, Status
from crackvae.statistics import calibration
from crackvae.terminal import log


def recalibrate(
    model: str,
    sources: Sequence[str],
    out: str,
    *,
    device: str = "auto",
    **labels: Unpack[Naming],
) -> Artifact:
    """Gives a model another calibration; weights and what is judged stay. The same call goes on after a kill.

    Arguments are those of `scoring.score`: sources are sound images that the model was not trained on, of which what
    is labelled a crack is left out, labels are normal, crack and label_column, and out is the new artifact's directory.

    Raises:
        InputError: There are too few sound images for the model's alpha.
        RefusedError: The directory holds something else, or images were selected for training.
    """
    base = artifact.load(model)
    table, found = manifest.build(sources, **labels)
    for line in found.lines():
        log.info(line)
    if Split.TRAIN in found.splits:
        raise RefusedError(
            f"{', '.join(sources)}: holds images of the split train, for training only or selected by their "
            "scores; calibrate with others, drawn at random"
        )
    kept, left_out = _sound(table)
    calibration.threshold(np.zeros(kept.num_rows), base.config.scoring.alpha)  # fails now, not after scoring
    facts = {
        "config": base.provenance.get("config"),
        "calibrated_model": base.fingerprint,
        "calibration_data": claim.fingerprint(kept),
    }
    if artifact.is_artifact(out):
        return claim.finished(out, facts)
    with claim.claim(out, facts):
        made = calibrate(base, kept, storage.join(out, claim.WORK), device)
        provenance = {
            **made.provenance,
            **facts,
            **left_out,
            "calibration_joined": [],
            "calibration_date": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        return claim.complete(replace(made, provenance=provenance), out)


def _sound(table: pa.Table) -> tuple[pa.Table, dict[str, int]]:
    """The images of a manifest that can calibrate, one of each twin group; and for the provenance, what cannot."""
    sound = table.filter(pc.not_equal(table["label"], str(Label.CRACK)).fill_null(True))
    if sound.num_rows < table.num_rows:
        log.warning("%d images labelled crack are left out", table.num_rows - sound.num_rows)
    grouped = splitting.group(sound)
    readable = grouped.table.filter(pa.array([status == Status.OK for status in grouped.statuses]))
    if failed := sound.num_rows - readable.num_rows:
        log.warning("%d of %d images cannot be read and are left out", failed, sound.num_rows)
    kept = manifest.one_per_group(readable)
    twins = readable.num_rows - kept.num_rows
    return kept, {"calibration_failed_images": failed, "calibration_twins_left_out": twins}


def join(model: Artifact, run: Run, sound: pa.Table, images: pa.Table, out: str) -> Artifact:
    """Adds what sound images of a run scored to a calibration: another version of the model, which records them.

    Of each twin group one joins, and none whose very bytes have joined before.

    Args:
        model: What scored the run.
        run: The run.
        sound: Rows of its results, drawn at random and found sound by people.
        images: The manifest's rows of the same; they are read.
        out: Directory of the new artifact.

    Raises:
        RefusedError: It is not empty.
        InputError: None of the images can join.
    """
    if next(storage.list_files(out), None) is not None:
        raise RefusedError(f"{out}: is not empty; give an empty directory for the new version of the model")
    before = model.provenance.get("calibration_joined", [])
    label = images.schema.get_field_index("label")  # people have looked: what a folder's name said counts no more
    kept, _ = _sound(images.set_column(label, "label", pa.array([str(Label.NORMAL)] * len(images), pa.string())))
    known = pa.array([content for joined in before for content in joined.get("content_hash", ())], pa.string())
    kept = kept.filter(pc.invert(pc.is_in(kept["content_hash"], known)))
    if kept.num_rows < images.num_rows:
        log.warning(
            "%d of %d images do not join: they cannot be read now, are of one group with others or have joined before",
            images.num_rows - kept.num_rows, images.num_rows,
        )  # fmt: skip
    if not kept.num_rows:
        raise InputError(f"{run.location}: none of its sound images can join; review a run of other images")
    added = Calibration.of(sound.filter(pc.is_in(sound["image_id"], kept["image_id"].combine_chunks())))
    both = pa.concat_tables([model.calibrated.as_table(), added.as_table()])
    record = {"run": run.identity, "images": added.image_id, "content_hash": kept["content_hash"].to_pylist()}
    provenance = {
        **model.provenance,
        "calibrated_model": model.fingerprint,
        "calibration_joined": [*before, record],
        "calibration_date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return claim.complete(replace(model, calibration=Calibration.of(both), provenance=provenance), out)


def calibrate(model: Artifact, normals: pa.Table, work: str, device: str) -> Artifact:
    """Scores held-out normals and keeps their scores in the artifact.

    Args:
        model: A trained model.
        normals: Manifest rows of normals that it was not trained on.
        work: A directory for the scoring run; it may hold a part of it already.
        device: `cpu`, `cuda` or `auto`.

    Raises:
        InputError: Too few of them can be scored for the asked alpha.
    """
    precision = model.precision
    if precision == "auto" and LARGEST in model.weights:
        precision = "int8"
    computed_on = survey.resolve_backend(device, precision)
    scoring = model.config.scoring.model_copy(update={"precision": computed_on.precision})
    config = model.config.model_copy(update={"scoring": scoring})
    uncalibrated = storage.join(work, "uncalibrated")
    artifact.save(replace(model, config=config, history=[], provenance={}), uncalibrated)
    facts = {"model": artifact.load(uncalibrated).fingerprint, "backend": computed_on.as_dict()}
    location = storage.join(work, "calibration")
    run = directory.open_run(location) if directory.exists(location) else None
    if run is None or any(run.facts.get(name) != value for name, value in facts.items()):
        storage.remove(location)  # of another machine: minutes of work, not worth an error
        run = directory.create(location, [normals], facts)
    survey.score(run, shards.missing(run)[0], uncalibrated, computed_on)
    parts = pa.concat_tables([part.table for part in shards.read_parts(run, range(run.plan.shards))])
    scored = parts.filter(pc.equal(parts["status"], str(Status.OK)))
    kept = Calibration.of(scored)
    calibration.threshold(kept.normals.score_n, scoring.alpha)
    photographs = model.photographs
    if photographs is not None:
        map_limit = calibration.threshold(scored["map_peak"].to_numpy(), scoring.alpha)
        photographs = replace(photographs, map_limit=map_limit)
    provenance = {**model.provenance, "calibrated_on": computed_on.as_dict()}
    return replace(model, config=config, calibration=kept, provenance=provenance, photographs=photographs)
