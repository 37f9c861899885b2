"""COCO JSON, read by what it defines and not by our code: polygons filled point by point."""

import numpy as np
from matplotlib.path import Path as Polygon

from blemish.inspection.regions import find_regions, regions_coco


def test_regions_read_back_from_coco_are_those_of_the_map():
    rng = np.random.default_rng(5)
    maps = [rng.random((14, 23)).astype(np.float32), np.zeros((9, 12), np.float32)]
    maps[1][2:6, 3:9] = 2
    maps[1][3:5, 5:7] = 0  # a hole, which polygons fill
    rows = []
    for number, map_ in enumerate(maps):
        found = [dict(vars(region)) for region in find_regions(map_, 0.7)]
        rows.append({"path": f"{number}.png", "width": map_.shape[1], "height": map_.shape[0], "regions": found})
    rows.append({"path": "good.png", "width": 12, "height": 9, "regions": []})
    listed = regions_coco(rows)
    assert [image["file_name"] for image in listed["images"]] == ["0.png", "1.png", "good.png"]
    assert [annotation["id"] for annotation in listed["annotations"]] == list(range(1, len(listed["annotations"]) + 1))
    assert {category["id"] for category in listed["categories"]} == {1}
    for image, map_ in zip(listed["images"], [*maps, maps[1] * 0]):
        height, width = image["height"], image["width"]
        middles = np.stack(np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5), axis=-1).reshape(-1, 2)
        filled = np.zeros((height, width), bool)
        for annotation in (one for one in listed["annotations"] if one["image_id"] == image["id"]):
            inside = np.zeros((height, width), bool)
            for polygon in annotation["segmentation"]:
                inside |= Polygon(np.reshape(polygon, (-1, 2))).contains_points(middles).reshape(height, width)
            own = inside & (map_ > np.float32(0.7))
            rows_, columns = np.nonzero(inside)
            box = [columns.min(), rows_.min(), np.ptp(columns) + 1, np.ptp(rows_) + 1]
            assert (annotation["bbox"], annotation["category_id"], annotation["iscrowd"]) == (box, 1, 0)
            if image["file_name"] == "1.png":
                assert (annotation["area"], own.sum(), inside.sum()) == (20, 20, 24)
            assert annotation["score"] <= map_[own].max()
            filled |= inside
        np.testing.assert_array_equal(filled & (map_ > np.float32(0.7)), map_ > np.float32(0.7))
