import io
import struct
import zlib

import cv2
import numpy as np
import pillow_heif
import pytest
import simplejpeg
from PIL import Image

from crackvae.errors import ImageError
from crackvae.images import decode as decoding
from crackvae.images import synthetic
from crackvae.schema import Status

GRAY_HW = synthetic.cracked(np.random.default_rng(5), 72, 104, width_px=4)[0]
SMOOTH_HW = cv2.GaussianBlur(GRAY_HW, (0, 0), 2)  # what JPEG changes by little
TINTED = Image.merge("RGB", [Image.fromarray(np.clip(SMOOTH_HW * f, 0, 255).astype(np.uint8)) for f in (1, 0.9, 0.8)])
ORIENTATION = 0x0112


def decode(data, min_side=16, max_megapixels=200):
    return decoding.decode(data, min_side=min_side, max_megapixels=max_megapixels).gray_HW


def encode(image, kind, **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def gray(mode="L"):
    return Image.fromarray(GRAY_HW).convert(mode)


def pillows(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("L")).astype(int)


def difference(first_HW, second_HW):
    assert first_HW.shape == second_HW.shape
    return np.abs(np.asarray(first_HW).astype(int) - second_HW).max()


def refusal(data, **limits):
    with pytest.raises(ImageError) as caught:
        decode(data, **limits)
    assert "\n" not in caught.value.message
    return caught.value.status, caught.value.message


def exif(orientation):
    tags = Image.Exif()
    tags[ORIENTATION] = orientation
    return tags


@pytest.mark.parametrize(
    ("image", "options"),
    [
        (Image.fromarray(SMOOTH_HW), {}),
        (TINTED, {}),
        (TINTED, {"progressive": True}),
        (TINTED, {"subsampling": "4:4:4"}),
        (TINTED, {"keep_rgb": True}),
        (TINTED, {"quality": 30}),
    ],
    ids=["gray", "4:2:0", "progressive", "4:4:4", "no YCbCr", "low quality"],
)
def test_the_fast_path_gives_pillows_gray_levels(image, options):
    data = encode(image, "JPEG", **options)
    simplejpeg.decode_jpeg(data, colorspace="GRAY", strict=True)  # the fast path is what is tested
    assert difference(decode(data), pillows(data)) <= 2


def test_the_gray_levels_of_a_jpeg_are_those_that_were_encoded():
    data = encode(Image.fromarray(SMOOTH_HW), "JPEG", quality=100, subsampling=0)
    assert difference(decode(data), SMOOTH_HW) <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "HEIF"])
def test_every_exif_orientation_ends_upright(kind, orientation):
    # How a camera stores a scene that its tag then turns upright (CIPA DC-008).
    stored_HW = {
        1: SMOOTH_HW,
        2: SMOOTH_HW[:, ::-1],
        3: SMOOTH_HW[::-1, ::-1],
        4: SMOOTH_HW[::-1],
        5: SMOOTH_HW.T,
        6: np.rot90(SMOOTH_HW),
        7: SMOOTH_HW[::-1, ::-1].T,
        8: np.rot90(SMOOTH_HW, -1),
    }[orientation]
    options = {"JPEG": {"quality": 100}, "WEBP": {"lossless": True}, "HEIF": {"quality": -1}}.get(kind, {})
    image = Image.fromarray(np.ascontiguousarray(stored_HW))
    upright_HW = decode(encode(image, kind, exif=exif(orientation).tobytes(), **options))
    assert difference(upright_HW, SMOOTH_HW) <= 2
    assert upright_HW.flags.c_contiguous


@pytest.mark.filterwarnings("ignore:Corrupt EXIF:UserWarning")
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("tags", [b"", b"MM\0*\xff\xff\xff\xff", b"II*\0junk"])
def test_damaged_exif_does_not_spoil_the_pixels(kind, tags):
    data = encode(Image.fromarray(SMOOTH_HW), kind, exif=b"Exif\0\0" + tags)
    assert difference(decode(data), pillows(data)) <= 2


def test_an_orientation_that_does_not_exist_is_none():
    assert decode(encode(gray(), "PNG", exif=exif(9))).shape == GRAY_HW.shape


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_a_cmyk_jpeg_is_gray_as_pillow_sees_it(options):
    data = encode(TINTED.convert("CMYK"), "JPEG", quality=95, **options)
    assert difference(decode(data), pillows(data)) == 0
    assert difference(decode(data), np.asarray(TINTED.convert("L"))) <= 12


