import io
import json
import random
import struct
import time
import zipfile
from dataclasses import asdict, replace
from datetime import datetime, timedelta

import exifread
import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from PIL.ExifTags import GPS, IFD, Base

from crackvae.images.decode import decode
from crackvae.images.exif import Metadata, read_metadata

PICTURE = Image.fromarray(np.indices((48, 64)).sum(axis=0).astype(np.uint8)).convert("RGB")
MAIN = {Base.Make: "Apple", Base.Model: "iPhone 15 Pro\0\0", Base.Orientation: 6}
PHOTO = {
    Base.DateTimeOriginal: "2026:03:01 14:05:59",
    Base.SubsecTimeOriginal: "07",
    Base.OffsetTimeOriginal: "+05:45",
    Base.FocalLengthIn35mmFilm: 24,
    Base.SubjectDistance: 1.25,
}
PLACE = {
    GPS.GPSLatitudeRef: "S",
    GPS.GPSLatitude: (33.0, 51.0, 24.1234),
    GPS.GPSLongitudeRef: "E",
    GPS.GPSLongitude: (151.0, 12.0, 59.9999),
    GPS.GPSAltitudeRef: b"\1",
    GPS.GPSAltitude: 3.5,
}
XMP = b"""<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description
   drone-dji:RelativeAltitude="+40.10" drone-dji:GimbalRollDegree="+0.00"
   drone-dji:GimbalYawDegree="-132.00" drone-dji:GimbalPitchDegree="-89.90"
   drone-dji:LRFStatus="Normal" drone-dji:LRFTargetDistance="12.345"/></rdf:RDF></x:xmpmeta>"""
EXPECTED = Metadata(
    taken=datetime(2026, 3, 1, 14, 5, 59, 70_000),
    utc_offset=345,
    latitude=-(33 + 51 / 60 + 24.1234 / 3600),
    longitude=151 + 12 / 60 + 59.9999 / 3600,
    altitude=-3.5,
    camera="Apple iPhone 15 Pro",
    orientation=6,
    relative_altitude=40.1,
    gimbal_yaw=-132.0,
    gimbal_pitch=-89.9,
    gimbal_roll=0.0,
    focal_35mm=24.0,
    subject_distance=12.345,
    distance_source="laser",
)
FORMATS = ["JPEG", "MPO", "TIFF", "PNG", "WEBP", "HEIF"]


def exif(main=None, photo=None, place=None, order=">"):
    tags = Image.Exif()
    tags.endian = order
    tags.update(main or {})
    tags[IFD.Exif], tags[IFD.GPSInfo] = photo or {}, place or {}
    return tags.tobytes()


def read(block, xmp=None):
    image = Image.new("L", (8, 8))
    image.info |= {"exif": block, "xmp": xmp}
    return read_metadata(image)


def encode(kind, block, xmp):
    options = {"exif": block, "xmp": xmp}
    if kind == "MPO":
        options |= {"save_all": True, "append_images": [PICTURE]}
    if kind == "TIFF":
        options["exif"] = Image.Exif()
        options["exif"].load(block)
        options["exif"][700] = xmp
    if kind == "PNG":
        options["pnginfo"] = PngImagePlugin.PngInfo()
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", xmp.decode())
    stream = io.BytesIO()
    PICTURE.save(stream, kind, **options)
    return stream.getvalue()


def opened(data):
    return Image.open(io.BytesIO(data))


def assert_close(metadata, expected):
    for name, value in asdict(expected).items():
        found = getattr(metadata, name)
        assert found == (pytest.approx(value, abs=1e-6) if isinstance(value, float) else value), name


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("order", "<>")
def test_every_format_gives_the_same_metadata(kind, order):
    image = opened(encode(kind, exif(MAIN, PHOTO, PLACE, order), XMP))
    assert image.format == kind
    upright = {"orientation": 1} if kind == "HEIF" else {}  # libheif turns it
    assert_close(read_metadata(image), replace(EXPECTED, **upright))


