"""What people decided of the images of a review, and what follows: precision, a bound on misses, data to go on with."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from crackvae import storage
from crackvae.dataset import table_files
from crackvae.errors import InputError, RefusedError
from crackvae.report import review
from crackvae.report.review import Review
from crackvae.run import directory, finalize
from crackvae.run.directory import Run
from crackvae.schema import MANIFEST, Decision, Label, ReviewPart, Split
from crackvae.statistics.discovery import exact_interval


@dataclass(frozen=True)
class Decided:
    """A review with the decisions of people.

    Attributes:
        run: The run.
        review: What was to be looked at.
        decision: Of `schema.Decision`, by image_id.
    """

    run: Run
    review: Review
    decision: pd.Series

    def counts(self) -> dict[str, Any]:
        """What decisions.json holds: of the list the precision, of the rest the most that was missed, 95% each.

        Of the list, unsure counts as no crack. Of the audit sample unsure and undecided images count as cracks, so
        that the bound holds whatever they are. Where the sample is all of the rest, it is a count.
        """
        made: dict[str, Any] = {}
        for part in (ReviewPart.LIST, ReviewPart.AUDIT):
            said = self.review.of(part)["image_id"].map(self.decision)
            made[part] = {str(each): int((said == str(each)).sum()) for each in Decision}
            made[part]["undecided"] = int(said.isna().sum())
        listed, audit, rest = made[ReviewPart.LIST], made[ReviewPart.AUDIT], self.review.facts["rest"]
        of = sum(listed.values()) - listed["undecided"]
        low, high = exact_interval(listed[Decision.CRACK], of)
        made["precision"] = {"value": listed[Decision.CRACK] / of if of else None, "low": low, "high": high}
        sample, missed = sum(audit.values()), sum(audit.values()) - audit[Decision.NO_CRACK]
        share, most = missed / max(1, rest), missed
        if sample < rest:
            share = exact_interval(missed, sample, upper=True)[1]
            most = int(share * rest)
        made["missed"] = {"of": rest, "share_at_most": share, "at_most": most}
        made["elsewhere"] = int((~self.decision.index.isin(self.review.rows["image_id"])).sum())
        return made

    def lines(self) -> list[str]:
        """For people."""
        made = self.counts()
        parts = {"list": made[ReviewPart.LIST], "audit sample": made[ReviewPart.AUDIT]}
        told = [f"{part}: {', '.join(f'{n:,} {name}' for name, n in found.items())}" for part, found in parts.items()]
        if made["precision"]["value"] is not None:
            shares = "{value:.1%} [{low:.1%}, {high:.1%}]".format(**made["precision"])
            told.append(f"precision: {shares} of what was decided of the list; unsure is no crack here")
        told.append(
            "missed: at most {share_at_most:.2%} of the {of:,} judged images that are not listed, {at_most:,} (95%, "
            "one-sided); unsure and undecided are cracks here".format(**made["missed"])
        )
        if made["elsewhere"]:
            told.append(f"{made['elsewhere']:,} decided images were neither listed nor drawn, and count in neither")
        return told

    def for_calibration(self) -> tuple[pa.Table, pa.Table]:
        """The sound images of the random sample: their rows of the results, and of the manifest.

        Raises:
            RefusedError: Some of the sample is not decided: what is left out may be what was hard to tell.
            InputError: None of it is sound.
        """
        said = self._drawn().map(self.decision)
        if said.isna().any():
            raise RefusedError(
                f"{self.run.location}: {said.isna().sum():,} of {len(said):,} images drawn at random are not decided; "
                "decide all of them: others were selected by their scores and never join a calibration"
            )
        sound = self._drawn()[said == str(Decision.NO_CRACK)]
        if sound.empty:
            raise InputError(f"{self.run.location}: no image drawn at random is sound; draw more of them by --audit N")
        names = pa.array(sound.tolist(), pa.string())
        results = finalize.read_results(self.run.location)
        return results.filter(pc.is_in(results["image_id"], names)), self._planned(names)

    def for_training(self) -> pa.Table:
        """A manifest of the other images that were decided, labelled; by its split `calibrate` refuses them."""
        label_of = {str(Decision.CRACK): str(Label.CRACK), str(Decision.NO_CRACK): str(Label.NORMAL)}
        label = self.decision[~self.decision.index.isin(self._drawn())].map(label_of).dropna()
        table = self._planned(pa.array(label.index.tolist(), pa.string()))
        labels = label[table["image_id"].to_pylist()].tolist()
        given = {"label": labels, "split": [str(Split.TRAIN)] * len(labels)}
        return pa.table([given.get(name, table[name]) for name in MANIFEST.names], MANIFEST)

    def _planned(self, names: pa.Array) -> pa.Table:
        """The manifest's rows of images of these names."""
        with storage.open_input(self.run.path(directory.PLAN)) as stream:
            table = pq.read_table(stream, columns=MANIFEST.names)
        return table.filter(pc.is_in(table["image_id"], names))

    def _drawn(self) -> pd.Series:
        return self.review.rows["image_id"][self.review.rows["drawn"]]


def decide(location: str, decisions: str) -> Decided:
    """Reads what people decided of a run's review, and keeps the counts in the run, as decisions.json.

    Args:
        location: A run with a review.
        decisions: A CSV with the columns image_id and decision; an empty one is not decided yet, a note may follow.
            An apostrophe before a name is taken away, as it is put before some names in results.csv.

    Raises:
        InputError: There is no review, or the file cannot be used.
    """
    run = directory.open_run(location)
    made = review.read(run) if run.finished else None
    if made is None:
        raise InputError(f"{location}: has no review; make one by `crackvae review {location}`")
    known = finalize.read_results(location, ["image_id"])["image_id"].to_pylist()
    decided = Decided(run, made, _read(decisions, set(known), location))
    storage.write_bytes(run.path(directory.DECISIONS), json.dumps(decided.counts(), indent=1).encode())
    return decided


def _read(location: str, known: set[str], run: str) -> pd.Series:
    columns, allowed = ("image_id", "decision"), ", ".join(Decision)
    table = table_files.read_csv(location, (*columns, "note"))
    table_files.check_columns(table, columns, location)
    made: dict[str, str] = {}
    first: dict[str, int] = {}
    for row, values in enumerate(zip(*(table[name].to_pylist() for name in columns), strict=True), 1):
        name, decision = (values[0] or "").removeprefix("'"), (values[1] or "").strip().lower()
        if name not in known:
            raise InputError(f"{location}: row {row}: {run} has no image {name!r}; give its image_id as in review.csv")
        if first.setdefault(name, row) != row:
            raise InputError(f"{location}: row {row}: {name!r} is in row {first[name]} already; keep one")
        if decision not in {"", *Decision}:
            raise InputError(
                f"{location}: row {row}: decision {decision!r} is unknown; use {allowed}, or leave it empty"
            )
        if decision:
            made[name] = decision
    if not made:
        raise InputError(f"{location}: holds no decision; use {allowed}")
    return pd.Series(made, dtype=object)
