import io
import struct
import time

import numpy as np
import pandas as pd
import pytest
from faults.corpus import tiffs
from PIL import ExifTags, Image, PngImagePlugin

from crackvae.images.decode import decode
from crackvae.report import overlay, views

GPS = {1: "N", 2: (46.0, 50.0, 33.69), 3: "W", 4: (91.0, 59.0, 39.94), 6: 198.6}
TAKEN = "2016:06:23 16:32:06"


def photo(width=300, height=200, level=160, orientation=1, **options):
    """A gray photograph as a file of a camera: with EXIF and a thumbnail."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    exif[ExifTags.Base.Make] = "Camera"
    exif[ExifTags.IFD.Exif] = {ExifTags.Base.DateTimeOriginal: TAKEN, ExifTags.Base.ExifImageWidth: width}
    exif[ExifTags.IFD.GPSInfo] = GPS
    return saved(Image.new("L", (width, height), level), exif=with_thumbnail(exif.tobytes()), **options)


def with_thumbnail(exif):
    """EXIF with a second directory after the first, as cameras write it: of a thumbnail of 4,000 bytes."""
    (count,) = struct.unpack_from("<H", exif, 14)
    link = 16 + 12 * count
    entries = struct.pack("<HHHIIHHIII", 2, 513, 4, 1, len(exif) - 6 + 30, 514, 4, 1, 4000, 0)
    return exif[:link] + struct.pack("<I", len(exif) - 6) + exif[link + 4 :] + entries + b"T" * 4000


def saved(image, kind="JPEG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return Image.open(io.BytesIO(file.getvalue()))


def draw(picture, map_HW=None, limit=0.1, boxes=(), title="IMG_0001.JPG", **options):
    map_HW = np.zeros(picture.size[::-1], np.float32) if map_HW is None else map_HW
    told = {"title": title, "score": 0.03, "p_value": 0.01, "is_bound": False}
    data = overlay.draw(picture, map_HW, np.ones_like(map_HW, bool), limit, boxes, **told, **options)
    return Image.open(io.BytesIO(data))


def pixels(image, height, width):
    return np.asarray(image.convert("RGB")).astype(int)[:height, (image.width - width) // 2 :][:, :width]


def test_exif_is_kept_for_upright_pixels_and_the_thumbnail_is_not():
    original = photo(orientation=6)
    assert b"T" * 4000 in original.info["exif"]
    picture = draw(original)
    exif = picture.getexif()
    assert exif[ExifTags.Base.Make] == "Camera"
    assert exif[ExifTags.Base.Orientation] == 1
    assert exif.get_ifd(ExifTags.IFD.Exif) == {ExifTags.Base.DateTimeOriginal: TAKEN}  # its width is another one now
    kept = exif.get_ifd(ExifTags.IFD.GPSInfo)
    assert (kept[1], kept[3]) == ("N", "W")
    assert [float(value) for value in kept[4]] == pytest.approx(GPS[4])
    assert exif.get_ifd(ExifTags.IFD.IFD1) == {}
    assert b"TTTT" not in picture.info["exif"]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_exif_of_other_formats_is_kept_without_their_layout(kind):
    exif = Image.Exif()
    exif[ExifTags.Base.Make], exif[ExifTags.IFD.GPSInfo], exif[ExifTags.Base.Orientation] = "Camera", GPS, 6
    picture = draw(saved(Image.new("L", (300, 200), 160), kind, exif=exif.tobytes()))
    assert set(picture.getexif()) == {ExifTags.Base.Make, ExifTags.Base.Orientation, ExifTags.IFD.GPSInfo}
    assert picture.height > 300


def hostile_exif():
    good = photo().info["exif"]
    rng = np.random.default_rng(0)
    for _ in range(40):
        damaged = bytearray(good)
        for place in rng.integers(6, len(good) - 4000, 8):
            damaged[place] = rng.integers(256)
        yield bytes(damaged)
    yield from (
        b"Exif\0\0",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        good[:40],
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01" * 60_000,
    )


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_hostile_exif_does_not_end_it():
    for exif in hostile_exif():
        assert draw(saved(Image.new("L", (64, 64)), exif=exif)).getexif()[ExifTags.Base.Orientation] == 1


def test_of_exif_that_does_not_fit_the_largest_is_left_out():
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "Camera"
    exif[ExifTags.IFD.Exif] = {ExifTags.Base.MakerNote: bytes(50_000), ExifTags.Base.DateTimeOriginal: TAKEN}
    exif[ExifTags.Base.ImageDescription] = "x" * 60_000
    kept = draw(saved(Image.new("L", (64, 64)), "PNG", exif=exif)).getexif()
    assert set(kept) == {ExifTags.Base.Make, ExifTags.Base.Orientation, ExifTags.IFD.Exif}
    assert len(kept.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.MakerNote]) == 50_000


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pixels_are_upright(orientation):
    upright_HW = np.full((200, 300), 200, np.uint8)
    upright_HW[:100, :150] = 40  # dark at the top left
    stored_HW = upright_HW
    if orientation in {3, 4, 7, 8}:
        stored_HW = stored_HW[::-1]
    if orientation in {2, 3, 6, 7}:
        stored_HW = stored_HW[:, ::-1]
    if orientation in {5, 6, 7, 8}:
        stored_HW = stored_HW.T
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    opened = saved(Image.fromarray(np.ascontiguousarray(stored_HW)), exif=exif)
    shown_HW3 = pixels(draw(opened, np.zeros((200, 300), np.float32)), 200, 300)
    assert np.abs(shown_HW3[..., 0] - upright_HW)[10:90, 10:-10].max() < 10


def test_the_metadata_of_a_heif_turn_no_picture():
    """A property of the file does; here it has none, and its XMP says otherwise, as `decode` is tested with."""
    stored_HW = np.full((200, 300), 200, np.uint8)
    stored_HW[:100, :150] = 40
    file = io.BytesIO()
    xmp = b"<tiff:Orientation>6 </tiff:Orientation>"
    Image.fromarray(stored_HW).save(file, "HEIF", quality=-1, xmp=xmp)
    data = file.getvalue().replace(b"irot", b"free")
    assert decode(data, min_side=32, max_megapixels=1).gray_HW.shape == (200, 300)
    with Image.open(io.BytesIO(data)) as image:
        picture, _ = overlay.upright(image, 300)
    assert np.abs(np.asarray(picture.convert("L")).astype(int) - stored_HW).max() < 10


@pytest.mark.parametrize("size", [(227, 227), (600, 401), (90, 60), (3000, 40)])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("stray", [b"", bytes(8)])
def test_a_small_picture_of_a_jpeg_is_the_same_by_either_decoder(size, orientation, stray):
    """By libjpeg-turbo from the file's bytes, and by Pillow, which is asked where that warns, as of stray bytes."""
    smooth_HW3 = np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    file = io.BytesIO()
    Image.fromarray(smooth_HW3).resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90, exif=exif)
    data = file.getvalue()[:-2] + stray + file.getvalue()[-2:]
    with Image.open(io.BytesIO(data)) as opened, Image.open(io.BytesIO(data)) as again:
        assert (overlay._reduced(again, data, (9, 9)) is None) == bool(stray)
        picture, scale = overlay.upright(opened, 96, data)
        by_pillow, scale_by_pillow = overlay.upright(again, 96)
    assert picture.size == by_pillow.size
    assert scale == scale_by_pillow
    difference_HW3 = np.asarray(picture).astype(int) - np.asarray(by_pillow)
    assert np.sqrt(np.square(difference_HW3).mean()) < 5  # gray levels; of a picture turned wrongly, over 40


