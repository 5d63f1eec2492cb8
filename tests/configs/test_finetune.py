"""Configs of fine-tuning: each trains on any card, on several, and from weights with other classes, by overrides."""

from dataclasses import replace

import pytest
import torch
from detectron2.config import instantiate

from polydet.data import label_space_of, register_card
from polydet.data.card import find_card
from polydet.data.shapeworld.generate import VERSION, write_part
from polydet.engine import load_config, run
from polydet.model_zoo.zoo import config_root

CONFIGS = {path.stem: path for path in sorted((config_root() / "finetune").glob("*.py"))}
DENSE = {"atss", "detclipv2", "fcos", "retinanet"}
DETRS = {"co_dino", "deformable_detr_two_stage", "dino", "metr"}
EXPECTED = {"scaledet", "faster_rcnn"} | DENSE | DETRS

CLASS_ROWS = {  # tensors with a row for each class
    "scaledet": [],  # words, not rows
    "faster_rcnn": ["roi_heads.box_predictor.cls_score.weight", "roi_heads.box_predictor.cls_score.bias"],
    "dino": ["class_heads.0.weight", "denoising.label_embedding.weight"],
}


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
    card = find_card("shapes_coco_train")  # the same files, three of the names in another order, the others new
    new = dict(square="brick", rectangle="box", triangle="wedge", hexagon="nut", oval="egg")
    names, ids = ("star", "ring", "circle", *new.values()), (6, 2, 1, 3, 4, 5, 7, 8)
    register_card(replace(card, name="other_names", classes=names, category_ids=ids, spelling=new))
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
    cards = "shapes_coco_train,other_names,shapes_lvis_train"
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


@pytest.mark.parametrize("name", ["scaledet", "faster_rcnn", "dino"])
def test_from_a_model_of_other_classes_rows_go_by_name(name, world, tmp_path):
    small = ["train.max_iter=1", "model.dim=32"] if name == "dino" else ["train.max_iter=1"]
    first = load_config(CONFIGS[name], toy(tmp_path / "first", *small, cards="other_names"))
    first.dataloader.test_datasets = []
    run(first)
    start = tmp_path / "first" / "model_final.pth"
    overrides = toy(tmp_path / "second", f"train.init_checkpoint={start}", "optimizer.lr=0.0", "train.max_iter=1")
    second = load_config(CONFIGS[name], overrides)
    assert second.model.backbone.out_channels == first.model.backbone.out_channels
    assert second.model.backbone.bottom_up.weights is None
    run(second)
    folders = (tmp_path / "first", tmp_path / "second")
    before, after = (torch.load(f / "model_final.pth", weights_only=True)["model"] for f in folders)
    old, new = (label_space_of(c.dataloader.train.datasets, c.dataloader.train.merge).names for c in (first, second))
    shared = set(old) & set(new)
    assert len(shared) == 3
    for key in CLASS_ROWS[name]:
        for word in shared:
            torch.testing.assert_close(after[key][new.index(word)], before[key][old.index(word)])
    same = [k for k in after if k in before and after[k].shape == before[k].shape]
    assert sum(torch.equal(after[k], before[k]) for k in same) > 0.9 * len(same)
