"""One self-contained HTML page of a finished run: what was not scored, what was flagged, how far to believe it.

It opens from disk without a network and shows nothing but what is in it: the Content-Security-Policy names
its style and its script by their hashes, and every text of the run is escaped.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import jinja2
import pandas as pd
import pyarrow as pa
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from crackvae import storage
from crackvae.errors import RefusedError
from crackvae.model.artifact import Artifact
from crackvae.report import excerpt as excerpts
from crackvae.report import findings, pictures, plots, positions, review, structures, tables, views
from crackvae.report.excerpt import Excerpt
from crackvae.report.findings import Gallery, Regions
from crackvae.report.review import Review
from crackvae.report.views import Triptych
from crackvae.run import directory, finalize, summary
from crackvae.run.directory import Run
from crackvae.schema import EvaluationSet, ReviewPart
from crackvae.statistics.discovery import expected_precision
from crackvae.statistics.metrics import PREVALENCES

MOST_BYTES = 25_000_000
"""Of a page, whatever the survey."""

_SPARE_BYTES = 100_000
_MOST_STRUCTURES = 200
_COLUMNS = [
    "image_id", "uri", "status", "message", "label", "group", "set", "score", "p_value", "p_value_is_bound",
    "prediction", "width", "height", "latitude", "longitude", "mm_per_pixel", "mm_per_pixel_error", "judged_fraction",
]  # fmt: skip


class Shown(NamedTuple):
    """What a page shows of a run.

    Attributes:
        by: Structures, as by `structures.read`; None takes folders.
        with_positions: Whether it says where photographs were taken.
    """

    by: pa.Table | None = None
    with_positions: bool = True


def write(location: str, *, model: str | None = None, shows: Shown | None = None) -> str:
    """Writes the page of a run into its directory.

    Args:
        location: A finished run.
        model: The model artifact that scored it; None looks where it lay then. Without one the page has no
            heat maps and no training curves, and says so.
        shows: None shows what the page before it did, as by `kept`.

    Returns:
        Where the page lies.

    Raises:
        InputError: The run is not finished, another model scored it, or what it keeps is damaged.
        RefusedError: It was judged anew meanwhile.
    """
    run = directory.open_finished(location)
    success = directory.success(run)
    shows = kept(run) if shows is None else shows
    _keep(run, shows)
    by, with_positions = shows
    scored_by = pictures.model_of(run, model)
    metrics = summary.read(location)
    threshold = metrics["threshold"]["value"]
    reviewed = review.read(run)
    excerpt, kinds, total = _read(location, reviewed, threshold)
    labelled = total["labelled"] > 0
    held, shown = findings.listed(excerpt.chosen), findings.galleries(excerpt.chosen, threshold, labelled=labelled)
    names = pd.concat([held, *(gallery.rows for gallery in shown)])["image_id"].unique().tolist()
    regions = findings.read_regions(location, names)
    triptychs = findings.triptychs(shown, regions, scored_by, threshold)
    place_N2, _ = structures.assign(held["image_id"].tolist(), by)
    rows = findings.rows(held, place_N2, regions, with_positions=with_positions)
    by_structure = structures.aggregate(finalize.read_blocks(location, columns=structures.COLUMNS), by).table
    context: dict[str, Any] = {
        "name": storage.name(location),
        "metrics": metrics,
        "identity": _identity(run, scored_by),
        "sources": [uri for uri, _ in run.facts.get("sources", [])],
        "side": views.SIDE,
        "has_model": scored_by is not None,
        "scale": scored_by and views.scale(scored_by, threshold),
        "most_anomalous": findings.MOST_ANOMALOUS,
        "galleries": [(gallery, _cards(gallery, triptychs, regions)) for gallery in shown],
        "left_out": findings.left_out(kinds, held),
        "reviewed": reviewed and reviewed.lines(),
        "labelled": labelled,
        "sampled": len(excerpt.sample) if excerpt.one_in > 1 else 0,
        "structures": by_structure.slice(0, _MOST_STRUCTURES).to_pylist(),
        "more_structures": max(0, len(by_structure) - _MOST_STRUCTURES),
        "by_folder": by is None,
        "with_positions": with_positions,
        "map": (*positions.draw(excerpt.all()), total["placed"]) if with_positions else (Markup(), 0, 0),
        "plots": plots.draw(excerpt, metrics, scored_by),
        "expected": _expected(metrics),
        "tables": [tables.set_table(metrics, name) for name in tables.reported_sets(metrics)],
        "decisions": tables.decisions_table(metrics) if metrics["sets"] else None,
    }
    text = _rendered(context, rows, held, regions)
    if directory.success(run) != success:
        raise RefusedError(f"{location}: was judged anew meanwhile; call `crackvae report {location}`")
    storage.write_bytes(run.path(directory.REPORT), text)
    return run.path(directory.REPORT)


def kept(run: Run) -> Shown:
    """What the last page of a run was asked to show; the run keeps it, whatever becomes of its results.

    Raises:
        InputError: The file is damaged.
    """

    def parse(content: dict[str, Any]) -> Shown:
        rows = content["structures"]
        return Shown(rows and pa.Table.from_pylist(rows, structures.TABLE), bool(content["with_positions"]))

    cure = (
        f"delete it and say again what the page shows: `crackvae report {run.location}`, with --no-location to share it"
    )
    return storage.read_json(run.path(directory.SHOWN), parse, cure) or Shown()


def _keep(run: Run, shows: Shown) -> None:
    path = run.path(directory.SHOWN)
    if shows.by is None and shows.with_positions:
        storage.remove(path)
        return
    rows = None if shows.by is None else shows.by.to_pylist()
    content = {"structures": rows, "with_positions": shows.with_positions}
    storage.write_bytes(path, json.dumps(content, indent=1).encode())


def _read(location: str, reviewed: Review | None, threshold: float) -> tuple[Excerpt, Counter[str], Counter[str]]:
    """What is shown one by one and drawn; how many rows there are by kind, labelled, and with a position."""
    kinds, total = Counter[str](), Counter[str]()

    def blocks() -> Iterator[pd.DataFrame]:
        for block in finalize.read_blocks(location, columns=_COLUMNS):
            rows = _marked(block.to_pandas(), reviewed)
            kinds.update(findings.counts(_once(rows)))
            total.update(labelled=int(rows["label"].count()), placed=len(positions.placed(rows)))
            yield rows

    return excerpts.take(blocks(), lambda rows: findings.candidates(_once(rows), threshold)), kinds, total


def _marked(results: pd.DataFrame, reviewed: Review | None) -> pd.DataFrame:
    """With the part of the review that an image is of, if any, and how many of its repeats are not shown."""
    if reviewed is None:
        return results.assign(review="", repeats=0)
    part, repeat_of = reviewed.rows.set_index("image_id")["part"], reviewed.rows["repeat_of"]
    name = results["image_id"]
    return results.assign(review=name.map(part).fillna(""), repeats=name.map(repeat_of.value_counts()).fillna(0))


def _once(results: pd.DataFrame) -> pd.DataFrame:
    """Without what the review shows under another image."""
    return results[results["review"] != str(ReviewPart.REPEAT)]


def _identity(run: Run, model: Artifact | None) -> dict[str, str]:
    """What was scored by what, by name."""
    facts, backend = run.facts, run.facts.get("backend", {})
    told = {
        "run": run.identity,
        "files listed": run.created,
        "crackvae": facts.get("crackvae", "unknown"),
        "manifest (SHA-256)": facts["manifest"],
        "model (fingerprint)": facts.get("model", "unknown"),
        "calibration (SHA-256)": facts.get("calibration", "none"),
        "scored on": ", ".join(str(backend[key]) for key in ("device", "hardware", "precision") if key in backend),
    }
    if model is not None:
        trained = model.provenance
        told["model trained on (SHA-256)"] = str(trained.get("data", "unknown"))
        told["model trained"] = f"{trained.get('date', 'date unknown')}, {trained.get('train_normals', '?')} normals"
    return {name: value for name, value in told.items() if value}


def _expected(metrics: dict[str, Any]) -> list[list[str]]:
    """Precision to expect where so many of the images are cracked, by what the recall is taken from."""
    made = []
    for name in tables.reported_sets(metrics):
        found = [metrics["sets"][name][f"precision_at_1_in_{round(1 / prevalence)}"] for prevalence in PREVALENCES]
        if found[0]["value"] is not None:
            label = "labelled images" if name == EvaluationSet.ALL else f"{name} set"
            shares = (tables.interval(precision, ".1%") for precision in found)
            made.append([f"at the recall and false alarms of the {label}", *shares])
    rate = metrics["threshold"]["false_alarm_rate"]["expected"]
    best = (f"{float(expected_precision(rate, 1.0, prevalence)):.1%}" for prevalence in PREVALENCES)
    return [*made, [f"at most, if every crack is flagged, at {rate:.1%} false alarms", *best]]


def _cards(gallery: Gallery, pictures: dict[int, Triptych], regions: Regions) -> list[dict[Any, Any]]:
    none = Triptych(gone="no picture: enough is shown already")
    return [
        {
            **told,
            "outcome": findings.outcome(told),
            "note": findings.note(told, regions),
            **pictures.get(row, none)._asdict(),
        }
        for row, told in zip(gallery.rows.index, gallery.rows.to_dict("records"), strict=True)
    ]


def _rendered(context: dict[str, Any], rows: list[findings.Row], held: pd.DataFrame, regions: Regions) -> bytes:
    """The page, with as many thumbnails in the rows of its list as there is room for."""
    template = _template()

    def rendered(missing: int) -> bytes:
        text = htmlsafe_json_dumps(rows, ensure_ascii=False, separators=(",", ":"))
        return template.render(context, rows=text, without_thumbnail=missing).encode(errors="replace")

    room = MOST_BYTES - _SPARE_BYTES - len(rendered(0))
    return rendered(findings.add_thumbnails(rows, held, regions, room))


def _template() -> jinja2.Template:
    """The template with its style and script, and the hashes by which the page allows these alone to run."""
    loader = jinja2.PackageLoader("crackvae", "report/templates")
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined,
                                     trim_blocks=True, lstrip_blocks=True)  # fmt: skip
    environment.filters |= {
        "base64": lambda data: base64.b64encode(data).decode(),
        "count": "{:,}".format,
        "share": "{:.1%}".format,
        "digits": "{:.4g}".format,
    }
    for name in ("page.css", "page.js"):
        text = loader.get_source(environment, name)[0]
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        kind = name.partition(".")[2]
        environment.globals |= {kind: Markup(text), f"{kind}_hash": f"sha256-{digest}"}
    return environment.get_template("page.html")
