"""Which images of a run people look at: a list whose length statistics choose, and a random sample of all images.

The sample goes on until so many images of it are not in the list: these audit the rest, and bound what the list
misses. Those of it that are in the list are looked at anyway. Sound images of the whole sample were not selected by
their scores, and may join a calibration; sound images of the list were, and may not.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from crackvae import storage
from crackvae.errors import InputError, RefusedError, UsageError
from crackvae.report import findings
from crackvae.run import directory, finalize, judge
from crackvae.run.directory import Run
from crackvae.schema import REVIEW, ReviewPart
from crackvae.statistics.discovery import benjamini_hochberg, least_real

_MOST_COMPARED = 10_000  # first of the list, each with all others: 11 s


@dataclass(frozen=True)
class Review:
    """What is to be looked at.

    Attributes:
        facts: fdr or budget, audit, seed; judged, listed and rest, numbers of images; largest_p and least_real of the
            list, None where it is empty; least_p, the smallest that the calibration allows.
        rows: Columns of `schema.REVIEW`, and drawn (whether it is of the random sample): the list by p-value, then the
            audit sample in random order, then repeats.
    """

    facts: dict[str, Any]
    rows: pd.DataFrame

    def of(self, part: ReviewPart) -> pd.DataFrame:
        """The rows of a part."""
        return self.rows[self.rows["part"] == str(part)]

    def lines(self) -> list[str]:
        """For people."""
        facts, repeated, sampled = self.facts, *(len(self.of(part)) for part in (ReviewPart.REPEAT, ReviewPart.AUDIT))
        if facts["listed"]:
            real = f"p <= {facts['largest_p']:.2g}, at least {facts['least_real']:.0%} of them real findings to expect"
            lines = [
                f"{facts['listed']:,} of {facts['judged']:,} judged images are listed: {real}, if the p-values hold"
            ]
        else:
            least = np.ceil(facts["judged"] * facts["least_p"] / facts["fdr"])
            lines = [
                f"no list keeps a false discovery rate of {facts['fdr']:g}: this calibration's smallest p-value is "
                f"{facts['least_p']:.2g}, and {least:,.0f} images with it would make one; calibrate with more, or give "
                "--budget N"
            ]
        if repeated:
            lines.append(f"{repeated:,} of them show what others show at the same place, and are not shown again")
        return [*lines, f"{sampled:,} drawn at random of the {facts['rest']:,} others audit what the list misses"]


def plan(
    location: str, *, fdr: float | None = None, budget: int | None = None, audit: int = 100, seed: int = 0
) -> Review:
    """Chooses what of a run is looked at and writes it into the run, as review.csv and review.json.

    Args:
        location: A finished run.
        fdr: The list is the longest of which a share of at most so much is expected to be sound; by default 0.1.
        budget: Or it is so many images of smallest p-value, then highest score.
        audit: How many images that are not in it are drawn at random.
        seed: Of the draw.

    Raises:
        UsageError: fdr is out of range.
        InputError: The run is not finished, or has no p-value.
        RefusedError: It was judged anew meanwhile.
    """
    if fdr is not None and not 0 < fdr < 1:
        raise UsageError(f"--fdr {fdr:g}: must lie between 0 and 1")
    run = directory.open_finished(location)
    success = directory.success(run)
    results = finalize.read_results(location, ["image_id", "uri", "score", "p_value", "width", "height"]).to_pandas()
    judged = results[results["p_value"].notna()].reset_index(drop=True)
    if judged.empty:
        raise InputError(f"{location}: no image of it was judged; there is nothing to review")
    fdr = 0.1 if fdr is None and budget is None else fdr
    p_N = judged["p_value"].to_numpy()
    order = judged.sort_values(["p_value", "score"], ascending=[True, False], kind="stable").index
    chosen_N = judged.index.isin(order[:budget]) if fdr is None else benjamini_hochberg(p_N, fdr)
    drawn = _draw(chosen_N, audit, (seed, int(run.identity[:16], 16)))  # another run's draw is independent of it
    shown, sampled = order[chosen_N[order]], drawn[~chosen_N[drawn]]
    rows = judged.loc[[*shown, *sampled], ["image_id", "score", "p_value"]]
    rows["drawn"] = rows.index.isin(drawn)
    rows["part"] = np.where(rows.index.isin(shown), str(ReviewPart.LIST), str(ReviewPart.AUDIT))
    compared = shown[:_MOST_COMPARED]
    rows["repeat_of"] = _repeats(location, judged.loc[np.sort(compared)], compared).reindex(rows.index, fill_value="")
    rows.loc[rows["drawn"], "repeat_of"] = ""  # the whole sample is looked at
    rows.loc[rows["repeat_of"] != "", "part"] = str(ReviewPart.REPEAT)
    rows = rows.sort_values("part", key=lambda part: part.map([*ReviewPart].index), kind="stable")
    largest, least = (float(p_N[chosen_N].max()), least_real(p_N, chosen_N)) if len(shown) else (None, None)
    sizes = {"judged": len(judged), "listed": len(shown), "rest": len(judged) - len(shown)}
    facts = {"fdr": fdr, "budget": budget, "audit": audit, "seed": seed, **sizes}
    normals = len(judge.load(run).normals.score_n)
    made = Review({**facts, "largest_p": largest, "least_real": least, "least_p": 1 / (normals + 1)}, rows)
    text = bytes(finalize.csv_bytes(pa.Table.from_pylist(rows.to_dict("records"), REVIEW), header=True))
    content = {"facts": made.facts, "rows": rows.to_dict("list"), "csv": sha256(text).hexdigest()}
    if directory.success(run) != success:
        raise RefusedError(f"{location}: was judged anew meanwhile; call `crackvae review` again")
    directory.keep_edited(run)
    storage.write_bytes(run.path(directory.REVIEW), json.dumps(content, indent=1).encode())
    storage.write_bytes(run.path(directory.REVIEW_CSV), text)
    return made


def _repeats(location: str, listed: pd.DataFrame, order: pd.Index) -> pd.Series:
    """By row of the list: the image_id of the first one in this order that shows the same, "" for that one itself."""
    from crackvae.report import repeats  # 0.4 s to import, which a page does without

    boxes = findings.read_regions(location, listed["image_id"].tolist()).boxes
    alike = pd.Series(repeats.find(listed, boxes), listed.index)[order]
    return listed["image_id"][order].groupby(alike).transform("first").where(alike.duplicated(), "")


def _draw(chosen_N: np.ndarray, audit: int, seed: tuple[int, int]) -> np.ndarray:
    """Rows in random order, until so many of them are not chosen, or all rows."""
    order_N = np.random.default_rng(seed).permutation(len(chosen_N))
    others_N = np.cumsum(~chosen_N[order_N])
    return order_N[: np.searchsorted(others_N, min(audit, others_N[-1])) + 1]


def read(run: Run) -> Review | None:
    """What `plan` has written; None where it was not called since the results came.

    Raises:
        InputError: The file is damaged.
    """

    def parse(content: Any) -> Review:
        return Review(dict(content["facts"]), pd.DataFrame(content["rows"]))

    return storage.read_json(run.path(directory.REVIEW), parse, "call `crackvae review` again as before")
