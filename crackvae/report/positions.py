"""Where photographs were taken, as an SVG that needs no tiles of a map server."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from markupsafe import Markup, escape

from crackvae.schema import Label

MOST_POINTS = 5000

_METRES = 111_195.0  # a degree of a great circle
_SIDE, _EDGE = 640.0, 24.0
_NAME_LETTERS = 60
_LEAST_METRES = 10.0  # that a map spans
# A shape for each outcome besides its color, for eyes and printers that tell no colors apart.
_SHAPES = {
    str(Label.CRACK): '<path class="crack" d="M{x:.1f} {y:.1f}m0-6 6 6-6 6-6-6z">',
    str(Label.NORMAL): '<circle class="normal" cx="{x:.1f}" cy="{y:.1f}" r="3.5">',
    "": '<path class="none" d="M{x:.1f} {y:.1f}m-4-4 8 8m0-8-8 8">',
}


def placed(photographs: pd.DataFrame) -> pd.DataFrame:
    """Those whose position is known."""
    return photographs[(photographs["latitude"].abs() <= 90) & (photographs["longitude"].abs() <= 180)]


def draw(photographs: pd.DataFrame) -> tuple[Markup, int]:
    """Draws positions, flagged ones last and so on top.

    Args:
        photographs: Columns image_id, latitude, longitude and prediction.

    Returns:
        An SVG element, empty where none has a position; and how many are drawn.
    """
    rows = placed(photographs).assign(prediction=lambda rows: rows["prediction"].fillna(""))
    is_crack = rows["prediction"] == str(Label.CRACK)
    flagged, others = rows[is_crack][:MOST_POINTS], rows[~is_crack]
    others = others.iloc[:: max(1, -(-len(others) // max(1, MOST_POINTS - len(flagged))))]
    shown = pd.concat([others[: MOST_POINTS - len(flagged)], flagged])
    if shown.empty:
        return Markup(), 0
    latitude, first = shown["latitude"].median(), shown["longitude"].iloc[0]
    from_first_N = (shown["longitude"] - first + 180) % 360 - 180  # also across the antimeridian
    east_N = from_first_N - from_first_N.median()
    east_N = _METRES * math.cos(math.radians(latitude)) * east_N.to_numpy()
    north_N = _METRES * (shown["latitude"] - latitude).to_numpy()
    span = max(np.ptp(east_N), np.ptp(north_N), _LEAST_METRES)
    scale = (_SIDE - 2 * _EDGE) / span
    x_N = _SIDE / 2 + scale * (east_N - (east_N.max() + east_N.min()) / 2)
    height = scale * np.ptp(north_N) + 2 * _EDGE + 40
    y_N = _EDGE + scale * (north_N.max() - north_N)
    points = []
    for name, prediction, x, y in zip(shown["image_id"], shown["prediction"], x_N, y_N, strict=True):
        shape = _SHAPES[prediction].format(x=x, y=y)
        closing = shape[1 : shape.index(" ")]
        points.append(
            f"{shape}<title>{escape(name[-_NAME_LETTERS:])}: {prediction or 'not judged'}</title></{closing}>"
        )
    label = f"{len(shown):,} positions, {len(flagged):,} of them flagged; north is up"
    opening = f'<svg class="map" role="img" aria-label="{label}" viewBox="0 0 {_SIDE:.0f} {height:.0f}">'
    return Markup(opening + "".join(points) + _bar(span, scale, height) + "</svg>"), len(shown)


def _bar(span: float, scale: float, height: float) -> str:
    """A scale bar of 1, 2 or 5 times a power of ten, at most a third of the width."""
    power = 10.0 ** math.floor(math.log10(span / 3))
    metres = power * max(step for step in (1, 2, 5) if step * power <= span / 3)
    text = f"{metres / 1000:g} km" if metres >= 1000 else f"{metres:g} m"
    line = f'<path class="bar" d="M{_EDGE:.0f} {height - 12:.1f}h{scale * metres:.1f}"/>'
    return f'{line}<text x="{_EDGE:.0f}" y="{height - 20:.1f}">{text}</text>'
