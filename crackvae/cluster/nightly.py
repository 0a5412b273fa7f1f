"""A survey that grows: each night scores what is new or changed, and makes a snapshot of everything ever scored."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from crackvae import storage
from crackvae.cluster import here, scoring, survey
from crackvae.cluster.scoring import Outcome
from crackvae.dataset import manifest, sources, tiles
from crackvae.errors import ExitCode, RefusedError
from crackvae.model import artifact
from crackvae.model.artifact import Artifact
from crackvae.run import charts, directory, finalize, lock, snapshot
from crackvae.run.snapshot import Record
from crackvae.schema import MANIFEST, Change, Label, Status
from crackvae.terminal import log


@dataclass(frozen=True)
class Night:
    """What a night came to.

    Attributes:
        record: As in latest.json.
        outcome: Of its run, None where nothing was scored.
        exit_code: 4 where too many of the new or changed files failed, 5 at a drift alarm.
    """

    record: Record
    outcome: Outcome | None = None
    exit_code: ExitCode = ExitCode.DONE


@dataclass(frozen=True)
class _Job:
    """What was asked for; facts are what the nights of a generation share, but for the backend, which Ray tells."""

    model: str
    loaded: Artifact
    root: str
    source: str
    device: str
    content_hash: bool
    new_generation: bool
    accept_drift: bool
    show: Callable[[Outcome], object]
    facts: Mapping[str, Any]

    def backend(self) -> dict[str, str]:
        """Of the workers."""
        return survey.resolve_backend(self.device, self.loaded.precision).as_dict()

    def goes_on(self, was: Record, facts: Mapping[str, Any]) -> bool:
        """Whether a night with these facts belongs to the generation of another.

        Raises:
            RefusedError: It does not, and no other generation may begin.
        """
        differs = directory.differences({name: was["facts"].get(name) for name in facts}, facts)
        if not differs or self.new_generation:
            return not differs
        files, pace = was["tonight"]["listed"], was["pace"]
        cost = "at a pace that is not known yet"
        if pace["seconds"]:
            rate = pace["files"] / pace["seconds"]
            cost = f"about {files / rate / 3600:.2g} hours at the {rate:.3g} a second of the nights before"
        raise RefusedError(
            f"{self.root}: its nights were scored otherwise: {'; '.join(differs)}; give what it was, or begin another "
            f"generation with --new-generation, which scores all {files:,} photographs anew, {cost}"
        )


def nightly(
    model: str,
    source: str,
    out: str,
    *,
    device: str = "auto",
    content_hash: bool = False,
    new_generation: bool = False,
    accept_drift: bool = False,
    show: Callable[[Outcome], object] = lambda outcome: None,
) -> Iterator[Night]:
    """Scores what is new or changed since the last night; first finishes a night that was cut off.

    Args:
        model: Location of the model artifact.
        source: A folder, an archive, or a table or manifest of files.
        out: Root of the nightly survey, a path or a URI.
        device: `cpu`, `cuda` or `auto`.
        content_hash: Whether new and changed files are read and hashed first, so that one with another time and
            equal content is not scored again.
        new_generation: Whether another model, or another kind of machine, may begin anew.
        accept_drift: Whether tonight's level is what later nights are compared with, instead of the one before.
        show: Draws what a night has scored. The night is not done before: where that fails, the next call shows it.

    Yields:
        The nights, each as soon as it is done; where nothing is new, the newest, with what tonight has found.

    Raises:
        InputError: Something cannot be used.
        RefusedError: The nights before had another model or source, another process is at work, or out lies in source.
    """
    sources.check_outside(out, [source])
    loaded = artifact.load(model)
    facts = scoring.model_facts(model, loaded, {})
    snapshot.latest(out)  # before the lock puts a file there: the place may be another's
    done = None
    with lock.holding(out):
        job = _Job(model, loaded, out, source, device, content_hash, new_generation, accept_drift, show, facts)
        last, begun = snapshot.latest(out), snapshot.begun(out)
        for record in filter(None, (last, begun and begun[1])):
            if record["source"] != storage.to_uri(source):
                raise RefusedError(f"{out}: holds the nights of {record['source']}; give another --out for {source}")
        if begun is not None and (last is None or last["night"] != begun[1]["night"]):
            listing, record = begun
            if snapshot.to_score(listing).num_rows and job.goes_on(record, facts):
                facts = {**facts, "backend": job.backend()}
            if job.goes_on(record, facts):
                log.info("night %s was cut off; it is finished first", record["night"])
                done = last = (night := _finish(job, listing, record)).record
                yield night
            else:
                log.info("night %s was cut off and stays so, as another generation begins", record["night"])
        night = _next(job, last)
        if done is None or night.record["night"] != done["night"]:
            yield night


def _next(job: _Job, last: Record | None) -> Night:
    """Lists and compares; keeps what was found before it is scored. Nothing is kept where nothing is new."""
    files, found = manifest.build([job.source], folder_labels=False)
    for line in found.lines():
        log.info(line)
    before = last if last is not None and job.goes_on(last, job.facts) else None
    listing, told, learnt = _compare(job, files, before)
    facts = {**job.facts, "backend": before and before["facts"]["backend"]}
    if snapshot.to_score(listing).num_rows:
        facts["backend"] = job.backend()
        if before is not None and not job.goes_on(before, facts):
            before = None
            listing, told, _ = _compare(job, files, None)
    log.info(", ".join(f"{number:,} {name}" for name, number in told.items()))
    if before is not None and not job.accept_drift and not learnt and not sum(told.values()) - told["listed"]:
        return Night({**before, "tonight": told | _scored(None), "drift": {}})
    record = {
        "night": _name(job.root, last),
        "generation": before["generation"] if before else last["generation"] + 1 if last else 1,
        "after": before and before["night"],
        "source": storage.to_uri(job.source),
        "facts": facts,
        "tonight": told,
        "pace": last["pace"] if last else {"files": 0, "seconds": 0.0},
        "nights": before["nights"] if before and not job.accept_drift else [],
        "fresh": before.get("fresh", {}) if before and not job.accept_drift else {},
    }
    snapshot.begin(job.root, listing, record)
    return _finish(job, listing, record)


def _compare(job: _Job, files: pa.Table, before: Record | None) -> tuple[pa.Table, dict[str, int], bool]:
    """The listing with what is new in it, counts, and whether hashes were learnt that later nights need."""
    known = snapshot.known(job.root, before)
    listing = snapshot.compare(files, known)
    if job.content_hash:  # of whatever the listing alone cannot call the same
        unsure = pc.is_in(listing["change"], pa.array([str(Change.NEW), str(Change.CHANGED)]))
        unsure = pc.or_(unsure, pc.or_(pc.is_null(files["size"]), pc.is_null(files["mtime"])))
        unsure = pc.and_(unsure, pc.is_null(files["content_hash"])).combine_chunks()
        most = job.loaded.config.image.max_megabytes * 10**6
        hashes = pa.array(tiles.hash_files(files["uri"].filter(unsure).to_pylist(), most), pa.string())
        column = pc.replace_with_mask(files["content_hash"].combine_chunks(), unsure, hashes)
        files = files.set_column(MANIFEST.get_field_index("content_hash"), MANIFEST.field("content_hash"), column)
        listing = snapshot.compare(files, known)
    return listing, snapshot.differences(listing, known), snapshot.knows_more(listing, known)


def _name(root: str, last: Record | None) -> str:
    """Of a new night: the date (UTC), and from the second of a day on its number."""
    date = max(datetime.now(UTC).date().isoformat(), last["night"][:10] if last else "")
    names = (date if number == 1 else f"{date}-{number}" for number in count(1))
    places = (snapshot.NIGHTS, snapshot.SNAPSHOTS)
    return next(name for name in names if not any(storage.exists(storage.join(root, p, name)) for p in places))


def _finish(job: _Job, listing: pa.Table, record: Record) -> Night:
    """Scores what a night has found, makes its snapshot, and then makes it the newest."""
    night, files = record["night"], snapshot.to_score(listing)
    before = snapshot.latest(job.root) if record["after"] else None
    if record["after"] and (before is None or before["night"] != record["after"]):
        raise RefusedError(
            f"{job.root}: night {night} was compared with {record['after']}, which is no longer the newest; delete "
            f"{snapshot.LISTED} there, and tonight is compared anew"
        )
    pace, nights, fresh, outcome = record["pace"], record["nights"], record.get("fresh", {}), None
    if files.num_rows:
        run = storage.join(job.root, snapshot.NIGHTS, night)
        facts = {"sources": [[record["source"], None]], "generation": record["generation"]}
        anew, start = not directory.exists(run), time.monotonic()
        outcome = scoring.night(job.model, job.loaded, files, run, facts, device=job.device)
        job.show(outcome)
        if anew:
            pace = {"files": pace["files"] + files.num_rows, "seconds": pace["seconds"] + time.monotonic() - start}
        nights, fresh = [*nights, night], {**fresh, night: _fresh(outcome.run, files)}
    blocks = finalize.read_blocks(outcome.run) if outcome else []
    runs = {storage.join(job.root, snapshot.NIGHTS, name): fresh.get(name) for name in nights}
    record = {
        **record,
        "tonight": record["tonight"] | _scored(outcome),
        "counts": snapshot.write(job.root, night, listing, before, blocks),
        "pace": pace,
        "nights": nights,
        "fresh": fresh,
        "drift": charts.follow(runs) if outcome else {},
    }
    snapshot.finish(job.root, record)
    if here.ray_runs():
        from crackvae.cluster import metrics

        metrics.count_alarms(record["drift"])
    code = ExitCode.DRIFT_ALARM if any(told["alarm"] for told in record["drift"].values()) else ExitCode.DONE
    most = job.loaded.config.scoring.max_failed_fraction
    if outcome and fresh[night]["failed"] > most * fresh[night]["files"]:
        code = ExitCode.TOO_MANY_FAILED
    return Night(record, outcome, code)


def _scored(outcome: Outcome | None) -> dict[str, int]:
    if outcome is None:
        return {"scored": 0, "failed": 0, "flagged": 0}
    counts = outcome.metrics["counts"]
    failed = sum(n for status, n in counts["status"].items() if status not in (Status.OK, Status.CANNOT_JUDGE))
    return {"scored": counts["scored"], "failed": failed, "flagged": counts["predicted"][Label.CRACK]}


def _fresh(run: str, files: pa.Table) -> dict[str, int]:
    """Counts of the new and changed files: one that stays unreadable is not news every night."""
    results = finalize.read_results(run, ["status", "prediction"])  # in the order of the files
    results = results.filter(pc.not_equal(files["change"], str(Change.RETRIED)))
    read = pc.is_in(results["status"], pa.array([str(Status.OK), str(Status.CANNOT_JUDGE)]))
    failed = len(results) - (pc.sum(read).as_py() or 0)
    return {"files": len(results), "failed": failed, "decided": pc.count(results["prediction"]).as_py()}
