"""Each detector that AlignDet pre-trains, and a small dataset of scenes."""

import json

import cv2
import numpy as np
import pytest
from aligndet_detectors import DETECTORS, scene

from polydet.data import DatasetCard, register_card


@pytest.fixture(params=list(DETECTORS))
def kind(request):
    return request.param


@pytest.fixture
def card(tmp_path):
    """A COCO json of twelve images listed in an order that is not that of their ids; one has nothing to propose."""
    images, annotations = [], []
    for i in range(12):
        image = scene(i) if i else np.full((120, 160, 3), 128, np.uint8)
        cv2.imwrite(str(tmp_path / f"{i}.png"), image)
        images.append({"id": 100 - 7 * i, "file_name": f"{i}.png", "height": 120, "width": 160})
        annotations.append({"id": i + 1, "image_id": 100 - 7 * i, "category_id": 4, "bbox": [5, 6, 30, 40]})
        annotations[-1] |= {"area": 1200, "iscrowd": 0}
    document = {"images": images, "annotations": annotations, "categories": [{"id": 4, "name": "thing"}]}
    (tmp_path / "a.json").write_text(json.dumps(document))
    name = f"aligndet_test_{tmp_path.name}"
    return register_card(DatasetCard(name, str(tmp_path / "a.json"), str(tmp_path)), overwrite=True)
