"""Images and boxes through the augmentations; bad images."""

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from PIL import Image

from polydet.data import DatasetError, DetectionMapper, load_card, read_image
from polydet.data.augmentations import (
    EfficientDetResizeCrop,
    RandomSelect,
    detr_multi_scale,
    fixed_resize,
    large_scale_jitter,
    resize_shortest_edge,
)
from polydet.data.shapeworld import names
from polydet.data.shapeworld.documents import coco_document
from polydet.data.shapeworld.generate import scenes_of, write_images

AUGMENTATIONS = {
    "lsj": lambda: large_scale_jitter(128),
    "shortest": lambda: resize_shortest_edge((100, 140, 180), 400),
    "range": lambda: resize_shortest_edge((100, 180), 400, style="range"),
    "detr": lambda: detr_multi_scale((100, 120), 300, (110, 150), (90, 140)),
    "fixed": lambda: fixed_resize(96, 128, flip=True),
}


@pytest.fixture(scope="module")
def scenes():
    return scenes_of("mapper", 6, names.colour_weights(), max_shapes=4)


@pytest.fixture
def records(scenes, bench):
    write_images(bench.root / "images", scenes)
    bench.document = coco_document(scenes, names.COARSE, list(names.COARSE.values()))
    bench.card()
    return load_card("toy")


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_boxes_follow_the_pixels(records, name):
    """A mask painted where the boxes are, augmented as an image, has the augmented boxes' extents."""
    augmentations = AUGMENTATIONS[name]()
    for seed, record in enumerate(records):
        painted = np.zeros((record["height"], record["width"], 3), np.uint8)
        annotation = max(record["annotations"], key=lambda a: a["bbox"][2] * a["bbox"][3])
        x, y, w, h = (round(v) for v in annotation["bbox"])
        painted[y : y + h, x : x + w] = 255
        np.random.seed(seed)
        aug_input = T.AugInput(painted)
        transforms = T.AugmentationList(augmentations)(aug_input)
        single = {**annotation, "bbox": [x, y, w, h]}
        instances, rows = DetectionMapper(True, []).instances([single], transforms, aug_input.image.shape[:2])
        ys, xs = np.nonzero(aug_input.image[..., 0] > 127)
        if not len(rows):
            assert not len(xs)
            continue
        x0, y0, x1, y1 = instances.gt_boxes.tensor[0].tolist()
        assert 0 <= x0 < x1 <= aug_input.image.shape[1] and 0 <= y0 < y1 <= aug_input.image.shape[0]
        if len(xs):
            np.testing.assert_allclose((xs.min(), ys.min(), xs.max() + 1, ys.max() + 1), (x0, y0, x1, y1), atol=1.6)


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("masks", ["none", "polygon", "bitmask"])
def test_output(records, name, masks):
    use = masks != "none"
    mapper = DetectionMapper(
        True, AUGMENTATIONS[name](), use_masks=use, mask_format=masks if use else "polygon", recompute_boxes=use
    )
    for record in records:
        np.random.seed(1)
        out = mapper(record)
        assert out["image"].dtype == torch.uint8 and out["image"].shape[0] == 3
        assert (out["height"], out["width"]) == (160, 192) and "annotations" not in out
        instances = out["instances"]
        assert instances.image_size == tuple(out["image"].shape[1:])
        assert instances.gt_classes.dtype == torch.int64 and instances.gt_boxes.tensor.dtype == torch.float32
        assert bool(instances.gt_boxes.nonempty().all())
        if use:
            tight = instances.gt_masks.get_bounding_boxes().tensor
            torch.testing.assert_close(tight, instances.gt_boxes.tensor)
            assert instances.gt_masks.nonempty().all()


def test_same_numbers_give_the_same_sample(records):
    mapper = DetectionMapper(True, AUGMENTATIONS["detr"]())
    outs = []
    for _ in range(2):
        np.random.seed(7)
        outs.append([mapper(record) for record in records])
    for a, b in zip(*outs):
        assert torch.equal(a["image"], b["image"])
        assert torch.equal(a["instances"].gt_boxes.tensor, b["instances"].gt_boxes.tensor)
    assert len({tuple(out["image"].shape) for out in outs[0]}) > 1


def test_resize_crop_equals_resize_then_crop():
    image = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    for seed in range(20):
        np.random.seed(seed)
        transform = EfficientDetResizeCrop(100, (0.1, 2.0)).get_transform(image)
        (new_h, new_w), (y, x), (h, w) = transform.new_size, transform.offset, transform.crop
        whole = np.asarray(Image.fromarray(image).resize((new_w, new_h), Image.Resampling.BILINEAR))
        np.testing.assert_allclose(transform.apply_image(image).astype(int), whole[y : y + h, x : x + w], atol=2)
        assert max(h, w) <= 100 and h == min(new_h, 100) and w == min(new_w, 100)
        points = np.array([[10.0, 20.0], [119.0, 89.0]])
        np.testing.assert_allclose(transform.apply_coords(points.copy()), points * (new_w / 120, new_h / 90) - (x, y))


