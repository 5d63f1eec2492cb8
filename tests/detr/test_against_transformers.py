"""Logits, boxes, losses and gradients equal those of HuggingFace's ports with the same weights.

Where transformers departs from the authors' code, ours follows the authors:
- with box refinement it ties the class heads of Deformable-DETR, which the authors clone;
- it leaves out the encoder's loss of the two-stage model and the class loss weight of 2 (set here to compare).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
import transformers
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import Tensor, nn
from transformers.models.dab_detr import modeling_dab_detr as dab_detr
from transformers.models.deformable_detr import modeling_deformable_detr as deformable_detr

from polydet.detr.checkpoint_maps import convert
from polydet.layers import inverse_sigmoid

from . import builders
from .builders import DECODERS, DIM, ENCODERS, FFN, HEADS, QUERIES, batch, build

COMMON = {
    "use_timm_backbone": False,
    "use_pretrained_backbone": False,
    "backbone": None,
    "encoder_layers": ENCODERS,
    "decoder_layers": DECODERS,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": FFN,
    "decoder_ffn_dim": FFN,
    "num_labels": builders.CLASSES,
    "num_queries": QUERIES,
    "auxiliary_loss": True,
    "dropout": 0.0,
    "attn_implementation": "eager",
}
FOCAL_COST = {"class_cost": 2, "bbox_cost": 5, "giou_cost": 2}


def resnet(*stages: str) -> transformers.ResNetConfig:
    return transformers.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16, 24, 32],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=list(stages),
    )


def reference(member: str) -> Any:
    """The transformers model of a member, with weights large enough that every path shows."""
    torch.manual_seed(1)
    one, three = resnet("stage4"), resnet("stage2", "stage3", "stage4")
    if member == "detr":
        model = transformers.DetrForObjectDetection(transformers.DetrConfig(backbone_config=one, d_model=DIM, **COMMON))
    elif member == "conditional":
        config = transformers.ConditionalDetrConfig(backbone_config=one, d_model=DIM, **COMMON, **FOCAL_COST)
        model = transformers.ConditionalDetrForObjectDetection(config)
    elif member == "dab":
        config = transformers.DabDetrConfig(backbone_config=one, hidden_size=DIM, **COMMON, **FOCAL_COST)
        model = transformers.DabDetrForObjectDetection(config)
    else:
        two_stage = member == "deformable_two_stage"
        config = transformers.DeformableDetrConfig(
            backbone_config=three,
            d_model=DIM,
            with_box_refine=member != "deformable",
            two_stage=two_stage,
            two_stage_num_proposals=QUERIES,
            num_feature_levels=4,
            **COMMON,
            **FOCAL_COST,
        )
        model = transformers.DeformableDetrForObjectDetection(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "backbone" not in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


class Projected(Backbone):
    """The projected feature maps of a transformers model, so that both transformers see the same input."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.held = [model]  # not registered: its weights are the other model's
        self.levels = 4 if hasattr(model.model, "input_proj") else 1

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        model = self.held[0].model
        mask = torch.ones(image.shape[0], *image.shape[-2:], dtype=torch.long)
        features = model.backbone(image, mask)
        if isinstance(features, tuple):  # with position embeddings
            features = features[0]
        if self.levels == 1:
            project = getattr(model, "input_projection", None)
            return {"p5": project(features[-1][0])}
        maps = [model.input_proj[i](feature) for i, (feature, _) in enumerate(features)]
        maps.append(model.input_proj[3](features[-1][0]))
        return {f"p{i}": m for i, m in enumerate(maps)}

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {f"p{i}": ShapeSpec(channels=DIM) for i in range(self.levels)}

    @property
    def size_divisibility(self) -> int:
        return 0


MEMBERS = ["detr", "conditional", "dab", "deformable", "deformable_refine", "deformable_two_stage"]
NORMED_TWICE = ("detr", "conditional")


def pair(member: str, dtype: torch.dtype) -> tuple[Any, Any, list[dict], dict[str, Any]]:
    """Their model, ours with its weights, our batch and theirs."""
    theirs = reference(member).to(dtype)
    ours = build(member, Projected(theirs), pixel_mean=(0.0, 0.0, 0.0), pixel_std=(255.0, 255.0, 255.0)).to(dtype)
    weights = {k: v for k, v in convert(theirs.state_dict()).items() if not k.startswith("backbone.")}
    for name in ours.state_dict():
        if name not in weights:  # heads that theirs ties and ours does not
            weights[name] = weights[tied(name)]
    ours.load_state_dict(weights, strict=True)
    inputs = batch(((64, 96), (80, 50)), (3, 2))
    images = ours.preprocess(inputs)
    padding = ours.padding_mask(images)
    targets = ours.prepare_targets(inputs)
    labels = [{"class_labels": t.labels, "boxes": t.boxes} for t in targets]
    return theirs, ours, inputs, {
        "pixel_values": images.tensor,
        "pixel_mask": (~padding).long(),
        "labels": labels,
    }  # fmt: skip


