"""A state dict laid out as the released checkpoints fills every weight of the model."""

from pathlib import Path

import pytest
import torch
from detectron2.config import instantiate
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator

from codetr.checkpoint import from_mmdet
from polydet.engine import load_config, load_weights

CONFIGS = Path(__file__).parents[2] / "configs"
DIM, CLASSES = 256, 80


def linear(name, out_dim, in_dim, *kernel):
    return {f"{name}.weight": (out_dim, in_dim, *kernel), f"{name}.bias": (out_dim,)}


def norm(name, dim=DIM):
    return {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}


def resnet50():
    def bn(name, dim):
        shapes = {f"{name}.{k}": (dim,) for k in ("weight", "bias", "running_mean", "running_var")}
        return {**shapes, f"{name}.num_batches_tracked": ()}

    shapes = {"backbone.conv1.weight": (64, 3, 7, 7), **bn("backbone.bn1", 64)}
    channels = 64
    for stage, (blocks, width) in enumerate(zip((3, 4, 6, 3), (64, 128, 256, 512)), 1):
        for block in range(blocks):
            at = f"backbone.layer{stage}.{block}"
            sides = ((width, channels, 1), (width, width, 3), (4 * width, width, 1))
            for i, (out_dim, in_dim, kernel) in enumerate(sides, 1):
                shapes[f"{at}.conv{i}.weight"] = (out_dim, in_dim, kernel, kernel)
                shapes.update(bn(f"{at}.bn{i}", out_dim))
            if block == 0:
                shapes[f"{at}.downsample.0.weight"] = (4 * width, channels, 1, 1)
                shapes.update(bn(f"{at}.downsample.1", 4 * width))
            channels = 4 * width
    return shapes


def swin_large():
    """Microsoft's Swin as released: four maps with norms, merging at the end of a stage."""
    shapes = {**linear("backbone.patch_embed.proj", 192, 3, 4, 4), **norm("backbone.patch_embed.norm", 192)}
    for stage, (blocks, heads) in enumerate(zip((2, 2, 18, 2), (6, 12, 24, 48))):
        dim = 192 * 2**stage
        for block in range(blocks):
            at = f"backbone.layers.{stage}.blocks.{block}"
            shapes.update(norm(f"{at}.norm1", dim) | norm(f"{at}.norm2", dim))
            shapes[f"{at}.attn.relative_position_bias_table"] = (23 * 23, heads)
            shapes[f"{at}.attn.relative_position_index"] = (144, 144)
            shapes.update(linear(f"{at}.attn.qkv", 3 * dim, dim) | linear(f"{at}.attn.proj", dim, dim))
            shapes.update(linear(f"{at}.mlp.fc1", 4 * dim, dim) | linear(f"{at}.mlp.fc2", dim, 4 * dim))
        if stage < 3:
            shapes[f"backbone.layers.{stage}.downsample.reduction.weight"] = (2 * dim, 4 * dim)
            shapes.update(norm(f"backbone.layers.{stage}.downsample.norm", 4 * dim))
        shapes.update(norm(f"backbone.norm{stage}", dim))
    return shapes


def neck(channels, extra):
    shapes = {}
    for i, in_dim in enumerate(channels):
        shapes[f"neck.convs.{i}.conv.weight"] = (DIM, in_dim, 1, 1)
        shapes.update(norm(f"neck.convs.{i}.gn"))
    for i in range(extra):
        shapes[f"neck.extra_convs.{i}.conv.weight"] = (DIM, channels[-1] if i == 0 else DIM, 3, 3)
        shapes.update(norm(f"neck.extra_convs.{i}.gn"))
    return shapes


