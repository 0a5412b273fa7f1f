import dataclasses
import math

import cv2
import numpy as np
import pytest
from PIL import Image

from crackvae.images.exif import Metadata, read_metadata
from crackvae.images.ground import sampling_distance

FULL_FRAME = Metadata(focal_35mm=50.0, subject_distance=2.0, distance_source="focus")
DRONE = Metadata(focal_35mm=24.0, relative_altitude=30.0, gimbal_pitch=-90.0)


def test_a_full_frame_camera_shows_what_its_sensor_does():
    """36 mm of sensor, 6,000 pixels wide, at 2 m through 50 mm: 40 times smaller than the concrete."""
    ground = sampling_distance(FULL_FRAME, 6000, 4000)
    assert ground.mm_per_pixel == pytest.approx(36 / 6000 * 2000 / 50, rel=0.02)
    assert ground == sampling_distance(FULL_FRAME, 4000, 6000)
    assert ground.relative_error == pytest.approx(math.hypot(0.3, 0.04, 0.01))


def test_a_sensor_of_4_to_3_is_met_by_its_diagonal():
    assert sampling_distance(DRONE, 4000, 3000).mm_per_pixel == pytest.approx(30_000 * math.hypot(36, 24) / 24 / 5000)


def test_a_wide_photograph_has_the_pixels_of_the_whole_sensor():
    whole, wide = sampling_distance(DRONE, 4000, 3000), sampling_distance(DRONE, 4000, 2250)
    assert wide.mm_per_pixel == pytest.approx(whole.mm_per_pixel, rel=0.03)
    assert wide == sampling_distance(DRONE, 4000, 2000)


def test_half_the_pixels_are_twice_as_large():
    assert sampling_distance(DRONE, 2000, 1500).mm_per_pixel == pytest.approx(
        2 * sampling_distance(DRONE, 4000, 3000).mm_per_pixel
    )


def test_a_laser_is_believed_more_than_a_lens_and_a_lens_more_than_a_height():
    laser = dataclasses.replace(DRONE, subject_distance=20.0, distance_source="laser")
    lens = dataclasses.replace(DRONE, subject_distance=20.0, distance_source="focus")
    grounds = [sampling_distance(metadata, 4000, 3000) for metadata in (laser, lens, DRONE)]
    assert [round(ground.relative_error, 2) for ground in grounds] == [0.05, 0.3, 0.5]
    assert grounds[0].mm_per_pixel == grounds[1].mm_per_pixel == pytest.approx(grounds[2].mm_per_pixel * 2 / 3)


@pytest.mark.parametrize(
    "unknown",
    [
        {"focal_35mm": None},
        {"relative_altitude": None},
        {"relative_altitude": 4.9},
        {"relative_altitude": -30.0},
        {"gimbal_pitch": None},
        {"gimbal_pitch": -79.9},
        {"gimbal_pitch": 90.0},
    ],
)
def test_without_a_lens_or_a_distance_there_is_none(unknown):
    assert sampling_distance(DRONE, 4000, 3000) is not None
    assert sampling_distance(dataclasses.replace(DRONE, **unknown), 4000, 3000) is None


def test_nothing_is_known_of_a_photograph_without_metadata():
    assert sampling_distance(Metadata(), 4000, 3000) is None


def test_two_photographs_of_a_drone_lie_as_far_apart_as_their_positions(real_data):
    """25 m of GPS; what both show moved by 1,388 pixels. Their own diagonal would give 26.2 m, this 24.6 m."""
    features, metadata = [], []
    for number in (26, 33):
        path = real_data / f"drone-gps/DJI_00{number}.JPG"
        metadata.append(read_metadata(Image.open(path)))
        gray_HW = cv2.imread(str(path), cv2.IMREAD_REDUCED_GRAYSCALE_4)
        features.append(cv2.SIFT_create(4000).detectAndCompute(gray_HW, None))
    pairs = cv2.BFMatcher().knnMatch(features[0][1], features[1][1], k=2)
    found = [first for first, second in pairs if first.distance < 0.75 * second.distance]
    from_N2 = np.array([features[0][0][match.queryIdx].pt for match in found]) * 4
    to_N2 = np.array([features[1][0][match.trainIdx].pt for match in found]) * 4
    turn_23, inlier_N = cv2.estimateAffinePartial2D(from_N2, to_N2, ransacReprojThreshold=12)
    assert inlier_N.sum() > 100
    middle_2 = np.array([2000, 1125])
    pixels = math.hypot(*(turn_23[:, :2] @ middle_2 + turn_23[:, 2] - middle_2))

    north = 111_200 * (metadata[1].latitude - metadata[0].latitude)
    east = 111_320 * math.cos(math.radians(46.84)) * (metadata[1].longitude - metadata[0].longitude)
    ground = sampling_distance(metadata[0], 4000, 2250)
    assert ground.mm_per_pixel == pytest.approx(17.7, abs=0.05)
    assert pixels * ground.mm_per_pixel / 1000 == pytest.approx(math.hypot(north, east), rel=0.05)


def test_of_a_panorama_nothing_is_known_for_its_lens_is_that_of_its_parts():
    laser = Metadata(focal_35mm=24.0, subject_distance=5.0, distance_source="laser")
    assert sampling_distance(laser, 5472, 3648) is not None
    for width, height in ((20_000, 9_000), (3_000, 10_000)):
        assert sampling_distance(laser, width, height) is None