def test_a_box_lies_where_its_region_is_in_a_smaller_picture():
    opened = photo(3000, 2000)
    shown_HW3 = pixels(
        draw(opened, np.zeros((100, 150), np.float32), boxes=[(900, 500, 600, 300)], side=1000), 667, 1000
    )
    drawn_HW = np.abs(shown_HW3 - 160).max(axis=2) > 40
    rows, columns = np.flatnonzero(drawn_HW.any(axis=1)), np.flatnonzero(drawn_HW.any(axis=0))
    assert (columns[0], columns[-1], rows[0], rows[-1]) == pytest.approx((300, 500, 167, 267), abs=4)
    assert not drawn_HW[180:250, 310:490].any()


def test_a_value_has_the_same_color_in_every_picture():
    ramp_HW = np.tile(np.linspace(0, 0.4, 300, dtype=np.float32), (200, 1))
    higher_HW = np.where(np.arange(200)[:, None] < 100, ramp_HW, 5).astype(np.float32)
    low, high = (pixels(draw(photo(), map_HW), 100, 300)[20:80] for map_HW in (ramp_HW, higher_HW))
    assert np.abs(low - high).max() < 12
    half = pixels(draw(photo(), ramp_HW / 2, limit=0.05), 100, 300)[20:80]
    assert np.abs(low - half).max() < 12