def test_metadata_behind_the_pixels_of_a_png_are_read(tmp_path):
    data = encode("PNG", exif(MAIN, PHOTO, PLACE), XMP)
    start = data.index(b"eXIf") - 4
    chunk = data[start : start + 12 + int.from_bytes(data[start : start + 4], "big")]
    rest, end = data.replace(chunk, b"")[:-12], data[-12:]
    early, late = (decode(each, min_side=1, max_megapixels=1) for each in (data, rest + chunk + end))
    assert late.metadata == early.metadata
    assert late.metadata.latitude is not None
    np.testing.assert_array_equal(late.gray_HW, early.gray_HW)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_without_metadata_has_none(kind):
    stream = io.BytesIO()
    PICTURE.save(stream, kind, **({"save_all": True, "append_images": [PICTURE]} if kind == "MPO" else {}))
    assert read_metadata(opened(stream.getvalue())) == Metadata()


def with_exifread(data):
    """The fields that EXIF has, by another reader."""
    tags = exifread.process_file(io.BytesIO(data), details=False)

    def text(name):
        return tags[name].values.rstrip("\0") if name in tags else ""

    def number(name):
        return float(tags[name].values[0]) if name in tags else None

    def degrees(name, south):
        whole, minutes, seconds = map(float, tags[f"GPS {name}"].values)
        sign = -1 if text(f"GPS {name}Ref") == south else 1
        return sign * (whole + minutes / 60 + seconds / 3600)

    fraction = timedelta(seconds=float("0." + (text("EXIF SubSecTimeOriginal") or "0")))
    return {
        "taken": datetime.strptime(text("EXIF DateTimeOriginal"), "%Y:%m:%d %H:%M:%S") + fraction,
        "latitude": degrees("GPSLatitude", "S"),
        "longitude": degrees("GPSLongitude", "W"),
        "altitude": number("GPS GPSAltitude") * (-1 if number("GPS GPSAltitudeRef") else 1),
        "camera": f"{text('Image Make')} {text('Image Model')}",
        "orientation": number("Image Orientation"),
        "focal_35mm": number("EXIF FocalLengthIn35mmFilm"),
    }


def assert_agree(metadata, other):
    for name, value in other.items():
        found = getattr(metadata, name)
        assert found == (pytest.approx(value, abs=1e-9) if isinstance(value, float) else value), name


@pytest.mark.parametrize("kind", ["JPEG", "MPO", "TIFF", "PNG"])  # it cannot read the others as they are written here
def test_another_reader_agrees_on_every_field(kind):
    data = encode(kind, exif(MAIN, PHOTO, PLACE), XMP)
    assert_agree(read_metadata(opened(data)), with_exifread(data))


def test_another_reader_agrees_on_photographs_of_a_drone(real_data):
    paths = sorted((real_data / "drone-gps").glob("*.JPG"))
    assert len(paths) == 3
    for path in paths:
        metadata = read_metadata(Image.open(path))
        assert_agree(metadata, with_exifread(path.read_bytes()))
        assert metadata.utc_offset is metadata.subject_distance is None


def test_the_position_of_a_drone_is_known_by_hand(real_data):
    metadata = read_metadata(Image.open(real_data / "drone-gps/DJI_0019.JPG"))
    assert metadata.latitude == pytest.approx(46 + 50 / 60 + 33.6864 / 3600, abs=1e-9)
    assert metadata.longitude == pytest.approx(-(91 + 59 / 60 + 39.9382 / 3600), abs=1e-9)
    assert (metadata.altitude, metadata.camera) == (198.609, "DJI FC300S")
    assert metadata.taken == datetime(2016, 6, 23, 16, 32, 6)


def test_the_gimbal_of_a_drone_is_what_its_xmp_says(real_data):
    for path in (real_data / "drone-gps").glob("*.JPG"):
        text = path.read_bytes().decode("latin-1")
        metadata = read_metadata(Image.open(path))
        for name, column in {
            "RelativeAltitude": "relative_altitude",
            "GimbalYawDegree": "gimbal_yaw",
            "GimbalPitchDegree": "gimbal_pitch",
            "GimbalRollDegree": "gimbal_roll",
        }.items():
            assert getattr(metadata, column) == float(text.split(f'drone-dji:{name}="')[1].split('"')[0])


def test_the_images_of_metu_have_no_metadata(real_data):
    with zipfile.ZipFile(real_data / "metu-concrete-20k.zip") as archive:
        names = [name for name in archive.namelist() if name.endswith(".jpg")][::2000]
        assert {read_metadata(opened(archive.read(name))) for name in names} == {Metadata()}


