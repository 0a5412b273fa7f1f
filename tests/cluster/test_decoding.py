import os

import numpy as np
import pyarrow as pa
import pytest
import ray
from PIL import Image

from crackvae import storage
from crackvae.cluster.decoding import decode_batch
from crackvae.config import ImageConfig
from crackvae.dataset.reader import Reader
from crackvae.dataset.tiles import pixels, read_image
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
        expected = [pixels(read_image(reader, IMAGE, uri), IMAGE)[0] for uri in uris[1:]]
    with Image.open(paths[0]) as image:
        image.load()
    image.save(paths[0], "JPEG", comment="bug")
    (tmp_path / "sitecustomize.py").write_text(BUG)

    @ray.remote(max_retries=0)
    def decode():
        os.environ["PYTHONPATH"] = str(tmp_path)
        return decode_batch(pa.table({"uri": uris}), IMAGE, 1)["tile"]

    assert np.array_equal(ray.get(decode.remote()), expected)


def test_an_image_gives_as_many_native_tiles_as_asked_for_and_counts_once(tmp_path):
    synthetic.write_survey(tmp_path / "images", normals=3, cracks=0, size=160)
    paths = sorted((tmp_path / "images" / "normal").iterdir())
    paths[1].write_bytes(b"no image")
    files = pa.table({"uri": [storage.to_uri(str(path)) for path in paths]})
    native = IMAGE.model_copy(update={"tiling": "native"})
    for most, tiles in ((100, 25), (7, 7)):
        batch = decode_batch(files, native, most)
        assert batch["tile"].shape == (2 * tiles, 32, 32)
        assert batch["feature"].shape == (2 * tiles, 5)
        assert batch["is_first"].sum() == 2
    whole = decode_batch(files, native, 100)
    assert np.array_equal(decode_batch(files, native, 100)["tile"], whole["tile"])
    pitched = native.model_copy(update={"mm_per_pixel": 0.5})  # and these do not say what they have
    assert decode_batch(files, pitched, 100)["is_first"].sum() == 0