def transformer(levels):
    shapes = {"query_head.transformer.level_embeds": (levels, DIM)}

    def deformable(at):
        samples = 8 * levels * 4
        return (
            linear(f"{at}.sampling_offsets", 2 * samples, DIM)
            | linear(f"{at}.attention_weights", samples, DIM)
            | linear(f"{at}.value_proj", DIM, DIM)
            | linear(f"{at}.output_proj", DIM, DIM)
        )

    def tail(at, norms):
        shapes = linear(f"{at}.ffns.0.layers.0.0", 2048, DIM) | linear(f"{at}.ffns.0.layers.1", DIM, 2048)
        for i in range(norms):
            shapes.update(norm(f"{at}.norms.{i}"))
        return shapes

    for layer in range(6):
        at = f"query_head.transformer.encoder.layers.{layer}"
        shapes.update(deformable(f"{at}.attentions.0") | tail(at, 2))
        at = f"query_head.transformer.decoder.layers.{layer}"
        shapes[f"{at}.attentions.0.attn.in_proj_weight"] = (3 * DIM, DIM)
        shapes[f"{at}.attentions.0.attn.in_proj_bias"] = (3 * DIM,)
        shapes.update(linear(f"{at}.attentions.0.attn.out_proj", DIM, DIM))
        shapes.update(deformable(f"{at}.attentions.1") | tail(at, 3))
    shapes.update(
        linear("query_head.transformer.enc_output", DIM, DIM) | norm("query_head.transformer.enc_output_norm")
    )
    for i in range(7):
        shapes.update(linear(f"query_head.cls_branches.{i}", CLASSES, DIM))
        for j, out_dim in ((0, DIM), (2, DIM), (4, 4)):
            shapes.update(linear(f"query_head.reg_branches.{i}.{j}", out_dim, DIM))
    shapes.update(linear("query_head.downsample.0", DIM, DIM, 3, 3) | norm("query_head.downsample.1"))
    return shapes


def heads(levels):
    shapes = linear("rpn_head.rpn_conv", DIM, DIM, 3, 3)
    shapes.update(linear("rpn_head.rpn_cls", 9, DIM, 1, 1) | linear("rpn_head.rpn_reg", 36, DIM, 1, 1))
    box = "roi_head.0.bbox_head"
    shapes.update(linear(f"{box}.shared_fcs.0", 1024, DIM * 49) | linear(f"{box}.shared_fcs.1", 1024, 1024))
    shapes.update(linear(f"{box}.fc_cls", CLASSES + 1, 1024) | linear(f"{box}.fc_reg", 4 * CLASSES, 1024))
    for tower in ("cls_convs", "reg_convs"):
        shapes[f"bbox_head.0.{tower}.0.conv.weight"] = (DIM, DIM, 3, 3)
        shapes.update(norm(f"bbox_head.0.{tower}.0.gn"))
    for name, out_dim in (("atss_cls", CLASSES), ("atss_reg", 4), ("atss_centerness", 1)):
        shapes.update(linear(f"bbox_head.0.{name}", out_dim, DIM, 3, 3))
    shapes.update({f"bbox_head.0.scales.{i}.scale": () for i in range(levels)})
    return shapes


def co_dino(backbone, channels):
    shapes = {**backbone, **neck(channels, 1), **transformer(5), **heads(6)}
    shapes["query_head.transformer.query_embed.weight"] = (900, DIM)
    shapes["query_head.label_embedding.weight"] = (CLASSES, DIM)
    at = "query_head.transformer"
    shapes.update(
        linear(f"{at}.decoder.ref_point_head.0", DIM, 2 * DIM) | linear(f"{at}.decoder.ref_point_head.2", DIM, DIM)
    )
    shapes.update(norm(f"{at}.decoder.norm"))
    for i in range(2):
        shapes.update(linear(f"{at}.aux_pos_trans.{i}", DIM, 2 * DIM) | norm(f"{at}.aux_pos_trans_norm.{i}"))
    return shapes


def co_deformable():
    shapes = {**resnet50(), **neck((512, 1024, 2048), 1), **transformer(4), **heads(5)}
    shapes["query_head.query_embedding.weight"] = (300, DIM)
    at = "query_head.transformer"
    shapes.update(linear(f"{at}.pos_trans", 2 * DIM, 2 * DIM) | norm(f"{at}.pos_trans_norm", 2 * DIM))
    shapes[f"{at}.head_pos_embed.weight"] = (2, 1)
    for i in range(2):
        shapes.update(
            linear(f"{at}.aux_pos_trans.{i}", 2 * DIM, 2 * DIM) | norm(f"{at}.aux_pos_trans_norm.{i}", 2 * DIM)
        )
        shapes.update(linear(f"{at}.pos_feats_trans.{i}", DIM, DIM) | norm(f"{at}.pos_feats_norm.{i}"))
    return shapes


