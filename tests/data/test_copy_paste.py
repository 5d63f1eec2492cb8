"""Copy-paste on a fixed canvas."""

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Boxes, Instances

from polydet.data import build_train_loader, load_card
from polydet.data.copy_paste import CanvasMapper, CopyPasteMapper, PadToCanvas, canvas_jitter, canvas_resize, paste


def objects(boxes, classes, size=(20, 30)):
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes):
        mask[y0:y1, x0:x1] = True
    result = Instances(size)
    result.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).view(-1, 4))
    result.gt_classes = torch.tensor(classes, dtype=torch.int64)
    result.gt_masks = BitMasks(masks)
    return result


def test_paste_covers_pixels_masks_and_boxes():
    image, source = torch.zeros(3, 20, 30, dtype=torch.uint8), torch.full((3, 20, 30), 9, dtype=torch.uint8)
    below = objects([[0, 0, 10, 10], [12, 12, 14, 14], [20, 0, 25, 5]], [0, 1, 2])
    above = objects([[5, 0, 15, 16]], [3])
    new, result = paste(image, below, source, above)
    assert (new[:, 0:16, 5:15] == 9).all() and new.float().sum() == 9 * 3 * 16 * 10
    # the first loses its right half, the second disappears, the third is untouched, the pasted one is last
    assert result.gt_classes.tolist() == [0, 2, 3]
    torch.testing.assert_close(result.gt_boxes.tensor, torch.tensor([[0.0, 0, 5, 10], [20, 0, 25, 5], [5, 0, 15, 16]]))
    assert result.gt_masks.tensor[0].sum() == 50
    # an object of which too little is left goes
    _, strict = paste(image, below, source, above, max_shift=4.0, min_area=50)
    assert strict.gt_classes.tolist() == [2, 3]
    assert paste(image, below, source, above[:0])[1] is below


def test_canvas_keeps_aspect_and_pads_below_and_right():
    image = np.full((30, 60, 3), 200, np.uint8)
    padded = T.AugInput(image)
    T.AugmentationList(canvas_resize(120))(padded)
    assert padded.image.shape == (120, 120, 3)
    assert (padded.image[:60] == 200).all() and (padded.image[60:] == 114).all()
    with pytest.raises(ValueError, match="60x30 image does not fit a canvas of 40"):
        PadToCanvas(40).get_transform(image)


@pytest.fixture
def card(bench):
    """Four images, a red square in one corner of each, in a COCO file with polygons."""
    images, annotations = [], []
    for i, (x, y) in enumerate([(2, 2), (40, 2), (2, 20), (40, 20)]):
        picture = np.zeros((40, 60, 3), np.uint8)
        picture[y : y + 15, x : x + 15, 0] = 255
        cv2.imwrite(str(bench.root / "images" / f"{i}.png"), picture[..., ::-1])
        images.append({"id": i + 1, "file_name": f"{i}.png", "height": 40, "width": 60})
        annotation = {"id": i + 1, "image_id": i + 1, "category_id": 1, "bbox": [x, y, 15, 15], "iscrowd": 0}
        annotation["segmentation"] = [[x, y, x + 15, y, x + 15, y + 15, x, y + 15]]
        annotations.append({**annotation, "area": 225})
    categories = [{"id": 1, "name": "red"}]
    bench.document = {"images": images, "annotations": annotations, "categories": categories}
    return bench.card(classes=("red",)).name


def test_training_sample(card):
    """Every box holds red pixels to its border, every red pixel lies in a box, and the stream repeats."""
    mapper = CopyPasteMapper([card], size=96, scale=(0.8, 1.5), min_area=10)
    counts, first = set(), []
    for _ in range(2):
        loader = build_train_loader([card], mapper, 2, num_workers=0)
        batches = [sample for batch, _ in zip(loader, range(6)) for sample in batch]
        for sample in batches:
            image, instances = sample["image"], sample["instances"]
            assert image.shape == (3, 96, 96) and not instances.has("gt_masks")
            counts.add(len(instances))
            red = (image[0] > 200) & (image[1] < 60)
            inside = torch.zeros_like(red)
            for x0, y0, x1, y1 in instances.gt_boxes.tensor.round().long().tolist():
                assert red[y0:y1, x0:x1].float().mean() > 0.5
                inside[max(y0 - 2, 0) : y1 + 2, max(x0 - 2, 0) : x1 + 2] = True
            assert not (red & ~inside).any()
        first.append([s["instances"].gt_boxes.tensor for s in batches])
    assert counts >= {1, 2}
    assert all(a.equal(b) for a, b in zip(*first))


def test_canvas_sizes_bring_boxes_back(card):
    mapper = CanvasMapper(is_train=False, augmentations=canvas_resize(120))
    record = load_card(card).record(0)
    sample = mapper(record)
    assert sample["image"].shape == (3, 120, 120)
    # the square at x 2..17, y 2..17 lies at 4..34 of 120 canvas pixels; as a fraction of the canvas times `height`
    assert sample["height"] == sample["width"] == 60
    red = (sample["image"][0] > 128) & (sample["image"][1] < 60)
    rows, columns = red.nonzero().unbind(1)
    box = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / 120 * 60
    torch.testing.assert_close(box, torch.tensor([2.0, 2.0, 17.0, 17.0]), atol=1.0, rtol=0)
    train = CanvasMapper(is_train=True, augmentations=canvas_jitter(120))(record)
    assert train["image"].shape == (3, 120, 120) and train["height"] == 40
