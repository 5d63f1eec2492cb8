"""Every row loads with the numbers of the paper's tables, and its model can be built."""

from pathlib import Path

import pytest
import torch
from detectron2.config import instantiate

from polydet.engine import load_config

CONFIGS = Path(__file__).parents[2] / "configs"
A, F = "atss", "faster_rcnn"
SIX = (F, A, "paa", "retinanet", "fcos", "gfl")
DP, PP, D5 = "table2_deformable_detr_r50", "deformable_detr_pp_r50_12ep", "table3_dino_5scale"

# row: heads, epochs, batch, queries
ROWS = {
    "figure2_atss_deformable_encoder_r50_36ep": ((A,), 36, 32, 300),
    "figure2_group_deformable_detr_r50_36ep": ((), 36, 32, 3300),
    "table7_h_deformable_detr_r50_12ep": ((), 12, 32, 1800),
    "pretrain_co_dino_vit_l_o365_26ep": ((F, A), 26, 224, 1500),
    **{f"table10_deformable_detr_r50_{n}ep_k0": ((), n, 32, 300) for n in (50, 100, 150)},
    "table11_atss_deformable_encoder_r50_12ep": ((A,), 12, 16, 300),
    "table11_faster_rcnn_deformable_encoder_r50_12ep": ((F,), 12, 16, 300),
    **{f"{DP}_{n}ep_k{k}": ((F, A)[2 - k :], n, 32, 300) for n in (12, 36) for k in (0, 1, 2)},
    **{
        f"table2_{base}_c5_r50_36ep_k{k}": ((F, A)[2 - k :], 36, 16, 300)
        for base in ("conditional_detr", "dab_detr")
        for k in (0, 1, 2)
    },
    **{f"table3_{PP}_k{k}": ((F, A)[2 - k :], 12, 16, 300) for k in (0, 1, 2)},
    **{f"table3_deformable_detr_pp_swin_l_12ep_k{k}": ((F, A)[2 - k :], 12, 16, 300) for k in (0, 1, 2)},
    **{f"{D5}_r50_12ep_k{k}": ((F, A)[2 - k :], 12, 16, 900) for k in (0, 1, 2)},
    **{f"{D5}_swin_l_36ep_k{k}": ((F, A)[2 - k :], 36, 16, 900) for k in (0, 1, 2)},
    "table4_co_deformable_detr_pp_swin_l_36ep": ((F, A), 36, 16, 900),
    "table4_co_dino_5scale_r50_12ep": ((F, A), 12, 16, 900),
    **{f"table4_co_dino_5scale_swin_l_{n}ep": ((F, A), n, 16, 900) for n in (12, 24, 36)},
    **{f"table4_co_dino_pp_swin_l_{n}ep": ((F, A), n, 16, 900) for n in (12, 24, 36)},
    **{f"table4_co_dino_pp_r50_{n}ep": ((F, A), n, 16, 900) for n in (12, 36)},
    "table5_co_dino_vit_l_o365_coco_12ep": ((F, A), 12, 64, 1500),
    "table6_co_dino_pp_swin_l_lvis": ((F, A), 36, 16, 900),
    "table6_co_dino_pp_vit_l_o365_lvis": ((F, A), 16, 64, 900),
    f"table7_{PP}_k2_atss_paa": ((A, "paa"), 12, 32, 300),
    f"table7_{PP}_k3": ((F, A, "paa"), 12, 32, 300),
    f"table7_{PP}_k6": (SIX, 12, 32, 300),
    f"text_{PP}_k2_atss_atss": ((A, A), 12, 32, 300),
    f"text_{PP}_k6_atss": ((A,) * 6, 12, 32, 300),
    **{
        f"table8_deformable_detr_r50_36ep_k1_{h}": ((h,), 36, 32, 300)
        for h in ("retinanet", F, "mask_rcnn", "fcos", "paa", "gfl")
    },
    **{
        f"table9_deformable_detr_r50_{n}ep_{cell}_only": ((A,), n, 32, 300)
        for n in (12, 36)
        for cell in ("aux_head", "pos_queries")
    },
}
DROPS = {12: [11], 24: [20], 36: [30], 50: [40], 100: [80], 150: [120], 26: [24], 16: [9, 15]}


def names(heads):
    return tuple(h if isinstance(h, str) else h["name"] for h in heads)


def test_rows_are_complete_and_short():
    files = {path.stem: path for path in (CONFIGS / "codetr").glob("*.py")}
    assert sorted(ROWS) == sorted(files)
    assert all(len(path.read_text().splitlines()) <= 25 for path in files.values())


