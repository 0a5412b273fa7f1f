"""One thing seen in many photographs, such as dirt on the lens: at the same place in the frame, of the same look."""

from __future__ import annotations

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from crackvae.dataset.twins import THUMBNAIL, thumbnail_vector
from crackvae.images.decode import Gray
from crackvae.images.evidence import background
from crackvae.report import views

_SAME_PLACE = 0.5  # of two boxes the common area over that of both
# Correlation of what is dark in them. Of a hair on 200 photographs of METU 95% of the pairs correlate by more; of
# 240,000 pairs of other findings at the same place none does by more than 0.85.
_SAME_LOOK = 0.9
_LIKELY = 8  # images, by what lies in their own boxes, that an image is compared with in the very same box
_SIDE = 1024  # pixels of a photograph that is compared


def find(rows: pd.DataFrame, boxes: views.Boxes) -> NDArray[np.int64]:
    """Which image shows what another one shows, in the box of its strongest region or, where it has none, as a whole.

    Only images are read whose box lies where that of another one lies; one that is gone repeats nothing.

    Args:
        rows: Of the results.
        boxes: Of regions, the strongest first.

    Returns:
        first_N: the place in rows of the first image that shows the same; its own where there is none.
    """
    frame_N2 = rows[["width", "height"]].fillna(0).to_numpy(np.int64)
    own = zip(rows["image_id"], frame_N2.tolist(), strict=True)
    box_N4 = np.array([next(iter(boxes.get(name, ())), (0, 0, *frame)) for name, frame in own], np.int64).reshape(-1, 4)

    def near(row: int) -> NDArray[np.bool_]:
        low_N2 = np.maximum(box_N4[:, :2], box_N4[row, :2])
        high_N2 = np.minimum(box_N4[:, :2] + box_N4[:, 2:], box_N4[row, :2] + box_N4[row, 2:])
        common_N = np.clip(high_N2 - low_N2, 0, None).prod(axis=1)
        both_N = box_N4[:, 2:].prod(axis=1) + box_N4[row, 2:].prod() - common_N
        return np.asarray((frame_N2 == frame_N2[row]).all(axis=1) & (common_N > 0) & (common_N >= _SAME_PLACE * both_N))

    compared = [row for row in range(len(rows)) if np.count_nonzero(near(row)) > 1]
    first_N, is_first_N = np.arange(len(rows)), np.zeros(len(rows), np.bool_)
    vector_ND = np.zeros((len(rows), THUMBNAIL**2), np.float32)
    shown = views.small_pictures(rows.iloc[compared], _SIDE)
    for row, (picture, scale, _) in zip(compared, shown, strict=True):
        if picture is None:
            continue
        gray_HW = np.asarray(picture.convert("L"))
        dark_HW = np.asarray(cv2.subtract(background(gray_HW), gray_HW), np.uint8)
        own_D = _look(dark_HW, box_N4[row], scale)
        candidates = np.flatnonzero(near(row) & is_first_N)
        likely = candidates[np.argsort(-(vector_ND[candidates] @ own_D), kind="stable")[:_LIKELY]]
        like_L = [float(vector_ND[other] @ _look(dark_HW, box_N4[other], scale)) for other in likely]
        if like_L and max(like_L) >= _SAME_LOOK:
            first_N[row] = likely[np.argmax(like_L)]
        else:
            is_first_N[row], vector_ND[row] = True, own_D
    return first_N


def _look(dark_HW: Gray, box: NDArray[np.int64], scale: float) -> NDArray[np.float32]:
    x, y, width, height = (int(side * scale) for side in box)
    y, x = min(y, dark_HW.shape[0] - 1), min(x, dark_HW.shape[1] - 1)  # the picture's sides were rounded
    return thumbnail_vector(dark_HW[y : y + max(1, height), x : x + max(1, width)])