RELEASED = {
    "table4_co_dino_5scale_r50_12ep": lambda: co_dino(resnet50(), (256, 512, 1024, 2048)),
    "table4_co_dino_5scale_swin_l_36ep": lambda: co_dino(swin_large(), (192, 384, 768, 1536)),
    "table3_deformable_detr_pp_r50_12ep_k2": co_deformable,
}


@pytest.mark.parametrize("row", RELEASED)
def test_every_weight_is_filled(row):
    with torch.device("meta"):
        model = instantiate(load_config(CONFIGS / "codetr" / f"{row}.py").model)
        # heads that differ, or the map would take them for one
        state = {k: torch.empty(shape) for k, shape in RELEASED[row]().items()}
    for i in range(7):
        state[f"query_head.cls_branches.{i}.bias"] = torch.full((CLASSES,), float(i))
        state[f"query_head.reg_branches.{i}.4.bias"] = torch.full((4,), float(i))
        for key in [
            k for k in state if k.startswith((f"query_head.cls_branches.{i}.w", f"query_head.reg_branches.{i}."))
        ]:
            if state[key].is_meta:
                state[key] = torch.full(state[key].shape, float(i))
    state["ema_backbone_conv1_weight"] = torch.zeros(1)
    converted = {k: tuple(v.shape) for k, v in from_mmdet(state).items()}
    expected = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    assert {k: v for k, v in expected.items() if converted.get(k) != v} == {}
    assert set(converted) == set(expected)
    assert from_mmdet(state)["queries.class_head.bias"][0] == 6


def test_anchors_of_the_rpn_keep_their_shape():
    """A bias that names its anchor's height and width lands on Detectron2's anchor of that shape."""
    state = {k: torch.zeros(s) for k, s in heads(6).items()} | {"query_head.x": torch.zeros(1)}
    state["query_head.transformer.decoder.layers.0.ffns.0.layers.0.0.weight"] = torch.zeros(8, DIM)
    shapes = []
    for ratio in (0.5, 1.0, 2.0):  # mmdetection: ratios outside, sizes inside; height over width is the ratio
        for octave in range(3):
            side = 4 * 8 * 2 ** (octave / 3)
            shapes.append((side * ratio**0.5, side / ratio**0.5))
    state["rpn_head.rpn_cls.bias"] = torch.tensor([h for h, _ in shapes])
    state["rpn_head.rpn_reg.bias"] = torch.tensor([[h, w, 0, 0] for h, w in shapes]).flatten()
    converted = from_mmdet(state)
    generator = DefaultAnchorGenerator(
        sizes=[[32 * 2 ** (i / 3) for i in range(3)]], aspect_ratios=[[0.5, 1.0, 2.0]], strides=[8]
    )
    cells = next(iter(generator.cell_anchors))
    sides = cells[:, 2:] - cells[:, :2]  # width, height
    at = "collaborators.heads.0.rpn.rpn_head"
    torch.testing.assert_close(converted[f"{at}.objectness_logits.bias"], sides[:, 1])
    torch.testing.assert_close(converted[f"{at}.anchor_deltas.bias"].view(9, 4)[:, :2], sides.flip(1))


def test_plain_queries_are_split_and_equal_heads_are_one():
    state = {k: torch.zeros(s) for k, s in transformer(4).items() if "branches.6" not in k}
    state["query_head.query_embedding.weight"] = torch.arange(2.0 * DIM).expand(300, -1)
    converted = from_mmdet(state)
    assert converted["queries.position.weight"][0, 0] == 0
    assert converted["queries.content.weight"][0, 0] == DIM
    assert [k for k in converted if k.startswith("class_heads")] == ["class_heads.0.weight", "class_heads.0.bias"]


def test_foreign_files_are_refused_and_loading_reports():
    with pytest.raises(ValueError, match=r"no key starts with 'query_head.', the first are \['model.a'\]"):
        from_mmdet({"model.a": torch.zeros(1)})
    model = torch.nn.Module()
    model.level_embed = torch.nn.Parameter(torch.zeros(4, DIM))
    state = {k: torch.ones(s) for k, s in transformer(4).items()}
    ledger = load_weights(model, state, key_map=from_mmdet)
    assert ledger.coverage == 1.0 and (model.level_embed == 1).all()
    assert "encoder.layers.0.norm1.weight" in ledger.unexpected