def test_the_first_frame_of_an_mpo_is_decoded():
    data = encode(TINTED, "MPO", save_all=True, append_images=[TINTED.transpose(1)])
    assert Image.open(io.BytesIO(data)).format == "MPO"
    assert difference(decode(data), pillows(data)) <= 2


def test_photographs_of_a_drone_are_decoded(real_data):
    path = min((real_data / "drone-gps").glob("*.JPG"))
    assert Image.open(path).format == "MPO"
    # Where a color is too vivid for RGB, clipping it changes what Pillow takes for its gray.
    off_HW = np.abs(decode(path.read_bytes()) - pillows(path.read_bytes()))
    assert (off_HW > 2).mean() < 0.01
    assert off_HW.max() < 30


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
@pytest.mark.parametrize("filling", [b"\0", b"\xf6"])
def test_photographs_of_a_drone_with_a_filled_tail_are_undecodable(real_data, share, filling):
    """Pillow decodes two of these three, with up to 44% of the pixels wrong."""
    for path in (real_data / "drone-gps").glob("*.JPG"):
        data = path.read_bytes()
        kept = int(len(data) * share)
        assert refusal(data[:kept] + filling * (len(data) - kept))[0] == Status.UNDECODABLE


def test_a_photograph_without_its_end_marker_is_decoded_unless_it_is_progressive():
    np.testing.assert_array_equal(decode(WHOLE["JPEG"][:-2]), decode(WHOLE["JPEG"]))
    assert refusal(WHOLE["progressive JPEG"][:-2]) == (Status.UNDECODABLE, "Premature end of JPEG file")


@pytest.mark.parametrize(("stray", "lost"), [(90, False), (120, True)])
def test_many_stray_bytes_before_the_end_marker_are_the_rest_of_damage(stray, lost):
    data = WHOLE["JPEG"][:-2] + b"x" * stray + WHOLE["JPEG"][-2:]
    if lost:
        assert "extraneous bytes before marker 0xd9" in refusal(data)[1]
    else:
        np.testing.assert_array_equal(decode(data), pillows(WHOLE["JPEG"]))


@pytest.mark.parametrize(("scans", "fine"), [(100, True), (101, False)])
def test_a_progressive_jpeg_has_at_most_100_scans(scans, fine):
    data = WHOLE["progressive JPEG"]
    last = data[data.rindex(b"\xff\xda") : -2]
    data = data[:-2] + last * (scans - data.count(b"\xff\xda")) + data[-2:]
    if fine:
        assert decode(data).shape == GRAY_HW.shape
    else:
        assert refusal(data) == (Status.UNDECODABLE, "a JPEG of over 100 scans")


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "GIF", "PPM", "JPEG2000"])
def test_gray_levels_of_lossless_formats_are_exact(kind):
    np.testing.assert_array_equal(decode(encode(gray(), kind)), GRAY_HW)


def test_one_bit_is_black_and_white():
    bits_HW = np.median(GRAY_HW) < GRAY_HW
    np.testing.assert_array_equal(decode(encode(Image.fromarray(bits_HW), "PNG")), bits_HW * 255)


