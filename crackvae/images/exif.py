"""Where, when and from how far a photograph was taken: its EXIF, and what DJI's drones add as XMP.

EXIF is read here and not by Pillow, which makes Python objects of every value of a directory: one
tag that points at 4 MB takes it 1.5 s, and larger ones any amount of memory. These are 17 tags of
at most 64 values each.

XMP is searched by regular expressions. An XML parser would expand entities, and a billion laughs
end it; the few numbers wanted are attributes or elements of one well-known prefix.
"""

from __future__ import annotations

import io
import math
import re
import struct
from dataclasses import dataclass
from datetime import datetime
from typing import IO, Any, TypeAlias

from PIL import Image
from PIL.ExifTags import GPS, IFD, Base

_Value: TypeAlias = str | tuple[float, ...]
_Tags: TypeAlias = dict[int, _Value]

# TIFF 6.0, section 2, and EXIF 3.0's UTF-8: how a value lies in the file, by its type.
_FRACTIONS, _TEXTS = {5: "II", 10: "ii"}, {2: "s", 129: "s"}
_LAYOUTS = {1: "B", 3: "H", 4: "I", 6: "b", 7: "B", 8: "h", 9: "i", 11: "f", 12: "d", 13: "I", **_FRACTIONS, **_TEXTS}
_MOST_VALUES = 64  # in a tag; DJI pads a model to 32 letters
_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}
_WANTED = {Base.Make, Base.Model, Base.Orientation, IFD.Exif, IFD.GPSInfo}
_WANTED |= {Base.DateTimeOriginal, Base.SubsecTimeOriginal, Base.OffsetTimeOriginal}
_WANTED |= {Base.FocalLengthIn35mmFilm, Base.SubjectDistance, *range(GPS.GPSLatitudeRef, GPS.GPSAltitude + 1)}

_TIME = re.compile(r"([0-9]{4})[:/-]([0-9]{2})[:/-]([0-9]{2})[ T]([0-9]{2}):([0-9]{2}):([0-9]{2})")
_FRACTION = re.compile("[0-9]{1,3}")
_OFFSET = re.compile(r"([+-])([0-9]{2}):([0-5][0-9])")
_MOST_OFFSET = 14 * 60  # minutes; Kiribati's

_XMP_BYTES = 2**16  # a JPEG's packet has no more
_IS = rb"""\s{0,9}(?:=\s{0,9}["']|>)\s{0,9}"""  # attribute or element
_DRONE = re.compile(rb"drone-dji:([A-Za-z]{1,40})" + _IS + rb"([+-]?[0-9]{1,9}(?:\.[0-9]{1,18})?)\s{0,9}(?:[\"']|</)")
_ECHO = re.compile(rb"drone-dji:LRFStatus" + _IS + rb"([A-Za-z]{1,40})")
_LASER_RANGE = 3, 1200  # meters; H20 and M30 series


@dataclass(frozen=True)
class Metadata:
    """What a file says of its photograph; None where it does not say, or says what cannot be.

    Attributes:
        taken: By the camera's own clock, to the millisecond, without a time zone.
        utc_offset: Of that clock, in minutes, where the camera says.
        latitude: In degrees, WGS 84, positive to the north. Known together with `longitude` or not
            at all. 0, 0 is what receivers without a fix write, and so unknown.
        longitude: In degrees, positive to the east.
        altitude: In meters above sea level.
        camera: Make and model.
        orientation: 1..8, of the pixels as Pillow has them when it has not loaded them yet.
        relative_altitude: In meters above the point of take-off.
        gimbal_yaw: Of the camera, in degrees clockwise from north.
        gimbal_pitch: In degrees; -90 looks straight down.
        gimbal_roll: In degrees.
        focal_35mm: In millimeters, of the lens with the same angle of view on 35 mm film.
        subject_distance: In meters.
        distance_source: Of `subject_distance`: `laser`, a drone's range finder, or `focus`.
    """

    taken: datetime | None = None
    utc_offset: int | None = None
    latitude: float | None = None
    longitude: float | None = None
    altitude: float | None = None
    camera: str | None = None
    orientation: int | None = None
    relative_altitude: float | None = None
    gimbal_yaw: float | None = None
    gimbal_pitch: float | None = None
    gimbal_roll: float | None = None
    focal_35mm: float | None = None
    subject_distance: float | None = None
    distance_source: str | None = None


def read_metadata(image: Image.Image) -> Metadata:
    """Reads what a file says of its photograph; whatever bytes it holds, this does not raise.

    Args:
        image: As opened. Pillow closes a TIFF when it loads the pixels.
    """
    main, photo, gps = _directories(image)
    drone = _drone(image.info.get("xmp"))
    laser = _number(drone.get("LRFTargetDistance"), *_LASER_RANGE)
    focus = _number(photo.get(Base.SubjectDistance), 0.01, 1000)  # 0: unknown, 2**32 - 1: infinity
    latitude, longitude = _position(gps)
    orientation = _number(main.get(Base.Orientation), 1, 8)
    return Metadata(
        taken=_taken(photo),
        utc_offset=_utc_offset(photo),
        latitude=latitude,
        longitude=longitude,
        altitude=_altitude(gps),
        camera=_camera(main),
        orientation=None if orientation is None else int(orientation),
        relative_altitude=_number(drone.get("RelativeAltitude"), -10_000, 10_000),
        gimbal_yaw=_number(drone.get("GimbalYawDegree"), -360, 360),
        gimbal_pitch=_number(drone.get("GimbalPitchDegree"), -180, 180),
        gimbal_roll=_number(drone.get("GimbalRollDegree"), -180, 180),
        focal_35mm=_number(photo.get(Base.FocalLengthIn35mmFilm), 1, 10_000),  # 0: unknown
        subject_distance=laser or focus,
        distance_source="laser" if laser else "focus" if focus else None,
    )


