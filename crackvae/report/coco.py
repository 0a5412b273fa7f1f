"""The findings of a run as COCO JSON, for tools in which people label images: https://cocodataset.org/#format-data."""

from __future__ import annotations

import json
from typing import Any

import pyarrow.compute as pc

from crackvae import storage
from crackvae.run import directory, finalize
from crackvae.schema import Label

_BOX = ["x", "y", "width", "height"]
_MEASURED = ["length", "length_mm", "mean_width", "mean_width_mm"]


def write(location: str, out: str) -> tuple[int, int]:
    """Writes the flagged images of a run with the box and the outline of each region.

    An image without regions has one box, the whole of it. Images that are not flagged are left out: there, they would
    count as free of cracks. Names are the run's image_id; pixels are those of the upright image.

    Args:
        location: A finished run.
        out: The JSON file.

    Returns:
        How many images, and how many boxes in them.

    Raises:
        InputError: The run is not finished.
    """
    directory.open_finished(location)
    flagged = finalize.read_results(location, ["image_id", "prediction", "width", "height", "score", "p_value"])
    flagged = flagged.filter(pc.equal(flagged["prediction"], str(Label.CRACK)))
    regions: dict[str, list[dict[str, Any]]] = {}
    columns = ["image_id", *_BOX, "outline", "area", *_MEASURED]
    for block in finalize.read_blocks(location, finalize.REGIONS_DIRECTORY, columns):
        for row in block.filter(pc.is_in(block["image_id"], flagged["image_id"])).to_pylist():
            regions.setdefault(row["image_id"], []).append(row)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, row in enumerate(flagged.to_pylist(), 1):
        size = {"width": row["width"], "height": row["height"]}
        images.append({"id": number, "file_name": row["image_id"], **size})
        whole = {"x": 0, "y": 0, **size, "outline": [], "area": row["width"] * row["height"]}
        for region in regions.get(row["image_id"], [whole]):
            attributes = {name: row[name] for name in ("score", "p_value")}
            attributes |= {name: region[name] for name in _MEASURED if region.get(name) is not None}
            x, y, width, height = box = [region[name] for name in _BOX]
            polygon = [value + 0.5 for value in region["outline"]]  # which runs through the middle of pixels
            if len(polygon) < 6:  # COCO wants three points
                polygon = [x, y, x + width, y, x + width, y + height, x, y + height]
            own = {"id": len(annotations) + 1, "image_id": number, "attributes": attributes, "category_id": 1}
            annotations.append(own | {"bbox": box, "segmentation": [polygon], "area": region["area"], "iscrowd": 0})
    content = {
        "info": {"description": f"crackvae findings of {storage.name(location)}"},
        "licenses": [],
        "categories": [{"id": 1, "name": str(Label.CRACK), "supercategory": ""}],
        "images": images,
        "annotations": annotations,
    }
    storage.write_bytes(out, json.dumps(content, allow_nan=False).encode())
    return len(images), len(annotations)