def test_the_map_is_clear_at_zero_and_shows_the_most_at_four_limits():
    ramp_HW = np.tile(np.linspace(0, 0.8, 300, dtype=np.float32), (200, 1))
    shown_HW3 = pixels(draw(photo(), ramp_HW), 200, 300)[100]
    assert np.abs(shown_HW3[2] - 160).max() < 8
    assert np.abs(shown_HW3[160:-10] - shown_HW3[-10]).max() < 12
    assert shown_HW3[-10, 2] < 80  # yellow


def test_a_thin_crack_is_not_averaged_away():
    map_HW = np.zeros((2000, 3000), np.float32)
    map_HW[:, 1500] = 0.4
    shown_HW3 = pixels(draw(photo(3000, 2000), map_HW, side=500), 333, 500)
    assert shown_HW3[100, 245:256, 2].min() < 110


def test_small_photographs_and_odd_names_have_a_bar_that_holds_them():
    for title in ("x" * 500, "\ud800 line\nbreak", "", "Brücke 3.jpg"):
        picture = draw(photo(40, 30), title=title)
        assert picture.width == 640
        assert picture.height > 30 + 60


def test_a_limit_that_is_not_known_colors_nothing():
    assert np.abs(pixels(draw(photo(), np.ones((200, 300), np.float32), limit=np.inf), 200, 300) - 160).max() < 8


@pytest.mark.parametrize("mode", ["1", "P", "LA", "RGBA", "CMYK", "YCbCr", "I;16"])
def test_every_kind_of_pixels_is_shown(mode):
    deep = Image.fromarray(np.full((200, 300), 255 * 257, np.uint16))
    image = deep if mode == "I;16" else Image.new("L", (300, 200), 255).convert(mode)
    assert pixels(draw(saved(image, "TIFF")), 200, 300).min() > 245


def test_a_deck_is_drawn_well_under_a_second_besides_decoding(real_data):
    path = real_data / "sdnet2018-decks" / "7002.jpg"
    gray_HW = np.asarray(Image.open(path).convert("L"))
    map_HW = (gray_HW[::2, ::2] < 120) * np.float32(1)
    start = time.process_time()
    picture = draw(Image.open(path), map_HW, boxes=[(2000, 80, 500, 500)])
    assert time.process_time() - start < 2  # 0.4 s measured
    assert max(picture.size) == 2000


def test_deep_gray_levels_are_shown_as_they_are_decoded():
    """Of scanners: 12 and 16 bits, with white as zero or black."""
    deep = 0
    for data in (data for kind in tiffs.SCORED for data in kind.files.values() if isinstance(data, bytes)):
        photo = Image.open(io.BytesIO(data))
        if photo.mode.startswith("I;16"):
            deep += 1
            picture, _ = overlay.upright(photo, 1000)
            decoded_HW = decode(data, min_side=1, max_megapixels=1).gray_HW
            np.testing.assert_array_equal(np.asarray(picture.convert("L")), decoded_HW)
    assert deep >= 4


@pytest.mark.parametrize("kind", ["PNG", "GIF", "JPEG"])
def test_a_thumbnail_takes_no_comment_along(kind, tmp_path):
    """Of any length: a place may stand in it, and a JPEG has no room for one of over 64 kB."""
    secret = "50.123456N" + "x" * (60_000 if kind == "JPEG" else 70_000)
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", secret)
    options = {"pnginfo": text} if kind == "PNG" else {"comment": secret.encode()}
    path = tmp_path / f"a.{kind.lower()}"
    Image.new("L", (300, 200), 160).save(path, kind, **options)
    assert b"50.123456N" in path.read_bytes()
    row = {"image_id": path.name, "uri": path.as_uri(), "width": 300, "height": 200}
    [(data, reason)] = views.thumbnails(pd.DataFrame([row]), {})
    assert reason == ""
    assert b"50.123456N" not in data
    assert len(data) < 2_000