@pytest.mark.parametrize(
    ("original", "other", "minutes"),
    [
        ("+02:00", None, 120),
        ("-03:30", "+01:00", -210),
        (None, "-00:30", None),
        ("+14:00", None, 840),
        ("+14:15", None, None),
        ("+02:60", None, None),
        ("   :  ", "+01:00", None),
        ("Z", None, None),
    ],
)
def test_the_offset_of_the_clock_is_in_minutes(original, other, minutes):
    given = {Base.OffsetTimeOriginal: original, Base.OffsetTime: other}
    assert read(exif(photo={tag: value for tag, value in given.items() if value is not None})).utc_offset == minutes


@pytest.mark.parametrize(
    ("written", "fraction", "time_of_day"),
    [
        ("2026:03:01 14:05:59", "5", "14:05:59.500000"),
        ("2026:03:01 14:05:59", "0123456", "14:05:59.012000"),
        ("2026-03-01T14:05:59Z", "9 ", "14:05:59.900000"),
        ("2026/03/01 14:05:59", "half", "14:05:59"),
        ("2026:02:30 14:05:59", "5", None),
        ("0000:00:00 00:00:00", "5", None),
        ("    :  :     :  :  ", "5", None),
        ("2026:03:01", "5", None),
        ("", "", None),
    ],
)
def test_the_time_is_the_cameras_own(written, fraction, time_of_day):
    metadata = read(exif(photo={Base.DateTimeOriginal: written, Base.SubsecTimeOriginal: fraction}))
    expected = time_of_day and datetime.fromisoformat(f"2026-03-01T{time_of_day}")
    assert metadata.taken == expected
    assert metadata.utc_offset is None


@pytest.mark.parametrize(
    "changed",
    [
        {GPS.GPSLatitude: (0.0, 0.0, 0.0), GPS.GPSLongitude: (0.0, 0.0, 0.0)},
        {GPS.GPSLatitude: (90.0, 0.0, 0.01)},
        {GPS.GPSLongitude: (180.0, 1.0, 0.0)},
        {GPS.GPSLatitude: (33.0, 61.0, 0.0)},
        {GPS.GPSLatitude: (33.0, 0.0, 60.5)},
        {GPS.GPSLatitude: None},
        {GPS.GPSLongitude: None},
        {GPS.GPSLatitudeRef: None},
        {GPS.GPSLongitudeRef: "N"},
        {GPS.GPSLongitudeRef: ""},
        {GPS.GPSLatitude: (33.0, 51.0)},
        {GPS.GPSLatitude: 33},
    ],
)
def test_half_a_position_or_an_impossible_one_is_none(changed):
    place = {tag: value for tag, value in (PLACE | changed).items() if value is not None}
    metadata = read(exif(place=place))
    assert metadata.latitude is metadata.longitude is None
    assert metadata.altitude == -3.5


def test_positions_on_the_edge_are_positions():
    place = {GPS.GPSLatitude: (90.0, 0.0, 0.0), GPS.GPSLongitude: (179.0, 59.0, 60.0)}
    assert (read(exif(place=PLACE | place)).latitude, read(exif(place=PLACE | place)).longitude) == (-90, 180)
    equator = read(exif(place=PLACE | {GPS.GPSLatitude: (0.0, 0.0, 0.0)}))
    assert (equator.latitude, round(equator.longitude)) == (0, 151)


@pytest.mark.parametrize(("kind", "value"), [(2, b"12:\0"), (3, b"\1\0\1\0"), (7, b"1234"), (99, b"1234")])
def test_tags_of_another_type_than_theirs_are_none(kind, value):
    tags = [*MAIN, *PHOTO, *PLACE, Base.OffsetTime]
    entries = b"".join(struct.pack("<HHI4s", tag, kind, 4 if kind == 2 else 2, value) for tag in tags)
    entries += struct.pack("<HHIIHHII", IFD.Exif, 4, 1, 8, IFD.GPSInfo, 4, 1, 8)
    metadata = read(b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags) + 2) + entries)
    assert metadata == Metadata(camera="12:" if kind == 2 else None)


