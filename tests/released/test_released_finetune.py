"""`configs/finetune` from a random file in a released layout: sizes, rows by name, frozen parts and rates follow."""

import json

import pytest
import torch
from PIL import Image
from released_names import write

from polydet.data import DatasetCard, register_card
from polydet.engine import load_config
from polydet.engine.build import build_model, build_trainer, initialise
from polydet.model_zoo.zoo import config_root

CLASSES = ("dog", "raccoon", "person")  # raccoons are not COCO's
FILES = {
    "deformable_detr_two_stage": "detr_official_deformable_r50_two_stage",
    "dino": "detr_official_dino_4scale_r50",
    "co_dino": "codetr_dino_r50",
    "scaledet": "scaledet_detic_r50",
}


@pytest.fixture(scope="module")
def card(tmp_path_factory):
    """Two of COCO's classes in another order, and one that COCO has not."""
    folder = tmp_path_factory.mktemp("photographs")
    Image.new("RGB", (320, 240), "gray").save(folder / "0.jpg")
    box = {"image_id": 0, "area": 1, "iscrowd": 0, "bbox": [40, 20, 200, 180]}
    document = {
        "images": [{"id": 0, "file_name": "0.jpg", "width": 320, "height": 240}],
        "categories": [{"id": i, "name": name} for i, name in enumerate(CLASSES)],
        "annotations": [{"id": i, "category_id": i, **box} for i in range(3)],
    }
    (folder / "train.json").write_text(json.dumps(document))
    register_card(DatasetCard("my_photographs", str(folder / "train.json"), str(folder)), overwrite=True)
    return "my_photographs"


def rates(trainer):
    """Parameter -> its learning rate."""
    return {id(p): group["lr"] for group in trainer.optimizer.param_groups for p in group["params"]}


@pytest.mark.parametrize("name", FILES)
def test_a_released_file_is_fine_tuned(name, card, tmp_path):
    path = tmp_path / "released.pth"
    numbers = write(FILES[name], path, shared=name == "dino")
    config = config_root() / "finetune" / f"{name}.py"
    given = [f"dataloader.train.datasets=[{card}]", "train.device=cpu", "recipe.speed=fast"]
    cfg = load_config(config, [*given, f"train.init_checkpoint={path}"])
    model = build_model(cfg)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    initialise(cfg, model)
    after = model.state_dict()

    random = {k for k, v in before.items() if v.is_floating_point() and v.unique().numel() > 1}
    kept = {k for k in random if torch.equal(after[k], before[k])}
    new = {k for k in kept if "cls_score" in k}  # Detic's words are CLIP's, these are another encoder's
    assert kept == new and len(new) == (6 if name == "scaledet" else 0)
    if name != "scaledet":
        weight, old = after["class_heads.0.weight"], before["class_heads.0.weight"]
        assert [torch.equal(a, b) for a, b in zip(weight, old)] == [False, True, False]
        assert weight[0].unique().tolist() == weight[2].unique().tolist()
        assert weight[0, 0].item() in numbers.values()

    by_id = rates(build_trainer(cfg, model))
    frozen = {k for k, p in model.named_parameters() if id(p) not in by_id or not p.requires_grad}
    assert frozen and all("bottom_up" in k for k in frozen)
    assert any("layer1" in k for k in frozen) and not any("layer2" in k and "conv" in k for k in frozen)
    found = {k: by_id[id(p)] for k, p in model.named_parameters() if k not in frozen}
    fast, factor = load_config(config, given).optimizer.lr, 1 if name == "scaledet" else 0.1
    for key, rate in found.items():
        assert rate == pytest.approx(fast / 4 * (factor if "bottom_up" in key else 1)), key
