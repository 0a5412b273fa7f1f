"""Scored runs for the page: one of photographs with all that can go wrong, one of images of a tile."""

import io

import local
import pytest
from PIL import ExifTags, Image

from crackvae.cluster import scoring
from crackvae.images import synthetic

SCRIPT = "<img src=x onerror=window.broken=1>&amp;'\".jpg"
ENDING = "a</script><script>window.broken=1</script>.jpg"
PLACE = (46.125, -91.875)  # what the EXIF below comes to


def _with_position(data):
    exif = Image.Exif()
    exif[ExifTags.IFD.GPSInfo] = {1: "N", 2: (46.0, 7.0, 30.0), 3: "W", 4: (91.0, 52.0, 30.0)}
    file = io.BytesIO()
    Image.open(io.BytesIO(data)).save(file, "JPEG", exif=exif.tobytes(), quality=92)
    return file.getvalue()


@pytest.fixture(scope="session")
def photographs(tmp_path_factory):
    """19 photographs with labels: hostile names, positions, one that is damaged, one too small."""
    folder = tmp_path_factory.mktemp("photographs") / "bridge"
    synthetic.write_survey(
        folder, normals=9, cracks=8, size=416
    )  # the largest that the calibration's are compared with
    cracks = sorted((folder / "crack").iterdir())
    cracks[0].rename(folder / "crack" / SCRIPT)
    (folder / "crack" / ENDING).parent.mkdir(parents=True)
    cracks[1].rename(folder / "crack" / ENDING)
    for path in (cracks[2], folder / "normal" / "0000.jpg"):
        path.write_bytes(_with_position(path.read_bytes()))
    (folder / "normal" / "damaged.jpg").write_bytes(cracks[3].read_bytes()[:900])
    Image.new("L", (8, 8)).save(folder / "normal" / "small.jpg")
    return folder


@pytest.fixture(scope="session")
def photograph_run(photographs, tmp_path_factory):
    """They, scored by the model that comes with the package."""
    out = str(tmp_path_factory.mktemp("runs") / "photographs")
    with local.without_ray():
        scoring.score("pretrained", [str(photographs)], out)
    return out


@pytest.fixture(scope="session")
def tile_run(model, survey, tmp_path_factory):
    """160 images of one tile each, scored by the tiny model."""
    out = str(tmp_path_factory.mktemp("runs") / "tiles")
    with local.without_ray():
        scoring.score(str(model), [str(survey)], out)
    return out
