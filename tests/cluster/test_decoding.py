import os

import numpy as np
import pyarrow as pa
import pytest
import ray
from PIL import Image

from crackvae import storage
from crackvae.cluster.decoding import decode_batch
from crackvae.config import ImageConfig
from crackvae.dataset.sources import Reader
from crackvae.dataset.tiles import read_tile
from crackvae.images import synthetic

pytestmark = pytest.mark.ray

IMAGE = ImageConfig(tile_size=32, max_seconds=31)  # a decoder of its own, in whichever worker
BUG = """
import ctypes, sys

if "crackvae.dataset.decoder_process" in sys.orig_argv:
    import simplejpeg

    genuine = simplejpeg.decode_jpeg
    simplejpeg.decode_jpeg = lambda data, **options: (
        ctypes.string_at(0) if b"bug" in data else genuine(data, **options)
    )
"""


def test_a_file_that_kills_its_decoder_is_left_out_and_the_ray_worker_lives(tmp_path, ray_session):
    synthetic.write_survey(tmp_path / "images", normals=4, cracks=0, size=64)
    paths = sorted((tmp_path / "images" / "normal").iterdir())
    uris = [storage.to_uri(str(path)) for path in paths]
    with Reader() as reader:
        expected = [read_tile(reader, IMAGE, uri)[0] for uri in uris[1:]]
    with Image.open(paths[0]) as image:
        image.load()
    image.save(paths[0], "JPEG", comment="bug")
    (tmp_path / "sitecustomize.py").write_text(BUG)

    @ray.remote(max_retries=0)
    def decode():
        os.environ["PYTHONPATH"] = str(tmp_path)
        return decode_batch(pa.table({"uri": uris}), IMAGE)["tile"]

    assert np.array_equal(ray.get(decode.remote()), expected)
