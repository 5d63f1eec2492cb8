"""Configs of fine-tuning: each trains on any card, on several, and from weights with other classes, by overrides."""

import pytest
import torch
from detectron2.config import instantiate

from polydet.data.shapeworld.generate import VERSION, write_part
from polydet.engine import load_config, run
from polydet.model_zoo.zoo import config_root

CONFIGS = {path.stem: path for path in sorted((config_root() / "finetune").glob("*.py"))}
DENSE = {"atss", "detclipv2", "fcos", "retinanet"}
DETRS = {"co_dino", "deformable_detr_two_stage", "dino", "metr"}
EXPECTED = {"scaledet", "faster_rcnn"} | DENSE | DETRS


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A small ShapeWorld."""
    folder = tmp_path_factory.mktemp("finetune")
    for part in ("coco", "lvis"):
        target = folder / "datasets" / "shapeworld" / VERSION / part
        target.mkdir(parents=True)
        write_part(part, target, {"train": 8, "val": 2})
    patch = pytest.MonkeyPatch()
    patch.setenv("DETECTRON2_DATASETS", str(folder / "datasets"))
    patch.setenv("POLYDET_CACHE", str(folder / "cache"))
    yield folder
    patch.undo()


def toy(folder, *overrides, name="", cards="shapes_coco_train"):
    mapper = "dataloader.train.mapper" + ".mapper" * (name == "detclipv2")
    return [
        f"dataloader.train.datasets=[{cards}]",
        "dataloader.test_datasets=[shapes_coco_val]",
        "recipe.speed=fast",
        f"{mapper}.augmentations.short=64",
        "dataloader.train.total_batch_size=2",
        "dataloader.train.num_workers=0",
        "train.device=cpu",
        "train.max_iter=2",
        "train.pictures=0",
        f"train.output_dir={folder}",
        *overrides,
    ]


def test_every_recipe_is_here():
    assert set(CONFIGS) == EXPECTED


@pytest.mark.parametrize("name", CONFIGS)
def test_two_steps_on_several_cards_with_shared_names_and_partial_labels(name, world, tmp_path):
    cards = "shapes_coco_train,shapes_lvis_train"
    results = run(load_config(CONFIGS[name], toy(tmp_path, name=name, cards=cards)))
    assert "AP" in results["shapes_coco_val"]["bbox"]
    assert torch.load(tmp_path / "model_final.pth", weights_only=True)["iteration"] == 1


@pytest.mark.parametrize("name", ["scaledet", "faster_rcnn"])
def test_two_steps_on_a_card(name, world, tmp_path):
    assert "AP" in run(load_config(CONFIGS[name], toy(tmp_path)))["shapes_coco_val"]["bbox"]


@pytest.mark.parametrize("name", CONFIGS)
def test_the_gpu_size_is_built(name, world):
    overrides = toy("unused", "recipe.speed=gpu", "model.backbone.bottom_up.weights=null", name=name)
    cfg = load_config(CONFIGS[name], overrides)
    assert instantiate(cfg.model)
