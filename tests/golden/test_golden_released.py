"""Released files, whole: what a file in the authors' names, opened by its name alone, detects, and what they detect."""

from dataclasses import replace

import pytest
import torch
from detectron2.config import LazyCall, instantiate
from golden_check import check_detections, detect
from golden_file import load_golden
from golden_models import CONFIGS
from golden_rules import draw

from polydet import model_zoo
from polydet.engine import load_config, load_file
from polydet.text import LabelSpace, Vocabulary

NARROW = ("encoder.num_layers=1", "decoder.num_layers=2")
RESNET = (*NARROW, "backbone.bottom_up.model_kwargs={base_width: 16}")
FILES = {
    "released_dino": ("detr/dino_4scale_r50", [*RESNET, "queries.num_queries=150"]),
    "released_deformable": ("detr/deformable_detr_r50", [*RESNET, "queries.num_queries=100"]),
    "released_deformable_two_stage": ("detr/deformable_detr_r50_two_stage", [*RESNET, "queries.num_queries=60"]),
    "released_dab": ("detr/dab_detr_r50", [*RESNET, "queries.num_queries=16"]),
}
HEADS = "heads=[{name: faster_rcnn, options: {fc_dims: [32, 32]}}, atss]"
RCNN_VIT = "conv_dims: [256, 256, 256, 256], norm: GN, class_agnostic: true, delta_weights: [20, 20, 10, 10]"
WIDTHS = "backbone.bottom_up.model_kwargs={channels: [16, 32, 64, 128]}"
VIT = (
    *NARROW,
    "backbone.bottom_up.window=4",
    "backbone.bottom_up.global_blocks=[3]",
    "backbone.bottom_up.model_kwargs={embed_dim: 128, depth: 4, num_heads: 2, img_size: 512, patch_size: 16}",
)
CODETR = {
    "released_co_deformable_r50": (
        "codetr/table3_deformable_detr_pp_r50_12ep_k2",
        [*NARROW, HEADS, WIDTHS, "queries.num_queries=100"],
    ),
    "released_co_deformable_swin_t": (
        "released/co_deformable_swin_t",
        [
            *NARROW,
            HEADS,
            "queries.num_queries=100",
            "backbone.bottom_up.model_kwargs={embed_dim: 32, depths: [2, 2, 2, 2], num_heads: [1, 2, 4, 8]}",
        ],
    ),
    "released_co_dino_r50": (
        "codetr/table4_co_dino_5scale_r50_12ep",
        [*NARROW, HEADS, WIDTHS, "queries.num_queries=100"],
    ),
    "released_co_dino_vit_l": (
        "codetr/table5_co_dino_vit_l_o365_coco_12ep",
        [
            *VIT,
            f"heads=[{{name: faster_rcnn, options: {{fc_dims: [32], {RCNN_VIT}}}}}, atss]",
            "queries.num_queries=100",
            "tta=null",
        ],
    ),
    "released_co_dino_vit_l_lvis": (
        "codetr/table6_co_dino_pp_vit_l_o365_lvis",
        [*VIT, HEADS, "queries.num_queries=60", "backbone.bottom_up.canvas=128", "class_counts=null"],
    ),
}
SWIN = {"embed_dim": 32, "depths": [2, 2, 2, 2], "num_heads": [1, 2, 4, 8]}
DETIC = {
    "released_detic_r50": ("table1_scaledet_r50_l_c", {"base_width": 16}),
    "released_detic_swin": ("table2_scaledet_swin_b_clip", SWIN),
}


@pytest.mark.parametrize("name", FILES)
def test_a_released_detr_detects_what_its_authors_do(name, tmp_path):
    golden = load_golden(name)
    config, changes = FILES[name]
    path = tmp_path / "checkpoint.pth"
    torch.save({"model": golden.state(), "epoch": 11}, path)
    model = model_zoo.get(config, weights=path, overrides=[f"model.{change}" for change in changes]).double()
    check_detections(golden, "padded", detect(model, golden.inputs("padded")))


@pytest.mark.parametrize("name", CODETR)
def test_a_released_co_detr_detects_what_its_authors_do(name, tmp_path):
    golden = load_golden(name)
    config, changes = CODETR[name]
    path = tmp_path / "latest.pth"
    torch.save({"state_dict": golden.state(), "meta": {"epoch": 12}}, path)
    model = model_zoo.get(config, weights=path, overrides=[f"model.{change}" for change in changes]).double()
    check_detections(golden, "padded", detect(model, golden.inputs("padded")))
    if "rcnn" not in golden.header["steps"]:
        return
    rcnn, atss = model.float().collaborators.heads  # Detectron2 keeps proposals in float32
    rcnn.rpn.select_padding = "always"  # the authors' rule, an option here
    atss.head.settings = replace(atss.head.settings, select_padding=True)
    for branch, step in enumerate(("rcnn", "atss")):
        model.eval_branch = branch
        check_detections(golden, step, detect(model, golden.inputs("padded")))


@pytest.mark.parametrize("name", DETIC)
def test_a_released_detic_detects_what_its_authors_do(name, tmp_path):
    golden = load_golden(name)
    row, body = DETIC[name]
    path = tmp_path / "detic.pth"
    torch.save({"model": golden.state(), "iteration": 89999}, path)
    cfg = load_config(CONFIGS / "scaledet" / f"{row}.py").model
    text = torch.nn.functional.normalize(torch.from_numpy(draw("text", golden.header["text"])))
    names = tuple(f"thing {i}" for i in range(len(text)))
    cfg._set_flag("allow_objects", True)
    cfg.update(text_encoder=None, label_space=LazyCall(LabelSpace)(names_by_dataset={"lvis": list(names)}))
    cfg.vocabulary = LazyCall(Vocabulary)(names=names, templates=("{}",), encoder_id="drawn", embeddings=text)
    cfg.backbone.bottom_up.update(weights=None, model_kwargs=body)
    cfg.roi_heads.update(text_dim=text.shape[1], fc_dims=(32, 32))
    model = instantiate(cfg)
    ledger = load_file(model, path)
    assert not ledger.missing and not ledger.unexpected and not ledger.conflicts
    check_detections(golden, "padded", detect(model, golden.inputs("padded")))