def test_a_palette_is_looked_up():
    image = Image.fromarray(np.minimum(GRAY_HW // 32, 7), "P")
    image.putpalette([level for index in range(8) for level in [255 - 30 * index] * 3])
    np.testing.assert_array_equal(decode(encode(image, "PNG")), 255 - 30 * (GRAY_HW // 32))


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_transparency_is_ignored(mode):
    image = gray(mode)
    image.putalpha(Image.fromarray(np.indices(GRAY_HW.shape).sum(axis=0).astype(np.uint8)))
    np.testing.assert_array_equal(decode(encode(image, "PNG")), GRAY_HW)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled_not_clipped(kind):
    data = encode(Image.fromarray(GRAY_HW.astype(np.uint16) * 257), kind)
    np.testing.assert_array_equal(decode(data), GRAY_HW)


def test_sixteen_bits_of_the_other_byte_order_are_read():
    image = Image.frombytes("I;16B", gray().size, (GRAY_HW.astype(">u2") * 257).tobytes())
    np.testing.assert_array_equal(decode(encode(image, "TIFF")), GRAY_HW)


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pixels_without_a_known_range_are_undecodable(dtype):
    data = encode(Image.fromarray(GRAY_HW.astype(dtype)), "TIFF")
    assert refusal(data) == (Status.UNDECODABLE, "32-bit pixels have no known range")


def test_the_first_page_of_a_tiff_is_decoded():
    pages = [Image.fromarray(np.full((20, 30), level, np.uint8)) for level in (50, 200)]
    data = encode(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    assert np.all(decode(data) == 50)


@pytest.mark.parametrize("kind", ["GIF", "WEBP"])
def test_the_first_frame_of_an_animation_is_decoded(kind):
    frames = [Image.new("RGB", (30, 20), (level, level, level)) for level in (50, 200)]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 2
    assert np.all(decode(data) == 50)


@pytest.mark.parametrize("options", [{}, {"tile_size": 64}], ids=["whole", "tiles"])
def test_the_gray_levels_of_a_heif_are_those_that_were_encoded(options):
    np.testing.assert_array_equal(decode(encode(Image.fromarray(SMOOTH_HW), "HEIF", quality=-1, **options)), SMOOTH_HW)
    data = encode(TINTED, "HEIF", quality=-1, chroma=444, **options)
    assert difference(decode(data), np.asarray(TINTED.convert("L"))) <= 2


def test_the_image_of_a_heif_is_decoded_and_not_its_thumbnail_or_another_image():
    other = Image.new("RGB", (64, 64))
    options = {"quality": -1, "chroma": 444, "thumbnails": [32], "save_all": True, "append_images": [other]}
    data = encode(TINTED, "HEIF", primary_index=0, **options)
    assert difference(decode(data), np.asarray(TINTED.convert("L"))) <= 2
    assert np.all(decode(encode(TINTED, "HEIF", primary_index=1, **options)) <= 1)


@pytest.mark.parametrize(
    "options", [{"exif": exif(6).tobytes()}, {"xmp": b"<tiff:Orientation>6 </tiff:Orientation>"}], ids=["EXIF", "XMP"]
)
def test_the_metadata_of_a_heif_turn_nothing(options):
    """A property of the file does, also where the two differ (ISO/IEC 23008-12)."""
    data = encode(Image.fromarray(SMOOTH_HW), "HEIF", quality=-1, **options)
    assert decode(data).shape == SMOOTH_HW.T.shape
    assert data.count(b"irot") == 1
    np.testing.assert_array_equal(decode(data.replace(b"irot", b"free")), SMOOTH_HW)


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_transparency_of_a_heif_is_ignored(mode):
    image = Image.fromarray(SMOOTH_HW).convert(mode)
    image.putalpha(Image.fromarray(np.indices(GRAY_HW.shape).sum(axis=0).astype(np.uint8)))
    assert difference(decode(encode(image, "HEIF", quality=-1, chroma=444)), SMOOTH_HW) <= 2


@pytest.mark.parametrize(("mode", "channels"), [("L;16", 1), ("RGB;16", 3)])
@pytest.mark.parametrize("bits", [10, 12])
def test_ten_and_twelve_bits_of_a_heif_are_scaled_not_clipped(mode, channels, bits):
    level_HW = np.tile(np.linspace(0, 2**bits - 1, 64).round().astype(np.uint16), (64, 1))
    pixels = np.repeat(level_HW << 16 - bits, channels, axis=1)
    stream = io.BytesIO()
    options = {"quality": -1, "chroma": 444, "bit_depth": bits}
    pillow_heif.encode(mode, level_HW.T.shape, pixels.tobytes(), stream, **options)
    assert Image.open(io.BytesIO(stream.getvalue())).info["bit_depth"] == bits
    upright_HW = decode(stream.getvalue())
    assert (upright_HW.min(), upright_HW.max()) == (0, 255)
    assert difference(upright_HW, level_HW / (2**bits - 1) * 255) <= 1


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9, 0.97])
@pytest.mark.parametrize("filling", [b"\0", b"\xf6"])
@pytest.mark.parametrize("kind", ["HEIF", "HEIF in tiles"])
def test_a_heif_with_a_filled_tail_is_undecodable(kind, share, filling):
    """libheif decodes each of them, with tiles that are black or anything."""
    whole = WHOLE[kind]
    kept = int(len(whole) * share)
    data = whole[:kept] + filling * (len(whole) - kept)
    if kept > whole.index(b"mdat"):
        assert pillows(data).shape in {GRAY_HW.shape, GRAY_HW.T.shape}
    assert refusal(data)[0] == Status.UNDECODABLE


def test_exif_in_a_heif_may_end_in_zeros():
    block = exif(6).tobytes() + bytes(2000)
    assert decode(encode(gray(), "HEIF", exif=block)).shape == GRAY_HW.T.shape


def test_a_heif_with_bytes_too_many_is_decoded():
    np.testing.assert_array_equal(decode(WHOLE["HEIF"] + b"junk" * 20), decode(WHOLE["HEIF"]))


def test_a_heif_is_read_past_a_box_of_64_bit_size():
    data, box = WHOLE["HEIF"], struct.pack(">I4sQQ", 1, b"free", 24, 2**64 - 1)
    meta, pixels = data.index(b"meta") - 4, data.index(b"mdat") + 4
    assert data.count(struct.pack(">I", pixels)) == 1
    moved = data[:meta] + box + data[meta:].replace(struct.pack(">I", pixels), struct.pack(">I", pixels + len(box)))
    np.testing.assert_array_equal(decode(moved), decode(data))
    assert refusal(moved[:-1]) == (Status.UNDECODABLE, "compressed data is truncated")


def test_a_heif_of_too_many_pixels_is_refused_by_its_header_alone():
    data = WHOLE["HEIF"]
    place = data.index(b"ispe") + 8
    assert struct.unpack_from(">II", data, place) == GRAY_HW.T.shape
    bomb = data[:place] + struct.pack(">II", 30_000, 20_000) + data[place + 8 :]
    assert refusal(bomb) == (Status.TOO_LARGE, "30000x20000 pixels; over 200 MP")
    modest = data[:place] + struct.pack(">II", 400, 300) + data[place + 8 :]
    assert refusal(modest)[0] == Status.UNDECODABLE


def test_what_only_looks_like_heif_is_undecodable():
    told = "HEIF that is damaged or not of HEVC; convert it to JPEG"
    for data in (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200), b"\0\0\0\x18ftypavif" + bytes(200)):
        assert refusal(data) == (Status.UNDECODABLE, told)


WHOLE = {
    "JPEG": encode(TINTED, "JPEG", quality=90),
    "gray JPEG": encode(gray(), "JPEG", quality=90),
    "progressive JPEG": encode(TINTED, "JPEG", quality=90, progressive=True),
    "CMYK JPEG": encode(TINTED.convert("CMYK"), "JPEG", quality=90),
    "PNG": encode(gray(), "PNG"),
    "PNG with EXIF": encode(gray(), "PNG", exif=exif(6)),
    "TIFF": encode(gray(), "TIFF"),
    "LZW TIFF": encode(gray(), "TIFF", compression="tiff_lzw"),
    "BMP": encode(gray(), "BMP"),
    "GIF": encode(gray(), "GIF"),
    "WEBP": encode(gray(), "WEBP"),
    "PPM": encode(gray(), "PPM"),
    "JPEG2000": encode(gray(), "JPEG2000"),
    "HEIF": encode(TINTED, "HEIF", quality=90),
    "HEIF in tiles": encode(TINTED, "HEIF", quality=90, tile_size=64),  # as telephones write it
}


@pytest.mark.filterwarnings("ignore:(Truncated File|Corrupt EXIF):UserWarning")
@pytest.mark.parametrize("kind", WHOLE)
def test_a_file_that_was_cut_short_is_undecodable_and_never_silently_gray(kind):
    assert decode(WHOLE[kind]).shape in {GRAY_HW.shape, GRAY_HW.T.shape}
    for tenth in range(10):
        status, message = refusal(WHOLE[kind][: len(WHOLE[kind]) * tenth // 10])
        assert status == Status.UNDECODABLE
        assert message


@pytest.mark.parametrize("kind", ["JPEG", "gray JPEG", "CMYK JPEG"])
def test_a_cut_jpeg_that_was_closed_again_is_undecodable(kind):
    closed = WHOLE[kind][: len(WHOLE[kind]) * 2 // 3] + b"\xff\xd9"
    assert pillows(closed).shape == GRAY_HW.shape  # Pillow fills the rest with gray
    assert refusal(closed)[0] == Status.UNDECODABLE


def test_a_jpeg_with_damage_that_libjpeg_tells_of_is_undecodable():
    whole = WHOLE["gray JPEG"]
    bad_code = whole[: len(whole) // 2] + b"\xff\0" * 200 + b"\xff\xd9"
    rows = encode(gray(), "JPEG", restart_marker_rows=1)
    second, third = rows.index(b"\xff\xd1"), rows.index(b"\xff\xd2")
    lost_row = rows[:second] + rows[third:]
    junk_in_a_row = rows[:second] + b"junk" + rows[second:]
    for data, told in (
        (bad_code, "bad Huffman code"),
        (lost_row, "instead of RST1"),
        (junk_in_a_row, "extraneous bytes before marker 0xd1"),
    ):
        assert pillows(data).shape == GRAY_HW.shape
        status, message = refusal(data)
        assert status == Status.UNDECODABLE
        assert told in message


def test_a_jpeg_with_a_damaged_huffman_table_is_undecodable():
    """Seen on a real photograph: Pillow decoded it to other pixels, off by up to 252."""
    whole = bytearray(encode(gray(), "JPEG", optimize=True))
    table = whole.index(b"\xff\xc4")
    for start in range(table + 5, table + 25, 4):
        damaged = whole.copy()
        damaged[start : start + 40] = bytes(40)
        assert refusal(bytes(damaged))[0] == Status.UNDECODABLE


def test_a_jpeg_with_bytes_too_many_is_decoded():
    data = WHOLE["JPEG"]
    table = data.index(b"\xff\xdb")
    extraneous = data[:table] + b"junk" + data[table:]
    with pytest.raises(ValueError, match="extraneous"):
        simplejpeg.decode_jpeg(extraneous, colorspace="GRAY", strict=True)
    np.testing.assert_array_equal(decode(extraneous), pillows(data))
    np.testing.assert_array_equal(decode(data + b"junk"), decode(data))


@pytest.mark.parametrize("data", [b"", b"no image, but a text\n" * 50, b"\xff\xd8\xff", b"\0" * 999])
def test_what_is_no_image_is_undecodable(data):  # and no message holds an object's address
    assert refusal(data) == (Status.UNDECODABLE, "cannot identify image file")


def test_postscript_is_no_image_whatever_is_installed():
    data = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EOF\n"
    assert refusal(data) == (Status.UNDECODABLE, "cannot identify image file")


def test_an_image_with_a_short_side_is_too_small():
    image = Image.new("L", (500, 15))
    status, message = refusal(encode(image, "PNG"))
    assert (status, message) == (Status.TOO_SMALL, "500x15 pixels; 16 a side are needed")
    assert decode(encode(image, "PNG"), min_side=15).shape == (15, 500)


def test_an_image_of_too_many_pixels_is_refused_by_its_header_alone():
    data = encode(Image.new("L", (40, 30)), "PNG")
    header = b"IHDR" + (40_000).to_bytes(4) + (30_000).to_bytes(4) + data[24:29]
    bomb = data[:12] + header + zlib.crc32(header).to_bytes(4) + data[33:]
    assert refusal(bomb) == (Status.TOO_LARGE, "40000x30000 pixels; over 200 MP")


def test_a_tiff_that_unpacks_to_far_more_than_its_pixels_is_too_large():
    stripe = zlib.compress(bytes(2**20))
    tags = {256: 40, 257: 30, 258: 8, 259: 8, 262: 1, 273: 8 + 2 + 9 * 12 + 4, 277: 1, 278: 30, 279: len(stripe)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    data = b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4) + stripe
    assert decode(data).shape == (30, 40)
    assert refusal(data, max_megapixels=0.1) == (Status.TOO_LARGE, "a stripe of over 0.8 MB")


def test_the_limit_on_pixels_is_the_callers():
    data = encode(Image.new("L", (100, 100)), "PNG")
    assert decode(data, max_megapixels=0.01).shape == (100, 100)
    assert refusal(data, max_megapixels=0.0099)[0] == Status.TOO_LARGE
