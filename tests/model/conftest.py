import numpy as np
import pytest
import torch
from tiny import TINY

from crackvae.model import artifact
from crackvae.model.artifact import Artifact, Calibration
from crackvae.schema import BASELINES, LOOKS
from crackvae.statistics.calibration import Normals


@pytest.fixture(scope="session")
def tiny_artifact():
    """An untrained tiny network with made-up calibration scores."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    baselines = {name: rng.integers(0, 90, 30).astype(np.float32) for name in BASELINES}
    looks = {name: rng.normal(size=30).astype(np.float32) for name in LOOKS}
    score_n = rng.random(30).astype(np.float32)
    normals = Normals(score_n, score_n, np.ones(30))
    calibration = Calibration([f"{i}.jpg" for i in range(30)], baselines, looks, normals)
    history = [{"epoch": 1, "mse": 0.1, "kl": 2.0, "val_mse": 0.2}]
    weights = artifact.build_network(TINY).state_dict()
    return Artifact(TINY, weights, calibration, history, {"data": "none"})
