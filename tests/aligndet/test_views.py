"""Two views: what is drawn, and that box i of both is the same proposal."""

import numpy as np
import pytest
from detectron2.structures import BoxMode
from PIL import Image

from aligndet.views import OPERATIONS, SHORT_SIDES, TwoViewMapper, recolour


@pytest.fixture
def record(tmp_path):
    """An image with three squares of known colours; the boxes are theirs."""
    image = np.full((300, 400, 3), 128, np.uint8)
    boxes = [(20, 30, 60, 60), (150, 100, 80, 80), (300, 200, 70, 70)]
    for i, (x, y, w, h) in enumerate(boxes):
        image[y : y + h, x : x + w] = np.eye(3)[i] * 255
    Image.fromarray(image).save(tmp_path / "a.png")
    annotations = [
        {"bbox": list(map(float, b)), "bbox_mode": BoxMode.XYWH_ABS, "category_id": i, "iscrowd": 0}
        for i, b in enumerate(boxes)
    ]
    return {
        "file_name": str(tmp_path / "a.png"),
        "image_id": 5,
        "height": 300,
        "width": 400,
        "dataset_name": "d",
        "annotations": annotations,
    }


def test_box_identity_survives_both_views(record):
    mapper = TwoViewMapper(short_edge_lengths=(280, 320), max_size=500, operations=["identity"])
    flips = set()
    for seed in range(12):
        np.random.seed(seed)
        out = mapper(record)
        flips.add((out["instances"].gt_boxes.tensor[0, 0] < 200, bool(out["second_boxes"][0, 0] < 200)))
        views = [(out["image"], out["instances"].gt_boxes.tensor), (out["second_image"], out["second_boxes"])]
        for image, boxes in views:
            for i, (x0, y0, x1, y1) in enumerate(boxes.round().int().tolist()):
                inside = image[:, y0 + 3 : y1 - 3, x0 + 3 : x1 - 3].float().mean((1, 2))
                assert inside.argmax() == i and inside.max() > 250
    assert len(flips) > 1  # independent draws
    assert out["instances"].gt_classes.tolist() == [0, 1, 2] and out["image_id"] == 5 and "annotations" not in out


def test_sizes_are_the_published_ones(record):
    shorts = set()
    for seed in range(40):
        np.random.seed(seed)
        out = TwoViewMapper()(record)
        for image in (out["image"], out["second_image"]):
            shorts.add(min(image.shape[1:]))
            assert max(image.shape[1:]) <= 1333
        assert out["instances"].image_size == tuple(out["image"].shape[1:])
    assert shorts == set(SHORT_SIDES) == {640, 672, 704, 736, 768, 800}


def test_every_operation_is_drawn_and_only_one(record, monkeypatch):
    drawn = []
    monkeypatch.setattr("aligndet.views.recolour", lambda image, op, m: drawn.append((op, m)) or image)
    mapper = TwoViewMapper(short_edge_lengths=(64,))
    for seed in range(150):
        np.random.seed(seed)
        mapper(record)
    assert len(drawn) == 300 and {op for op, _ in drawn} == set(OPERATIONS) and len(OPERATIONS) == 9
    assert {m for _, m in drawn} == set(range(1, 10))


def test_magnitudes():
    image = np.arange(0, 256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    np.testing.assert_array_equal(recolour(image, "identity", 9), image)
    solarized = recolour(image, "solarize", 5)
    np.testing.assert_array_equal(solarized, np.where(image < 128, image, 255 - image))
    for magnitude, bits in ((1, 4), (2, 4), (3, 3), (5, 2), (8, 1), (9, 1)):
        assert len(np.unique(recolour(image, "posterize", magnitude))) == 2**bits
    np.testing.assert_array_equal(recolour(image, "brightness", 5), image)  # factor 1
    assert recolour(image, "brightness", 1).max() == int(255 * 0.28)


def test_first_boxes_of_the_file_are_taken(record):
    assert len(TwoViewMapper(max_proposals=2)(record)["instances"]) == 2
    record["annotations"] = []
    assert TwoViewMapper()(record) is None
    with pytest.raises(ValueError, match="rotate"):
        TwoViewMapper(operations=["rotate"])