def their_layers(model: Any, member: str, labelled: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Logits and boxes of every layer, ``[L, B, Q, K]`` and ``[L, B, Q, 4]``.

    With auxiliary losses, transformers feeds DETR's and Conditional DETR's *normed* layer output into the next layer
    (and norms the last one twice), which the authors do not. So these two run without, and the heads are applied here
    to the layers' outputs.
    """
    if member not in NORMED_TWICE:
        out = model(**{k: v for k, v in labelled.items() if k != "labels"}, return_dict=True)
        labelled_out = model(**labelled)
        auxiliary = labelled_out.auxiliary_outputs
        logits = torch.stack([a["logits"] for a in auxiliary] + [labelled_out.logits])
        boxes = torch.stack([a["pred_boxes"] for a in auxiliary] + [labelled_out.pred_boxes])
        torch.testing.assert_close(out.logits, labelled_out.logits)
        return logits, boxes
    model.config.auxiliary_loss = False
    seen: list[Tensor] = []
    hooks = [
        layer.register_forward_hook(
            lambda _m, _a, output: seen.append(output[0] if isinstance(output, tuple) else output)
        )
        for layer in model.model.decoder.layers
    ]
    out = model(labelled["pixel_values"], labelled["pixel_mask"])
    for hook in hooks:
        hook.remove()
    hidden = torch.stack([model.model.decoder.layernorm(x) for x in seen])
    delta = model.bbox_predictor(hidden)
    if member == "conditional":
        position = model.model.query_position_embeddings.weight
        origin = inverse_sigmoid(model.model.decoder.ref_point_head(position).sigmoid())
        delta = torch.cat((delta[..., :2] + origin, delta[..., 2:]), dim=-1)
    logits, boxes = model.class_labels_classifier(hidden), delta.sigmoid()
    torch.testing.assert_close(logits[-1], out.logits)
    torch.testing.assert_close(boxes[-1], out.pred_boxes)
    model.config.auxiliary_loss = True
    return logits, boxes


class Float64Torch:
    """Torch in whose place `float32` is float64: transformers fixes some encodings to float32."""

    float32 = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.dtype]:
    """The precision, as torch's default too: transformers makes some constants without a dtype."""

    before = torch.get_default_dtype()
    torch.set_default_dtype(request.param)
    if request.param == torch.float64:
        for module in (deformable_detr, dab_detr):
            monkeypatch.setattr(module, "torch", Float64Torch())
    yield request.param
    torch.set_default_dtype(before)


@pytest.mark.parametrize("member", MEMBERS)
def test_same_outputs_losses_and_gradients(member: str, dtype: torch.dtype) -> None:
    tolerance = {torch.float32: 1e-4, torch.float64: 1e-9}[dtype]
    close = partial(torch.testing.assert_close, atol=tolerance, rtol=tolerance)
    theirs, ours, inputs, labelled = pair(member, dtype)
    logits, boxes = their_layers(theirs, member, labelled)
    loss, loss_dict, _ = theirs.loss_function(
        logits[-1], labelled["labels"], theirs.device, boxes[-1], theirs.config, logits, boxes
    )

    ours.train()
    memory = ours.encode(ours.preprocess(inputs))
    predictions = ours.decode(ours.build_queries(memory, None), memory)
    close(predictions.logits, logits)
    close(predictions.boxes, boxes)

    losses = {k: v for k, v in ours(inputs).items() if "_enc" not in k}
    assert len(losses) == 3 * DECODERS
    for kind, (name, weight) in {"class": ("ce", 1.0), "bbox": ("bbox", 5.0), "giou": ("giou", 2.0)}.items():
        for suffix in ["", *(f"_{i}" for i in range(DECODERS - 1))]:
            close(losses[f"loss_{kind}{suffix}"], weight * loss_dict[f"loss_{name}{suffix}"])
    total = torch.stack(list(losses.values())).sum()
    close(total, loss)

    loss.backward()
    everything = dict(theirs.named_parameters(remove_duplicate=False))
    expected = convert({k: zeros_or(p.grad, p) for k, p in everything.items() if "backbone" not in k})
    projections = {n: p.grad.clone() for n, p in everything.items() if "input_proj" in n}
    theirs.zero_grad()
    total.backward()
    gradients: dict[str, Tensor] = {}
    for name, parameter in ours.named_parameters():
        name = name if name in expected else tied(name)
        gradients[name] = gradients.get(name, 0) + zeros_or(parameter.grad, parameter)
    for name, gradient in gradients.items():
        close(gradient, expected[name], msg=lambda text, name=name: f"{name}: {text}")
    for name, gradient in projections.items():
        close(everything[name].grad, gradient)
    assert sum(bool(g.any()) for g in gradients.values()) > 0.7 * len(gradients)  # most of them do something


def zeros_or(gradient: Tensor | None, parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if gradient is None else gradient.clone()


def tied(name: str) -> str:
    """The first of several heads."""
    return re.sub(r"^(class_heads|box_heads)\.\d+", r"\1.0", name)
