"""COCO JSON, read back by pycocotools."""

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from crackvae import cli
from crackvae.run import finalize

pytestmark = pytest.mark.ray


def exported(run, tmp_path, capsys):
    out = tmp_path / "coco.json"
    assert cli.main(["export", run, "--coco", str(out)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"coco: {out}"
    return COCO(str(out))


def test_regions_are_boxes_and_polygons(photograph_run, tmp_path, capsys):
    coco = exported(photograph_run, tmp_path, capsys)
    results = finalize.read_results(photograph_run).to_pandas().set_index("image_id")
    regions = finalize.read_table(photograph_run, "regions").to_pandas()
    flagged = results.index[results["prediction"] == "crack"]
    images = coco.loadImgs(coco.getImgIds())
    assert {image["file_name"] for image in images} == set(flagged)
    assert len(coco.getAnnIds()) == regions["image_id"].isin(flagged).sum() > 0
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == ["crack"]
    for image in images:
        own = regions[regions["image_id"] == image["file_name"]]
        size = results.loc[image["file_name"], ["height", "width"]].astype(int).tolist()
        for found, (_, region) in zip(coco.loadAnns(coco.getAnnIds([image["id"]])), own.iterrows(), strict=True):
            x, y, width, height = found["bbox"]
            assert [x, y, width, height] == region[["x", "y", "width", "height"]].tolist()
            told = found["attributes"]
            assert told["p_value"] == results.loc[image["file_name"], "p_value"]
            assert ("length" in told) == region.notna()["length"]
            assert None not in told.values()
            mask_HW = coco.annToMask(found)
            assert list(mask_HW.shape) == size
            filled_HW = np.zeros(size, np.uint8)  # the region itself, but for its holes
            cv2.fillPoly(filled_HW, [region["outline"].reshape(-1, 1, 2)], 1)
            assert not mask_HW[filled_HW == 0].any()
            assert mask_HW.sum() > 0.6 * filled_HW.sum()  # it goes through the middle of the outermost pixels
            rows, columns = np.nonzero(mask_HW)
            assert (x <= columns.min(), y <= rows.min()) == (True, True)
            assert (columns.max() < x + width, rows.max() < y + height) == (True, True)


def test_an_image_without_regions_is_one_box(tile_run, tmp_path, capsys):
    coco = exported(tile_run, tmp_path, capsys)
    results = finalize.read_results(tile_run).to_pandas()
    flagged = results[results["prediction"] == "crack"]
    assert len(flagged) == len(coco.getImgIds()) == len(coco.getAnnIds()) > 0
    for found in coco.loadAnns(coco.getAnnIds()):
        (image,) = coco.loadImgs([found["image_id"]])
        assert found["bbox"] == [0, 0, image["width"], image["height"]] == [0, 0, 96, 96]
        assert coco.annToMask(found).all()
        assert found["area"] == 96 * 96


def test_only_a_finished_run_is_exported(tmp_path, capsys):
    assert cli.main(["export", str(tmp_path), "--coco", str(tmp_path / "c.json")]) == 3
    assert "is no run" in capsys.readouterr().err
    assert not (tmp_path / "c.json").exists()
