"""What turns the scores of a run into predictions. It is read from the run's own files."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from crackvae import storage
from crackvae.errors import InputError, UsageError
from crackvae.run.directory import CALIBRATION, SUCCESS, Run
from crackvae.schema import BASELINES, LOOKS, Label
from crackvae.statistics import calibration
from crackvae.statistics.calibration import Normals

THRESHOLD = "threshold.json"


@dataclass(frozen=True)
class Judge:
    """Scores to p-values and predictions; a new one needs no rescoring.

    Attributes:
        normals: What the calibration normals scored.
        baselines: What each of `schema.BASELINES` scored of the same.
        looks_nF: Of the same, columns of `schema.LOOKS`.
        alpha: Share of normals that may be called crack.
        score: The name of the score.
        value: A threshold that was set by hand; those of the baselines still follow from alpha.
    """

    normals: Normals
    baselines: dict[str, NDArray[np.float32]]
    looks_nF: NDArray[np.float32]
    alpha: float
    score: str
    value: float | None = None

    def judge(self, part: pa.Table) -> dict[str, pa.Array]:
        """The columns p_value, p_value_is_bound and prediction for rows of `schema.PART`."""
        score_N, worst_N = (part[name].to_numpy().astype(np.float64) for name in ("score", "worst_tile_score"))
        tiles_N = part["tiles"].fill_null(1).to_numpy()  # null where an image is one tile
        verdict = self.normals.judge(score_N, worst_N, tiles_N, self.alpha, self.value)
        unscored_N = np.isnan(score_N)
        prediction_N = np.where(verdict.is_anomalous_N, str(Label.CRACK), str(Label.NORMAL))
        return {
            "p_value": pa.array(verdict.p_N, mask=unscored_N),
            "p_value_is_bound": pa.array(verdict.is_bound_N, mask=unscored_N),
            "prediction": pa.array(prediction_N, pa.string(), mask=~verdict.is_decided_N),
        }

    @property
    def threshold(self) -> float:
        """A score above it is a crack."""
        return calibration.threshold(self.normals.score_n, self.alpha) if self.value is None else self.value

    def baseline_threshold(self, name: str) -> float:
        """The same rule for a baseline."""
        return calibration.threshold(self.baselines[name], self.alpha)

    def as_dict(self) -> dict[str, Any]:
        """For metrics.json; the alpha of a threshold set by hand is the rate of false alarms to expect of it."""
        promise = self.normals.promise(self.threshold)
        return {
            "value": self.threshold,
            "alpha": self.alpha if self.value is None else promise.expected,
            "score": self.score,
            "set_by": "alpha" if self.value is None else "value",
            "calibration_normals": len(self.normals.score_n),
            "false_alarm_rate": promise._asdict(),
        }


def load(run: Run) -> Judge:
    """The judge of a run: its model's, or what `crackvae threshold` set.

    Raises:
        InputError: A file is damaged, or the run is one that calibrates a model and is not judged itself.
    """
    if "calibration" not in run.facts:
        raise InputError(f"{run.location}: holds no calibration scores; give a run of `crackvae score` or `evaluate`")
    with storage.open_input(run.path(CALIBRATION)) as stream:
        table = pq.read_table(stream)
    cure = "delete it, and call `crackvae threshold` again"
    chosen = storage.read_json(run.path(THRESHOLD), lambda told: {k: float(v) for k, v in told.items()}, cure) or {}
    return Judge(
        Normals(*(table[name].to_numpy() for name in ("score", "worst_tile_score", "tiles"))),
        {name: table[name].to_numpy() for name in BASELINES},
        np.stack([table[name].to_numpy() for name in LOOKS], axis=1),
        chosen.get("alpha", run.facts["scoring"]["alpha"]),
        run.facts["scoring"]["score"],
        chosen.get("value"),
    )


def set_threshold(run: Run, *, quantile: float | None, value: float | None) -> Judge:
    """Keeps another threshold in the run; it holds from the next finalize on.

    Args:
        run: The run.
        quantile: Of the calibration scores, in (0, 1).
        value: Or the threshold itself.

    Raises:
        UsageError: It is out of range.
        InputError: There are too few calibration scores for it.
    """
    # Rounded: 1 - 0.9 is 0.09999999999999998, which would lose the threshold of alpha 0.1.
    alpha = None if quantile is None else round(1 - quantile, 12)
    if alpha is not None and not 0 < alpha < 1:
        raise UsageError(f"--quantile {quantile:g}: must lie between 0 and 1")
    if value is not None and not math.isfinite(value):
        raise UsageError(f"--value {value}: must be a number")
    chosen = {"value": value} if alpha is None else {"alpha": alpha}
    kept = load(run)
    judge = replace(kept, value=value, alpha=alpha or run.facts["scoring"]["alpha"])
    judge.as_dict()  # raises where the calibration scores are too few
    storage.remove(run.path(SUCCESS))  # from now on the results are no longer complete
    storage.write_bytes(run.path(THRESHOLD), json.dumps(chosen).encode())
    return judge
