"""Scoring as on any machine where no cluster is named, although the tests' own Ray is there.

A run begins in 0.1 s instead of 10, which Ray's workers take to import what they need.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import cv2
import pytest
import torch

from crackvae.cluster import here, survey


@contextmanager
def without_ray() -> Iterator[None]:
    here.prepare()  # the first who calls decides what is imported beforehand
    threads = torch.get_num_threads(), cv2.getNumThreads()
    found = SimpleNamespace(is_local=here.is_local, ray_runs=lambda: False, scored=here.scored)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(survey, "here", found)
        try:
            yield
        finally:
            torch.set_num_threads(threads[0])  # a single shard is scored by this process
            cv2.setNumThreads(threads[1])
