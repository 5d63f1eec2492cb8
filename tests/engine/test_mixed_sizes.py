"""A batch of images of several sizes is evaluated as each image alone."""

import json

import numpy as np
import pytest
import torch
from detectron2.config import instantiate
from PIL import Image
from scipy.optimize import linear_sum_assignment

from polydet import model_zoo
from polydet.data import DatasetCard, get_card, prepare_cards, register_card
from polydet.engine.evaluate import classes_of, evaluate
from polydet.engine.published import skip_published_weights
from polydet.evaluation import answer_by_size
from polydet.text import LabelSpace

SIZES = [(96, 64), (48, 80), (96, 64), (64, 96), (48, 80), (96, 64), (33, 50), (64, 96)]  # (h, w)
QUICKSTARTS = {"scaledet": None, "metr": None, "codetr": None, "aligndet": "finetune", "detclipv2": "train"}  # stages


@pytest.fixture(scope="module")
def mixed(small_world, tmp_path_factory):
    """A card of noisy images whose annotated sizes say what they are, but for one image that is not there."""
    patch = pytest.MonkeyPatch()
    patch.setenv("DETECTRON2_DATASETS", str(small_world))
    prepare_cards(["shapes_coco_train", "shapes_lvis_train"])
    root, random = tmp_path_factory.mktemp("mixed"), np.random.default_rng(0)
    classes = get_card("shapes_coco_train").classes
    images, annotations = [], []
    for i, (height, width) in enumerate(SIZES):
        Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8)).save(root / f"{i}.png")
        images.append({"id": 100 - i, "file_name": f"{i}.png", "height": height, "width": width})
        box = [4.0, 4.0, 20.0, 20.0]
        annotations.append({"id": i + 1, "image_id": 100 - i, "category_id": 1, "bbox": box, "area": 400, "iscrowd": 0})
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(classes)]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (root / "mixed.json").write_text(json.dumps(document))
    register_card(DatasetCard("mixed", str(root / "mixed.json"), str(root), classes=classes), overwrite=True)
    yield "mixed"
    patch.undo()


def spread(model):
    """Weights far from their start, so that answers are neither alike nor without doubt."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if not name.startswith("backbone.bottom_up"):
                weight += 0.1 * torch.randn(weight.shape, generator=generator)
    return model.eval()


def quickstart(name, stage):
    """Config and model of a quickstart that is evaluated on the card."""
    cfg = model_zoo.get_config(f"quickstart/{name}")
    cfg = cfg.stages[stage] if stage else cfg
    cfg.dataloader.test_datasets = ["mixed"]
    cfg.dataloader.test.update(num_workers=0)
    cfg.dataloader.test.mapper.augmentations = []
    cfg.dataloader.evaluators = {}
    skip_published_weights(cfg.model)
    torch.manual_seed(0)
    return cfg, spread(instantiate(cfg.model))


def answers(cfg, model, folder, batch_size):
    """What an evaluation keeps: image ids as written, and rows of image, class, score and box of all detections."""
    cfg.dataloader.test.batch_size = batch_size
    evaluate(cfg, model, folder, LabelSpace({"mixed": get_card("mixed").classes}))
    found = json.loads((folder / "inference" / "mixed" / "coco_instances_results.json").read_text())
    rows = [[f["image_id"], f["category_id"], f["score"], *f["bbox"]] for f in found]
    return [f["image_id"] for f in found], np.array(rows)


def partners(one, other):
    """Rows of `other` in the order of those of `one` that they are nearest to: scores that tie may change places."""
    distance = np.abs(one[:, None] - other) * [1e3, 1e3, 1e2, 1, 1, 1, 1]
    return other[linear_sum_assignment(distance.sum(-1))[1]]


def scores(answered):
    """All scores, sorted: what padding changes."""
    return torch.cat([output["instances"].scores for output in answered]).sort().values


@pytest.mark.parametrize("name", QUICKSTARTS)
def test_a_batch_is_evaluated_as_its_images_alone(mixed, tmp_path, name):
    cfg, model = quickstart(name, QUICKSTARTS[name])
    ids, alone = answers(cfg, model, tmp_path / "alone", 1)
    together_ids, together = answers(cfg, model, tmp_path / "together", 4)
    assert len(set(ids)) > len(SIZES) // 2 and together_ids == ids and not model.training
    together = partners(alone, together)
    np.testing.assert_allclose(together[:, :3], alone[:, :3], rtol=0, atol=1e-4)
    np.testing.assert_allclose(together[:, 3:], alone[:, 3:], rtol=0, atol=1e-2)

    cfg.dataloader.test.dataset = "mixed"
    images = [item for batch in instantiate(cfg.dataloader.test) for item in batch]
    with torch.no_grad(), classes_of(model, "mixed", None):
        apart, padded = scores(answer_by_size(model, images)), scores(model(images))
    assert len(apart) != len(padded) or (apart - padded).abs().max() > 1e-3, "these weights would not show it"
