from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import TINY_NATIVE

from crackvae.images.evidence import Scale
from crackvae.model import artifact, card
from crackvae.model.artifact import Photographs
from crackvae.statistics import domain


def test_the_card_tells_what_the_artifact_holds(tiny_artifact):
    told = {
        "train_normals": 12_345,
        "data": "ab" * 32,
        "date": "2026-01-02",
        "crackvae": "9.9",
        "start_from": "cd" * 32,
    }
    text = card.write(replace(tiny_artifact, provenance=told))
    parameters = sum(weight.numel() for weight in tiny_artifact.network().parameters())
    for known in (f"{parameters:,} parameters", "12,345 sound images", "abababababababab...", "2026-01-02", "9.9",
                  "weights of model cdcd", "validation error 0.20000", "30 other sound images", "alpha 0.2",
                  "with a probability of 19.4%", "mean squared error"):  # fmt: skip
        assert known in text
    assert "tiles" not in text


def test_the_card_of_an_artifact_that_tells_little_claims_nothing(tiny_artifact):
    text = card.write(replace(tiny_artifact, provenance={}, history=[]))
    assert "an unknown number of sound images" in text
    assert "validation error" not in text


@pytest.mark.parametrize(("coarsest", "said"), [(0.5, "up to 0.5 mm"), (None, "pixel pitch unknown")])
def test_the_card_of_a_model_of_photographs_tells_sizes_and_pitch(tiny_artifact, coarsest, said):
    config = TINY_NATIVE.with_tiling("native")
    torch.manual_seed(0)
    tiles_n = np.arange(4, 34, dtype=np.int32)
    kept = tiny_artifact.calibration
    normals = replace(kept.normals, tiles_n=tiles_n)
    feature_NF = np.random.default_rng(0).normal(100, 10, (50, 5))
    photographs = Photographs(domain.fit(feature_NF, coarsest), Scale(1, 1, 1, 1, 1, 1), 50.0, 0.1)
    model = replace(
        tiny_artifact, config=config, weights=artifact.build_network(config).state_dict(),
        calibration=replace(kept, normals=normals), photographs=photographs,
    )  # fmt: skip
    text = card.write(model)
    assert "of 4 to 33 tiles" in text
    assert said in text
    assert "long, dark lines" in text
