"""What only a GPU shows: that it scores what processors score, and the same bytes every time."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from crackvae import cli
from crackvae.images import synthetic
from crackvae.run import finalize, shards

pytestmark = [pytest.mark.ray, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]


@pytest.mark.parametrize("of", ["images, read by processors for the GPU", "photographs, by workers that share it"])
def test_a_gpu_scores_like_a_processor_and_the_same_bytes_every_time(of, model, tmp_path):
    synthetic.write_survey(tmp_path / "survey", normals=20, cracks=10, size=300)
    results = {}
    for name, device in (("processor", "cpu"), ("gpu", "cuda"), ("again", "cuda")):
        chosen = str(model) if of.startswith("images") else "pretrained"
        command = ["score", chosen, str(tmp_path / "survey"), "--out", str(tmp_path / name), "--device", device]
        assert cli.main(command) == 0
        results[name] = finalize.read_results(str(tmp_path / name)).to_pandas()
    pd.testing.assert_series_equal(results["gpu"].status, results["processor"].status)
    assert results["gpu"].score.notna().sum() > 20
    np.testing.assert_allclose(results["gpu"].score, results["processor"].score, rtol=0.02)
    gpu, again = (Path(tmp_path, name, shards.part_name(0)).read_bytes() for name in ("gpu", "again"))
    assert gpu == again
