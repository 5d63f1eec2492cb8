"""Co-DINO and Co-Deformable-DETR against their authors' code."""

import functools
import re
from contextlib import contextmanager
from dataclasses import replace
from unittest import mock

import pytest
import torchvision
from golden_check import check_detections, check_gradients, check_losses, detect, load_drawn, train_step
from golden_file import load_golden
from golden_models import small_row
from golden_noise import fixed_noise

from codetr.checkpoint import from_mmdet

EVERY = 100_000  # anchors to sample: more than there are, so that none is drawn
SMALL = {
    "backbone.bottom_up.model_kwargs": {"channels": [16, 32, 64, 128]},
    "encoder.num_layers": 1,
    "encoder.checkpoint_layers": 0,
    "encoder.layer.ffn_dim": 256,
    "decoder.num_layers": 2,
    "decoder.layer.ffn_dim": 256,
    "postprocess.max_detections": 60,
    "heads": [
        {"name": "faster_rcnn", "options": {"fc_dims": [32, 32], "proposals_before_nms": [200, 200], "proposals": 60}},
        {"name": "atss"},
    ],
}
CO_DINO = {**SMALL, "queries.select_padding": "always", "queries.num_queries": 1200, "denoising.num_queries": 20}
CO_DEFORMABLE = {**SMALL, "queries.num_queries": 300, "queries.select_padding": "always", "postprocess.num": 60}
MEMBERS = {
    "co_dino": ("codetr/table4_co_dino_5scale_r50_12ep", CO_DINO, ("padded", "empty", "canvas")),
    "co_deformable": ("codetr/table3_deformable_detr_pp_r50_12ep_k2", CO_DEFORMABLE, ("padded_3", "empty")),
}
HEADS = {
    "loss_rpn_cls": "aux0_faster_rcnn_rpn_cls",
    "loss_rpn_bbox": "aux0_faster_rcnn_rpn_loc",
    "loss_cls0": "aux0_faster_rcnn_cls",
    "loss_bbox0": "aux0_faster_rcnn_box_reg",
    "loss_cls1": "aux1_atss_cls",
    "loss_bbox1": "aux1_atss_box",
    "loss_centerness1": "aux1_atss_quality",
}


def authors_loss(name: str) -> str:
    """`d0.dn_loss_iou` of the authors is `loss_giou_dn_0` here, `loss_cls_aux1` is `loss_class_co1`."""
    if name in HEADS:
        return f"loss_{HEADS[name]}"
    layer, branch, kind, head = re.fullmatch(r"(?:d(\d)\.)?(?:(enc|dn)_)?loss_([a-z]+)(?:_aux(\d))?", name).groups()
    kind = {"cls": "class", "iou": "giou"}.get(kind, kind)
    branch = f"co{head}" if head else branch
    return "_".join(part for part in ("loss", kind, branch, layer) if part)


def steps():
    """Every member and step."""
    cases = [(member, step) for member, (_, _, steps) in MEMBERS.items() for step in steps]
    return [pytest.param(*case, id="-".join(case)) for case in cases]


@functools.lru_cache(maxsize=1)
def built(member):
    golden = load_golden(member)
    row, changes, _ = MEMBERS[member]
    model = small_row(row, {**changes, "num_classes": golden.num_classes})
    load_drawn(model, golden, from_mmdet)
    return model, golden


@contextmanager
def in_double(model):
    """Detectron2 keeps boxes in float32, whatever the model is in: at its borders they become float64."""
    sample = model.collaborators.sample

    def batched_nms(boxes, scores, groups, threshold):
        return torchvision.ops.boxes.batched_nms(boxes.to(scores.dtype), scores, groups, threshold)

    def double_sample(*args):
        group = sample(*args)
        return replace(group, boxes=group.boxes.double())

    with (
        mock.patch("detectron2.modeling.proposal_generator.proposal_utils.batched_nms", batched_nms),
        mock.patch.object(model.collaborators, "sample", double_sample),
    ):
        yield


def sample_every_anchor(model, samples: int, images: int) -> None:
    """No anchor is drawn. Theirs divides by the anchors that it found, ours by those that it was asked for."""
    rpn = model.collaborators.heads[0].rpn
    rpn.batch_size_per_image = EVERY
    rpn.loss_weight = dict.fromkeys(("loss_rpn_cls", "loss_rpn_loc"), EVERY * images / samples)


@pytest.mark.parametrize(("member", "step"), steps())
def test_a_training_step_and_its_detections_are_the_authors(member, step):
    model, golden = built(member)
    inputs = golden.inputs(step)
    sample_every_anchor(model, golden.header["rpn_samples"][step], len(inputs))
    with fixed_noise(), in_double(model):
        losses = train_step(model, inputs)
    check_losses(golden, step, losses, authors_loss)
    check_gradients(golden, step, model, from_mmdet)
    check_detections(golden, step, detect(model, inputs))
