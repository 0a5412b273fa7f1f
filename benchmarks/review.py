"""Whether a review keeps what it says, from a labelled run: `python benchmarks/review.py RUN`.

RUN is what `make accuracy` makes of METU (WORK/metu-0-run). 200 times the sound images are divided at random into a
calibration and a survey, to which cracked ones come; the survey is reviewed, and the labels decide.
"""

from __future__ import annotations

import sys

import numpy as np

from crackvae.report import review
from crackvae.report.tables import markdown
from crackvae.run import finalize
from crackvae.statistics.calibration import Floats, p_values
from crackvae.statistics.discovery import benjamini_hochberg, exact_interval, least_real

_DRAWS, _CALIBRATION, _AUDIT = 200, 1000, 100


def main() -> None:
    """Prints Markdown tables: of lists by false discovery rate, of lists by budget, and of calibrations joined."""
    frame = finalize.read_results(sys.argv[1]).to_pandas()
    frame = frame[frame.score.notna() & ~frame.p_value_is_bound.fillna(False).astype(bool)].drop_duplicates("group")
    sound_N, cracked_N = (frame.score[frame.label == label].to_numpy(np.float64) for label in ("normal", "crack"))
    print(f"{len(sound_N):,} sound and {len(cracked_N):,} cracked images, one of each twin group; {_DRAWS} draws\n")
    lists = [_row(sound_N, cracked_N, share, fdr=fdr) for share in (0.01, 0.1) for fdr in (0.1, 0.2)]
    header = ["cracked", "FDR asked for", "reached, mean", "95% of draws", "no list", "listed, median", "cracks found"]
    header += ["missed: mean bound", "holds in"]
    print(markdown(header, lists), end="\n\n")
    budgets = [_row(sound_N, cracked_N, share, budget=budget) for share in (0.01, 0.1) for budget in (50, 200)]
    header[1:3] = ["budget", "sound share told at most, mean; reached, mean"]
    print(markdown(header, budgets), end="\n\n")
    print(markdown(["normals that join 500", "flagged at alpha 1%", "at 5%"], _joined(sound_N)))


def _row(
    sound_N: Floats, cracked_N: Floats, prevalence: float, *, fdr: float = 0.1, budget: int | None = None
) -> list[str]:
    generator = np.random.default_rng(0)
    false, told, listed, found, bound, holds = [], [], [], [], [], []
    for seed in range(_DRAWS):
        drawn_N = generator.permutation(sound_N)
        survey_N = drawn_N[_CALIBRATION:]
        cracks = round(len(survey_N) * prevalence / (1 - prevalence))
        score_N = np.concatenate([generator.choice(cracked_N, cracks, replace=False), survey_N])
        is_crack_N = np.arange(len(score_N)) < cracks
        p_N = p_values(score_N, drawn_N[:_CALIBRATION])
        chosen_N = benjamini_hochberg(p_N, fdr)
        if budget is not None:
            chosen_N = np.isin(np.arange(len(p_N)), np.lexsort((-score_N, p_N))[:budget])
        audit = review._draw(chosen_N, _AUDIT, seed)
        audit = audit[~chosen_N[audit]]
        false.append(np.mean(~is_crack_N[chosen_N]) if chosen_N.any() else 0.0)
        told.append(1 - least_real(p_N, chosen_N) if chosen_N.any() else 0.0)
        listed.append(chosen_N.sum())
        found.append(np.mean(chosen_N[is_crack_N]))
        bound.append(exact_interval(int(is_crack_N[audit].sum()), len(audit), upper=True)[1])
        holds.append(np.mean(is_crack_N[~chosen_N]) <= bound[-1])
    low, high = np.quantile(false, [0.025, 0.975])
    asked = [f"{fdr:.0%}", f"{np.mean(false):.1%}"]
    if budget is not None:
        asked = [f"{budget}", f"{np.mean(told):.1%}; {np.mean(false):.1%}"]
    return [
        f"{prevalence:.0%} of {len(score_N):,}", *asked, f"{low:.1%} to {high:.1%}",
        f"{np.mean(np.equal(listed, 0)):.0%}", f"{np.median(listed):.0f}", f"{np.mean(found):.1%}",
        f"{np.mean(bound):.1%}", f"{np.mean(holds):.1%}",
    ]  # fmt: skip


def _joined(sound_N: Floats) -> list[list[str]]:
    """Rates of false alarms where sound images of another survey of 2,000 have joined a calibration of 500.

    Of a list of the 100 smallest p-values; of what it leaves, which lacks the highest scores; or of all at random.
    """
    generator = np.random.default_rng(0)
    kinds = ("none", "500 of the random sample", "500 of those not listed", "the 100 listed")
    rates: dict[str, list[list[float]]] = {kind: [] for kind in kinds}
    for _ in range(_DRAWS):
        before_N, survey_N, test_N = np.split(generator.permutation(sound_N), [500, 2500])
        by_score_N = np.sort(survey_N)
        joining = (survey_N[:0], survey_N[:500], generator.choice(by_score_N[:-100], 500, False), by_score_N[-100:])
        for kind, joins_N in zip(kinds, joining, strict=True):
            p_N = p_values(test_N, np.concatenate([before_N, joins_N]))
            rates[kind].append([np.mean(p_N <= alpha) for alpha in (0.01, 0.05)])
    return [[kind, *(f"{rate:.2%}" for rate in np.mean(found, axis=0))] for kind, found in rates.items()]


if __name__ == "__main__":
    main()