def test_a_fraction_over_zero_is_unknown():
    block = bytearray(exif(place=PLACE))
    whole = struct.pack(">6I", 33, 1, 51, 1, 120617, 5000)
    assert whole in block
    place = block.index(whole)
    block[place + 16 : place + 24] = struct.pack(">II", 5, 0)
    assert read(bytes(block)).latitude is None


@pytest.mark.parametrize(("ref", "sign"), [(None, 1), (b"\0", 1), (b"\1", -1), (b"\2", 1), (b"\3", -1)])
def test_an_altitude_may_be_below_the_sea(ref, sign):
    place = {GPS.GPSAltitude: 12.5} | ({} if ref is None else {GPS.GPSAltitudeRef: ref})
    assert read(exif(place=place)).altitude == sign * 12.5


@pytest.mark.parametrize(
    ("make", "model", "camera"),
    [
        ("DJI", "FC3170", "DJI FC3170"),
        ("Canon", "Canon EOS 5D", "Canon EOS 5D"),
        ("NIKON CORPORATION", "NIKON D90", "NIKON D90"),
        ("  SONY ", "ILCE-7M4\0junk", "SONY ILCE-7M4"),
        ("", "E-M5", "E-M5"),
        ("Ricoh", "", "Ricoh"),
        ("", "", None),
        (" \n", "\x07", None),
        ("x" * 65, "long make", "long make"),
    ],
)
def test_a_camera_is_named_once(make, model, camera):
    assert read(exif({Base.Make: make, Base.Model: model})).camera == camera


@pytest.mark.parametrize(
    ("tag", "value", "column"),
    [
        (Base.FocalLengthIn35mmFilm, 0, "focal_35mm"),
        (Base.FocalLengthIn35mmFilm, (24, 25), "focal_35mm"),
        (Base.SubjectDistance, 0.0, "subject_distance"),
        (Base.SubjectDistance, 4294967295.0, "subject_distance"),
    ],
)
def test_numbers_that_mean_unknown_are_none(tag, value, column):
    metadata = read(exif(photo=PHOTO | {tag: value}))
    assert getattr(metadata, column) is None
    assert metadata.taken == EXPECTED.taken


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_none(orientation):
    assert read(exif({Base.Orientation: orientation})).orientation is None


def test_xmp_may_write_attributes_or_elements():
    elements = b"""<rdf:Description>
      <drone-dji:RelativeAltitude>+40.10</drone-dji:RelativeAltitude>
      <drone-dji:GimbalYawDegree> -132.00 </drone-dji:GimbalYawDegree>
      <drone-dji:GimbalPitchDegree>-89.90</drone-dji:GimbalPitchDegree> 7
      <drone-dji:GimbalRollDegree>0</drone-dji:GimbalRollDegree>
      <drone-dji:LRFStatus>Normal</drone-dji:LRFStatus>
      <drone-dji:LRFTargetDistance>12.345</drone-dji:LRFTargetDistance></rdf:Description>"""
    assert read(b"", elements) == read(b"", XMP) == read(b"", XMP.replace(b'="', b" = '").replace(b'"', b"'"))
    assert read(b"", XMP).gimbal_yaw == -132


@pytest.mark.parametrize(
    ("written", "distance", "source"),
    [
        (b'LRFStatus="Normal" drone-dji:LRFTargetDistance="12.345"', 12.345, "laser"),
        (b'LRFTargetDistance="12.345"', 12.345, "laser"),
        (b'LRFStatus="TooClose" drone-dji:LRFTargetDistance="12.345"', 1.25, "focus"),
        (b'LRFTargetDistance="0.000"', 1.25, "focus"),
        (b'LRFTargetDistance="1e9"', 1.25, "focus"),
        (b"", 1.25, "focus"),
    ],
)
def test_a_distance_is_the_lasers_where_it_had_an_echo(written, distance, source):
    metadata = read(exif(photo=PHOTO), b"<rdf:Description drone-dji:" + written + b"/>")
    assert (metadata.subject_distance, metadata.distance_source) == (distance, source)


