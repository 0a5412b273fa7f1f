"""Finds cracks in photographs of concrete as anomalies.

>>> from crackvae import AnomalyScorer
>>> AnomalyScorer.load("model").score(["bridge.jpg"])  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crackvae.model.anomaly import AnomalyScorer

__all__ = ["AnomalyScorer", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "AnomalyScorer":  # torch takes 1.5 s to import; `crackvae --help` does without
        from crackvae.model.anomaly import AnomalyScorer

        return AnomalyScorer
    raise AttributeError(f"module 'crackvae' has no attribute {name!r}")