def test_jitter_covers_its_range():
    image = np.zeros((50, 100, 3), np.uint8)
    np.random.seed(0)
    widths = [EfficientDetResizeCrop(200, (0.1, 2.0)).get_transform(image).new_size[1] for _ in range(300)]
    assert 20 <= min(widths) < 30 and 385 < max(widths) <= 400


def test_select_is_one_or_the_other():
    augmentation = RandomSelect([T.Resize((10, 10))], [T.Resize((20, 20))], 0.25)
    np.random.seed(0)
    sizes = []
    for _ in range(200):
        aug_input = T.AugInput(np.zeros((5, 5, 3), np.uint8))
        augmentation(aug_input)
        sizes.append(aug_input.image.shape[0])
    assert 30 < sizes.count(10) < 75 and sizes.count(10) + sizes.count(20) == 200


def test_crowds_and_test_mode(records):
    record = records[0]
    record["annotations"][0]["iscrowd"] = 1
    out = DetectionMapper(True, [])(record)
    assert len(out["instances"]) == len(record["annotations"]) - 1
    out = DetectionMapper(False, [])(record)
    assert "instances" not in out and "annotations" not in out and out["dataset_name"] == "toy"


def test_phrases_stay_with_their_boxes(records):
    record = records[0]
    record["annotations"] = [
        {"bbox": [500, 500, 4, 4], "category_id": 0, "iscrowd": 0, "phrase": "outside"},
        {"bbox": [5, 5, 40, 40], "category_id": 0, "iscrowd": 0, "phrase": "a red disc"},
    ]
    record["caption"] = "a red disc"
    out = DetectionMapper(True, [])(record)
    assert out["phrases"] == ["a red disc"] and len(out["instances"]) == 1 and out["caption"] == "a red disc"


def test_rgb_order(tmp_path):
    image = np.zeros((8, 8, 3), np.uint8)
    image[..., 0] = 255
    Image.fromarray(image).save(tmp_path / "red.png")
    record = {"file_name": str(tmp_path / "red.png"), "height": 8, "width": 8}
    assert read_image(record)[0, 0].tolist() == [255, 0, 0]
    assert read_image(record, "BGR")[0, 0].tolist() == [0, 0, 255]


def test_image_inside_a_shard(tmp_path, scenes):
    data = cv2.imencode(".png", np.full((4, 6, 3), 9, np.uint8))[1].tobytes()
    (tmp_path / "x.tar").write_bytes(b"junk" + data + b"junk")
    record = {"file_name": str(tmp_path / "x.tar"), "height": 4, "width": 6, "file_offset": 4, "file_size": len(data)}
    assert read_image(record).shape == (4, 6, 3)


def broken_images(folder, scenes):
    write_images(folder, scenes[:1])
    good = (folder / "000000000001.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(good[: len(good) // 2])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("not an image")
    (folder / "folder.jpg").mkdir()
    return {"truncated.jpg": "truncated", "empty.jpg": "cannot", "text.jpg": "cannot", "folder.jpg": "Is a dir"}


def test_bad_images_are_named(tmp_path, scenes):
    reasons = broken_images(tmp_path, scenes)
    for file, word in {**reasons, "gone.jpg": "does not exist"}.items():
        record = {"file_name": str(tmp_path / file), "image_id": 5, "dataset_name": "toy", "height": 160, "width": 192}
        with pytest.raises(DatasetError) as error:
            read_image(record)
        assert file in str(error.value) and word in str(error.value) and "image id 5 of toy" in str(error.value)


def test_wrong_size_is_named(tmp_path, scenes):
    write_images(tmp_path, scenes[:1])
    record = {"file_name": str(tmp_path / "000000000001.jpg"), "height": 192, "width": 160}
    with pytest.raises(DatasetError, match="192x160 but annotated as 160x192"):
        read_image(record)
    assert read_image({**record, "height": 0, "width": 0}).shape == (160, 192, 3), "size unknown"


def test_run_length_masks_of_plain_counts(bench):
    """COCO's uncompressed form, which Detectron2's mapper cannot read; one that does not fill its image is no mask."""
    Image.new("RGB", (60, 40)).save(bench.root / "images" / "b.jpg")
    counts = [1 * 40 + 2, 12, 60 * 40 - 42 - 12]  # column 1, rows 2 to 13
    bench.document["annotations"][0]["segmentation"] = {"size": [40, 60], "counts": counts}
    bench.document["annotations"][1]["segmentation"] = {"size": [50, 30], "counts": counts}
    bench.card()
    other, record, _ = load_card("toy")
    assert "segmentation" not in other["annotations"][0]
    found = DetectionMapper(True, [], use_masks=True, mask_format="bitmask")(record)["instances"]
    assert found.gt_masks.tensor.nonzero()[:, 1:].tolist() == [[y, 1] for y in range(2, 14)]
    with pytest.raises(ValueError, match="mask_format='bitmask'"):
        DetectionMapper(True, [], use_masks=True)(record)