@pytest.mark.parametrize("value", [b"nan", b"inf", b"1e400", b"", b"-", b"9" * 40, b"&x;", b"4000"])
def test_xmp_that_holds_no_angle_is_none(value):
    assert read(b"", b'drone-dji:GimbalPitchDegree="' + value + b'"').gimbal_pitch is None


def test_xmp_full_of_entities_or_of_nothing_is_read_at_once():
    laughs = b'<!DOCTYPE x [<!ENTITY a "ha">' + b"".join(
        b'<!ENTITY %c "%s">' % (98 + i, b"&%c;" % (97 + i) * 10) for i in range(20)
    )
    beginning = time.process_time()
    for packet in (
        laughs + XMP,
        b"drone-dji:" * 2**20,
        b"drone-dji:a" + b" " * 2**24,
        b"drone-dji:LRFStatus =" * 2**18,
    ):
        read(b"", packet)
    assert time.process_time() - beginning < 1
    assert read(b"", laughs + XMP).gimbal_yaw == -132
    assert read(b"", b" " * 2**16 + XMP) == Metadata()


def test_directories_that_point_anywhere_are_read_at_once():
    """Pillow needs seconds for each: it makes an object of every number that a tag points at."""
    pointers = struct.pack("<HHHIIHHIII", 2, IFD.Exif, 4, 1, 38, IFD.GPSInfo, 4, 1, 38, 0)
    tags = (Base.DateTimeOriginal, Base.FocalLengthIn35mmFilm, GPS.GPSLatitude)
    many = struct.pack("<H", 65535) + b"".join(
        struct.pack("<HHII", tags[i % 3], 5, 2**20 if i % 2 else 64, 8) for i in range(65535)
    )
    itself = struct.pack("<HHHII", 1, IFD.Exif, 4, 1, 8) + bytes(4)
    beginning = time.process_time()
    for directory in (pointers + many + bytes(2**23), itself, pointers, pointers + b"\xff" * 100):
        read(b"II*\0\x08\0\0\0" + directory)
    assert time.process_time() - beginning < 2


def assert_plain(metadata):
    json.dumps(asdict(metadata), default=datetime.isoformat, allow_nan=False).encode()
    assert (metadata.latitude is None) == (metadata.longitude is None)
    assert metadata.latitude is None or abs(metadata.latitude) <= 90
    assert metadata.orientation in {None, *range(1, 9)}


@pytest.mark.parametrize("order", "<>")
def test_damaged_metadata_never_raise(order):
    whole, chance = exif(MAIN, PHOTO, PLACE, order), random.Random(4)
    found = set()
    for _ in range(3000):
        block = bytearray(whole)
        for _ in range(chance.choice((1, 2, 10, 300))):
            block[chance.randrange(len(block))] = chance.randrange(256)
        metadata = read(bytes(block[: chance.choice((len(block), chance.randrange(len(block))))]))
        assert_plain(metadata)
        found |= {name for name, value in asdict(metadata).items() if value is not None}
    assert found >= set(PHOTO_COLUMNS)  # the damage does not always spoil everything


PHOTO_COLUMNS = ["taken", "utc_offset", "latitude", "longitude", "altitude", "camera", "orientation", "focal_35mm"]


@pytest.mark.parametrize("kind", ["JPEG", "TIFF", "PNG", "WEBP", "HEIF"])
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_never_raise(kind):
    whole, chance = encode(kind, exif(MAIN, PHOTO, PLACE), XMP), random.Random(5)
    read_ = 0
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(chance.choice((1, 5, 50))):
            data[chance.randrange(len(data))] = chance.randrange(256)
        try:
            image = opened(bytes(data))
        except Exception:  # whatever Pillow makes of it
            continue
        assert_plain(read_metadata(image))
        read_ += 1
    assert read_ > 20


@pytest.mark.parametrize(
    "block", [b"", b"Exif\0\0", b"II*\0", b"MM\0*\0\0\0", b"II+\0\x08\0\0\0", b"II*\0\xff\xff\xff\xff", "text", None]
)
def test_what_is_no_exif_is_none(block):
    assert read(block, block) == Metadata()


def test_a_tiff_that_was_loaded_has_none_but_does_not_raise():
    image = opened(encode("TIFF", exif(MAIN, PHOTO, PLACE), XMP))
    image.load()
    assert read_metadata(image).camera is None
