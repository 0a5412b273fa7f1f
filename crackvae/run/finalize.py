"""From finished shards to results: judge, reconcile, add up, and say that it is complete."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from crackvae import storage
from crackvae.errors import CrackvaeError
from crackvae.run import directory, shards
from crackvae.run.directory import Run
from crackvae.schema import RESULTS, EvaluationSet, Label, Status
from crackvae.statistics import calibration, intervals, metrics

RESULTS_DIRECTORY = "results"
RESULTS_ROWS = 1_000_000  # per file of results/
CSV = "results.csv"
METRICS = "metrics.json"

_QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


@dataclass(frozen=True)
class Judge:
    """What turns scores into predictions; a new one needs no rescoring.

    Attributes:
        score_n: Scores of the calibration normals.
        darkness_n: The baseline's scores of the same.
        alpha: Share of normals that may be called crack.
    """

    score_n: NDArray[np.float32]
    darkness_n: NDArray[np.float32]
    alpha: float

    @property
    def threshold(self) -> float:
        """A score above it is a crack."""
        return calibration.threshold(self.score_n, self.alpha)

    @property
    def darkness_threshold(self) -> float:
        """The same rule for the baseline."""
        return calibration.threshold(self.darkness_n, self.alpha)


def finalize(run: Run, judge: Judge) -> dict[str, Any]:
    """Writes results/, results.csv, metrics.json and, last, _SUCCESS.

    Returns:
        What metrics.json holds.

    Raises:
        InputError: A shard's file is missing or not what it should be.
        CrackvaeError: The rows do not add up to the manifest's.
    """
    location = run.location
    storage.remove(storage.join(location, directory.SUCCESS))
    storage.remove(storage.join(location, RESULTS_DIRECTORY))
    kept = []
    with ExitStack() as stack:
        csv_file = stack.enter_context(storage.writing(storage.join(location, CSV)))
        csv = stack.enter_context(pyarrow.csv.CSVWriter(csv_file, RESULTS))
        for number, table in enumerate(_in_chunks(_judged(run, judge), RESULTS_ROWS)):
            csv.write_table(table)
            name = f"results-{number:05d}.parquet"
            path = storage.join(location, RESULTS_DIRECTORY, name)
            with storage.writing(path) as stream:
                pq.write_table(table, stream, compression="zstd")
            kept.append(table.drop_columns(["image_id", "uri", "message"]))
    results = pa.concat_tables(kept)
    if results.num_rows != run.plan.num_rows:
        raise CrackvaeError(f"{location}: {results.num_rows} rows for {run.plan.num_rows} files; please report it")
    summary = _summarise(results, judge)
    text = json.dumps(summary, indent=1, allow_nan=False)
    storage.write_bytes(storage.join(location, METRICS), text.encode())
    storage.write_bytes(storage.join(location, directory.SUCCESS), run.identity.encode())
    return summary


def read_metrics(location: str) -> dict[str, Any]:
    """What `finalize` wrote into metrics.json."""
    content: dict[str, Any] = json.loads(storage.read_bytes(storage.join(location, METRICS)))
    return content


def read_results(location: str, columns: list[str] | None = None) -> pa.Table:
    """The results of a finished run as one table, in manifest order."""
    folder = storage.join(location, RESULTS_DIRECTORY)
    tables = []
    for name in sorted(storage.list_files(folder)):
        with storage.open_input(storage.join(folder, name)) as stream:
            tables.append(pq.read_table(stream, columns=columns))
    return pa.concat_tables(tables)


def _judged(run: Run, judge: Judge) -> Iterator[pa.Table]:
    for number in range(run.shards):
        part, plan = shards.read_part(run, number), run.shard(number)
        score_N = part["score"].to_numpy().astype(np.float64)
        p_N = calibration.p_values(score_N, judge.score_n)
        crack_N = calibration.is_anomalous(score_N, judge.threshold)
        prediction_N = np.where(crack_N, str(Label.CRACK), str(Label.NORMAL))
        unscored_N = np.isnan(score_N)
        columns = {name: plan[name] for name in ("uri", "label", "group", "set")}
        columns |= {name: part[name] for name in part.schema.names}
        columns["p_value"] = pa.array(p_N, mask=unscored_N)
        columns["prediction"] = pa.array(prediction_N, pa.string(), mask=unscored_N)
        yield pa.table([columns[field.name] for field in RESULTS], schema=RESULTS)


def _in_chunks(tables: Iterator[pa.Table], most: int) -> Iterator[pa.Table]:
    held: list[pa.Table] = []
    for table in tables:
        if held and sum(t.num_rows for t in held) + table.num_rows > most:
            yield pa.concat_tables(held).combine_chunks()
            held = []
        held.append(table)
    yield pa.concat_tables(held).combine_chunks()


def _summarise(results: pa.Table, judge: Judge) -> dict[str, Any]:
    status = Counter(results["status"].to_pylist())
    scored = results.filter(pa.compute.is_valid(results["score"]))
    predicted = Counter(scored["prediction"].to_pylist())
    score_N = scored["score"].to_numpy().astype(np.float64)
    quantiles = np.quantile(score_N, _QUANTILES) if len(score_N) else [math.nan] * len(_QUANTILES)
    return {
        "counts": {
            "files": results.num_rows,
            "scored": scored.num_rows,
            "status": dict(sorted(status.items())),
            "predicted": {str(label): predicted[label] for label in Label},
        },
        "threshold": {
            "value": judge.threshold,
            "alpha": judge.alpha,
            "calibration_normals": len(judge.score_n),
        },
        "flagged_fraction": _number(predicted[Label.CRACK] / max(1, scored.num_rows)),
        "score_quantiles": {f"{level:g}": _number(value) for level, value in zip(_QUANTILES, quantiles, strict=True)},
        "sets": _sets(scored, judge),
    }


def _sets(scored: pa.Table, judge: Judge) -> dict[str, Any]:
    """Metrics of each evaluation set, and of all that is labelled."""
    labelled = scored.filter(pa.compute.is_valid(scored["label"]))
    if labelled.num_rows == 0:
        return {}
    sets = {}
    for name in (EvaluationSet.INTERNAL, EvaluationSet.EXTERNAL):
        rows = labelled.filter(pa.compute.equal(labelled["set"], str(name)))
        if rows.num_rows:
            sets[str(name)] = _set_metrics(rows, judge)
    sets[str(EvaluationSet.ALL)] = _set_metrics(labelled, judge)
    return sets


def _set_metrics(rows: pa.Table, judge: Judge) -> dict[str, Any]:
    is_crack_N = np.asarray(rows["label"].to_pylist()) == str(Label.CRACK)
    group_N = _groups(rows)
    darkness_N = rows["darkness"].to_numpy()
    return {
        **_scorecard(rows["score"].to_numpy(), is_crack_N, group_N, judge.threshold),
        "baselines": {"darkness": _scorecard(darkness_N, is_crack_N, group_N, judge.darkness_threshold)},
    }


def _groups(rows: pa.Table) -> NDArray[np.int64]:
    """A number per twin group; an image without a group is one of its own."""
    codes = rows["group"].combine_chunks().dictionary_encode().indices
    code_N: NDArray[np.int64] = codes.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    alone_N = code_N < 0
    code_N[alone_N] = code_N.max(initial=0) + 1 + np.arange(np.count_nonzero(alone_N))
    return code_N


def _scorecard(
    score_N: NDArray[np.float32],
    is_crack_N: NDArray[np.bool_],
    group_N: NDArray[np.int64],
    threshold: float,
) -> dict[str, Any]:
    card: dict[str, Any] = {
        name: {key: _number(value) for key, value in asdict(interval).items()}
        for name, interval in intervals.bootstrap(score_N, is_crack_N, group_N, threshold).items()
    }
    card["confusion"] = asdict(metrics.confusion(score_N, is_crack_N, threshold))
    card["threshold"] = threshold
    return card


def failed_fraction(summary: Mapping[str, Any]) -> float:
    """Share of the files that were not scored."""
    counts = summary["counts"]
    return float(counts["files"] - counts["status"].get(str(Status.OK), 0)) / float(counts["files"])


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
