"""How much concrete a pixel shows, from what a photograph's metadata say of lens and distance."""

from __future__ import annotations

import math
from typing import NamedTuple

from crackvae.images.exif import Metadata

COARSEST = 2.0
"""Times the pixel pitch that a model knows, a crack is no longer what it was there."""

_FILM_DIAGONAL = math.hypot(36, 24)  # mm
# Drones and telephones cut wide photographs from a sensor of 4:3 or 3:2, whose diagonal is 1.25 or
# 1.20 times its long side, and still tell the focal length of the whole sensor.
_SENSOR_DIAGONAL = 1.225
_PANORAMA = 2  # cameras have up to 2:1; what is stitched has the focal length of its parts
_LENS_ERROR = 0.04  # of that ratio, and of what lenses differ from their name
_LASER_ERROR_M, _LASER_ERROR = 0.2, 0.0015  # data sheets of DJI's H20 and M30 series
# Not measured, but taken wide. A lens tells the step of its focus motor, and may have focused on
# something else. A height is above the take-off, whose ground is not the concrete.
_FOCUS_ERROR = 0.3
_HEIGHT_ERROR = 0.5
_LEAST_HEIGHT = 5.0  # meters
_STRAIGHT_DOWN, _TILT = -90, 10  # degrees; a tilt of 10 makes the distance 1.5% longer


class Ground(NamedTuple):
    """Ground sampling distance.

    Attributes:
        mm_per_pixel: Width of concrete that one pixel shows, where it is seen squarely and at the
            distance of the middle of the photograph.
        relative_error: Of it: half the interval of about 95%.
    """

    mm_per_pixel: float
    relative_error: float


def sampling_distance(metadata: Metadata, width: int, height: int) -> Ground | None:
    """Ground sampling distance of a photograph.

    distance * film diagonal / (focal length * sensor diagonal in pixels): the focal length for 35 mm
    film is that of the same angle of view along the diagonal, 43.27 mm (CIPA DCG-001).

    Args:
        metadata: Of the photograph.
        width: Of the whole photograph in pixels; it may have been scaled, but not cropped.
        height: Likewise. Which of the two is upright does not matter.

    Returns:
        None without a focal length or a distance: one that was measured, or a drone's height where
        its camera looks down. Nor for what is over twice as long as wide: it was stitched or cropped.
    """
    known = _distance(metadata)
    if metadata.focal_35mm is None or known is None or max(width, height) > _PANORAMA * min(width, height):
        return None
    meters, error = known
    diagonal = max(math.hypot(width, height), _SENSOR_DIAGONAL * max(width, height))
    rounding = 0.5 / metadata.focal_35mm  # the focal length is a whole number
    mm_per_pixel = 1000 * meters * _FILM_DIAGONAL / (metadata.focal_35mm * diagonal)
    return Ground(mm_per_pixel, math.hypot(error, _LENS_ERROR, rounding))


def _distance(metadata: Metadata) -> tuple[float, float] | None:
    """In meters, and its relative error."""
    meters, pitch = metadata.subject_distance, metadata.gimbal_pitch
    if meters is not None and metadata.distance_source == "laser":
        return meters, _LASER_ERROR_M / meters + _LASER_ERROR
    if meters is not None:
        return meters, _FOCUS_ERROR
    height = metadata.relative_altitude
    if height is None or height < _LEAST_HEIGHT or pitch is None or abs(pitch - _STRAIGHT_DOWN) > _TILT:
        return None
    return height, _HEIGHT_ERROR
