"""Regions in the form of COCO's detection data sets, which labelling tools and detectors read."""

from collections.abc import Sequence
from typing import Any


def regions_coco(verdicts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """From ``Verdict.as_dict``: images, and an annotation for each region; its score is the map's highest value there.

    Boxes are ``[x, y, width, height]``; areas are pixels above the threshold, so holes, which polygons fill, are left
    out of them.
    """
    images, annotations = [], list[dict[str, Any]]()
    for number, verdict in enumerate(verdicts, start=1):
        size = {"width": verdict["width"], "height": verdict["height"]}
        images.append({"id": number, "file_name": verdict["path"], **size})
        for region in verdict["regions"]:
            x0, y0, x1, y1 = region["box"]
            found = {
                "id": len(annotations) + 1,
                "image_id": number,
                "category_id": 1,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": region["area"],
                "segmentation": [[axis for corner in polygon for axis in corner] for polygon in region["outline"]],
                "iscrowd": 0,
                "score": region["worst"],
            }
            annotations.append(found)
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "defect"}]}
