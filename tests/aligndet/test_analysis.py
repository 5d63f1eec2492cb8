import json

import numpy as np
import pytest
import torch
from aligndet_detectors import build, two_view_batch
from PIL import Image

from aligndet.analysis import annotated_views, box_embeddings, draw_centres, draw_tsne, separation
from aligndet.pretrainer import AlignDet
from polydet.data import DatasetCard, register_card


def views():
    found = AlignDet.two_views(two_view_batch())[0]
    for view in found:
        view["instances"].gt_ids = torch.arange(6)
        view["instances"].gt_classes = torch.arange(6) % 3
        view["objects"] = view["instances"].gt_boxes.tensor
    return found


def test_embeddings_and_pictures(kind, tmp_path):
    adapter = build(kind)
    embeddings, classes = box_embeddings(adapter, views())
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)
    assert len(embeddings) == len(classes) and set(classes) == {0, 1, 2}
    scores = draw_tsne({"a": (embeddings, classes)}, ["x", "y", "z"], tmp_path / "tsne.png")
    assert -1 <= scores["a"] <= 1 and (tmp_path / "tsne.png").stat().st_size > 5000
    if kind == "retinanet":
        with pytest.raises(TypeError, match="does not rank boxes"):
            draw_centres({"a": adapter}, views(), tmp_path / "centres.png")
        return
    inside = draw_centres({"a": adapter}, views()[:1], tmp_path / "centres.png", limit=20)
    assert 0 <= inside["a"] <= 1 and (tmp_path / "centres.png").stat().st_size > 5000
    boxes = adapter.ranked_boxes(views(), 20)
    assert len(boxes) == 2 and all(b.shape == (20, 4) for b in boxes)


@pytest.mark.parametrize("kind", ["detr", "dino"])
def test_detrs_rank_by_what_they_score(kind):
    """Softmax with a background class, and sigmoids without one."""
    adapter = build(kind).eval()
    view, detector = views()[0], adapter.detector
    with torch.no_grad():
        memory = detector.encode(detector.preprocess([view]))
        found = detector.decode(detector.build_queries(memory, None), memory, last_only=True)
    logits, boxes = found.logits[-1, 0], found.boxes[-1, 0]
    score = 1 - logits.softmax(1)[:, -1] if kind == "detr" else logits.sigmoid().amax(1)
    best = boxes[score.argmax()]
    height, width = view["image"].shape[-2:]
    centre = (adapter.ranked_boxes([view], 1)[0][0].view(2, 2).mean(0) / torch.tensor([width, height])).tolist()
    assert centre == pytest.approx(best[:2].tolist(), abs=1e-4)


def test_centres_in_boxes_of_any_class_count(tmp_path):
    """Pre-training knows no classes: a centre in an object of a class that is not shown lies in an object too."""

    class Ranks(torch.nn.Module):
        def ranked_boxes(self, views, limit):
            return [torch.tensor([[0.0, 0, 20, 20], [100, 20, 120, 40], [150, 100, 160, 110]])]

    picture = np.zeros((60, 90, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    boxes = [([2, 2, 10, 10], 1, 0), ([50, 5, 20, 20], 2, 0), ([0, 40, 5, 5], 3, 1)]
    document = {
        "images": [{"id": 1, "file_name": "a.png", "height": 60, "width": 90}],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": k, "bbox": box, "iscrowd": crowd}
            for i, (box, k, crowd) in enumerate(boxes, 1)
        ],
        "categories": [{"id": k, "name": name} for k, name in enumerate(("cup", "dog", "elk"), 1)],
    }
    (tmp_path / "a.json").write_text(json.dumps(document))
    register_card(DatasetCard("any_class", str(tmp_path / "a.json"), str(tmp_path)), overwrite=True)
    (view,) = annotated_views("any_class", ["cup"], 5, short=120, max_size=500)
    assert len(view["instances"]) == 1 and view["image"].shape == (3, 120, 180)
    assert view["objects"].tolist() == [[4, 4, 24, 24], [100, 10, 140, 50], [0, 80, 10, 90]]
    inside = draw_centres({"a": Ranks()}, [view], tmp_path / "c.png")
    assert inside["a"] == pytest.approx(2 / 3)


def test_separation_orders_what_is_separated():
    rng = np.random.default_rng(0)
    classes = np.repeat([0, 1, 2], 30)
    mixed = rng.normal(size=(90, 8))
    apart = np.eye(8)[classes] + 0.05 * mixed
    assert separation(apart, classes) > 0.8 > 0.2 > separation(mixed, classes)