@pytest.mark.parametrize("name", ROWS)
def test_row_has_the_tables_numbers(name):
    heads, epochs, batch, queries = ROWS[name]
    cfg = load_config(CONFIGS / "codetr" / f"{name}.py")
    assert names(cfg.model.get("heads", ())) == heads
    assert (cfg.train.max_epochs, cfg.dataloader.train.total_batch_size) == (epochs, batch)
    assert cfg.model.queries.num_queries == queries
    assert list(cfg.lr_multiplier.milestones) == ([7] if "table5" in name else DROPS[epochs])
    if heads:
        assert (cfg.model.lambda_1, cfg.model.lambda_2) == (1.0, 2.0)


@pytest.mark.parametrize("name", [n for n in ROWS if "vit" not in n])
def test_convolutions_before_group_norm_have_no_bias(name):
    """As in mmdetection, which the released code is built on; C5 members have no norm there."""
    neck = load_config(CONFIGS / "codetr" / f"{name}.py").model.backbone
    assert neck.bias == (neck.norm == "")


def test_parts_of_the_method_by_row():
    def model(name):
        return load_config(CONFIGS / "codetr" / f"{name}.py").model

    assert "QualityFocalLoss" not in str(model(f"{D5}_r50_12ep_k2").criterion.class_loss)
    co_dino = model("table4_co_dino_5scale_r50_12ep")
    assert "QualityFocalLoss" in str(co_dino.criterion.class_loss._target_)
    assert co_dino.postprocess.num == 900 and co_dino.postprocess.soft_nms_iou == 0.8
    assert not co_dino.collaboration.query_feature
    assert model(f"table3_{PP}_k2").collaboration.head_embedding == "scalar"
    assert model("table9_deformable_detr_r50_12ep_aux_head_only").heads[0].queries is False
    assert model("table9_deformable_detr_r50_12ep_pos_queries_only").heads[0].loss is False
    lvis = model("table6_co_dino_pp_swin_l_lvis")
    assert lvis.federated_classes == 50 and lvis.class_counts.name == "lvis_v1_train"
    assert model("table5_co_dino_vit_l_o365_coco_12ep").tta.short_sides
    assert load_config(
        CONFIGS / "codetr/table8_deformable_detr_r50_36ep_k1_mask_rcnn.py"
    ).dataloader.train.mapper.use_masks
    canvas = load_config(CONFIGS / "codetr/table4_co_dino_pp_swin_l_36ep.py").dataloader
    assert canvas.train.mapper.size == canvas.test.mapper.augmentations.size == 1280


@pytest.mark.parametrize(
    "name",
    [
        "table2_conditional_detr_c5_r50_36ep_k2",
        "table2_dab_detr_c5_r50_36ep_k2",
        "table4_co_dino_5scale_swin_l_36ep",
        "table5_co_dino_vit_l_o365_coco_12ep",
        "table6_co_dino_pp_vit_l_o365_lvis",
        "table7_deformable_detr_pp_r50_12ep_k6",
        "table11_faster_rcnn_deformable_encoder_r50_12ep",
        "figure2_atss_deformable_encoder_r50_36ep",
        "figure2_group_deformable_detr_r50_36ep",
        "table7_h_deformable_detr_r50_12ep",
    ],
)
def test_model_and_optimiser_can_be_built(name):
    cfg = load_config(CONFIGS / "codetr" / f"{name}.py")
    if cfg.model.get("class_counts") is not None:
        cfg.model.class_counts = [1.0] * 1203
    with torch.device("meta"):
        model = instantiate(cfg.model)
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    assert sum(len(g["params"]) for g in optimizer.param_groups) == sum(p.requires_grad for p in model.parameters())
    if (
        "vit" in name and "table6" not in name
    ):  # blocks learn slower the earlier they are, what follows at the full rate
        rate = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
        rates = {n: rate[id(p)] / cfg.optimizer.lr for n, p in model.named_parameters() if p.requires_grad}
        assert rates["backbone.bottom_up.body.blocks.23.norm1.weight"] == pytest.approx(0.8)
        assert rates["backbone.bottom_up.body.blocks.0.norm1.weight"] == pytest.approx(0.8**24)
        assert rates["backbone.bottom_up.body.patch_embed.proj.weight"] == pytest.approx(0.8**25)
        assert rates["backbone.scales.0.1.weight"] == pytest.approx(1.0)
        assert rates["encoder.layers.0.ffn.linear1.weight"] == 1.0