def _directories(image: Image.Image) -> tuple[_Tags, _Tags, _Tags]:
    """Tags of the image, of how it was taken, and of where."""
    if image.format == "TIFF":
        stream = image.fp  # type: ignore[attr-defined]
    else:
        block = image.info.get("exif")
        stream = io.BytesIO(block.removeprefix(b"Exif\0\0")) if isinstance(block, bytes) else None
    if stream is None or stream.closed:
        return {}, {}, {}
    stream.seek(0)
    header = stream.read(8)
    order = _ORDERS.get(header[:4])
    if order is None or len(header) < 8:
        return {}, {}, {}
    main = _directory(stream, order, *struct.unpack(order + "I", header[4:]))
    pointers = [_number(main.get(tag), 8, 2**32) for tag in (IFD.Exif, IFD.GPSInfo)]
    photo, gps = ({} if start is None else _directory(stream, order, int(start)) for start in pointers)
    return main, photo, gps


def _directory(stream: IO[bytes], order: str, start: int) -> _Tags:
    stream.seek(start)
    count = int.from_bytes(stream.read(2), "little" if order == "<" else "big")
    entries = stream.read(12 * count)
    tags: _Tags = {}
    for tag, kind, values, stored in struct.iter_unpack(order + "HHI4s", entries[: len(entries) // 12 * 12]):
        layout = _LAYOUTS.get(kind)
        if tag not in _WANTED or layout is None or values > _MOST_VALUES:
            continue
        layout = order + (f"{values}s" if layout == "s" else layout * values)
        size = struct.calcsize(layout)
        if size > len(stored):  # then it is where the value lies
            stream.seek(*struct.unpack(order + "I", stored))
        data = stream.read(size) if size > len(stored) else stored[:size]
        if len(data) == size:
            tags[tag] = _value(struct.unpack(layout, data), kind)
    return tags


def _value(stored: tuple[Any, ...], kind: int) -> _Value:
    if kind in _TEXTS:
        text = stored[0].split(b"\0")[0].decode(errors="replace")
        return "".join(letter for letter in text if letter.isprintable()).strip()
    if kind in _FRACTIONS:
        return tuple(n / d if d else math.nan for n, d in zip(stored[::2], stored[1::2], strict=True))
    return tuple(map(float, stored))


def _drone(packet: object) -> dict[str, _Value]:
    """The numbers of DJI's namespace."""
    if not isinstance(packet, bytes):
        return {}
    packet = packet[:_XMP_BYTES]
    fields: dict[str, _Value] = {name.decode(): (float(number),) for name, number in _DRONE.findall(packet)}
    echo = _ECHO.search(packet)
    if echo and echo[1] != b"Normal":
        fields.pop("LRFTargetDistance", None)
    return fields


def _number(value: _Value | None, low: float, high: float) -> float | None:
    """The value, where it is one number from low to high."""
    if not isinstance(value, tuple) or len(value) != 1:
        return None
    return value[0] if low <= value[0] <= high else None


def _text(value: _Value | None) -> str:
    return value if isinstance(value, str) else ""


def _taken(photo: _Tags) -> datetime | None:
    time = _TIME.match(_text(photo.get(Base.DateTimeOriginal)))
    fraction = _FRACTION.match(_text(photo.get(Base.SubsecTimeOriginal)))
    milliseconds = fraction[0].ljust(3, "0") if fraction else "000"
    try:
        return datetime.fromisoformat("{}-{}-{}T{}:{}:{}.{}".format(*time.groups(), milliseconds)) if time else None
    except ValueError:  # a clock that was never set says 0000:00:00
        return None


def _utc_offset(photo: _Tags) -> int | None:
    offset = _OFFSET.fullmatch(_text(photo.get(Base.OffsetTimeOriginal)))  # OffsetTime is that of the last edit
    if offset is None:
        return None
    minutes = int(offset[1] + offset[2]) * 60 + int(offset[1] + offset[3])
    return minutes if abs(minutes) <= _MOST_OFFSET else None


def _position(gps: _Tags) -> tuple[float, float] | tuple[None, None]:
    latitude = _angle(gps.get(GPS.GPSLatitude), _text(gps.get(GPS.GPSLatitudeRef)), "NS", 90)
    longitude = _angle(gps.get(GPS.GPSLongitude), _text(gps.get(GPS.GPSLongitudeRef)), "EW", 180)
    if latitude is None or longitude is None or latitude == longitude == 0:
        return None, None
    return latitude, longitude


def _angle(value: _Value | None, side: str, sides: str, most: float) -> float | None:
    if not isinstance(value, tuple) or len(value) != 3 or side not in set(sides):
        return None
    degrees, minutes, seconds = value
    angle = degrees + minutes / 60 + seconds / 3600
    if not (degrees >= 0 and 0 <= minutes <= 60 and 0 <= seconds <= 60 and angle <= most):  # nan neither
        return None
    return angle if side == sides[0] else -angle


def _altitude(gps: _Tags) -> float | None:
    below = gps.get(GPS.GPSAltitudeRef) in {(1.0,), (3.0,)}  # 3: as 1, since EXIF 3.0
    height = _number(gps.get(GPS.GPSAltitude), -20_000, 20_000)
    return -height if height and below else height


def _camera(main: _Tags) -> str | None:
    make, model = _text(main.get(Base.Make)), _text(main.get(Base.Model))
    if model.casefold().split()[:1] == make.casefold().split()[:1]:  # "NIKON CORPORATION", "NIKON D90"
        make = ""
    return f"{make} {model}".strip() or None
