"""The rows of a run that a page and pictures are drawn from, in memory that does not grow with the run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

MOST_SAMPLED = 2**18
"""Of a run of no more rows, the sample is all of them."""


@dataclass(frozen=True)
class Excerpt:
    """Some rows of a run. Their index is their place in it, and they are in its order.

    Attributes:
        chosen: Those asked for.
        sample: All rows, or where they are many some at random.
        one_in: How many rows of the run there are for one of the sample.
    """

    chosen: pd.DataFrame
    sample: pd.DataFrame
    one_in: int

    def all(self) -> pd.DataFrame:
        """Both, each row once."""
        both = pd.concat([self.chosen, self.sample])
        return both[~both.index.duplicated()].sort_index()


def take(blocks: Iterable[pd.DataFrame], choose: Callable[[pd.DataFrame], pd.Index[int]]) -> Excerpt:
    """Reads a run block by block.

    Args:
        blocks: Its rows.
        choose: Says which of some rows are wanted. Whatever it chooses of all rows it must choose of any part of
            them that holds it: the highest scores are such a choice, a random one is not.
    """
    chosen = sample = pd.DataFrame()
    generator, one_in, start = np.random.default_rng(0), 1, 0
    for block in blocks:
        rows = block.set_axis(pd.RangeIndex(start, start := start + len(block)))
        chosen = pd.concat([chosen, rows])
        chosen = chosen.loc[choose(chosen).sort_values()]
        rows = rows.assign(drawn=generator.random(len(rows)))
        sample = pd.concat([sample, rows[rows["drawn"] * one_in < 1]])
        while len(sample) > MOST_SAMPLED:
            one_in *= 2
            sample = sample[sample["drawn"] * one_in < 1]
    return Excerpt(chosen, sample.drop(columns="drawn"), one_in)
