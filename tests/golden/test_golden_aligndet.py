"""AlignDet's pre-training of RetinaNet, FCOS and Faster R-CNN against its authors' code."""

import pytest
import torch
from detectron2.config import instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling import FPN
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from detectron2.utils.events import EventStorage
from golden_body import WIDTHS, Body, pyramid_rules, renamed
from golden_check import check_gradients, check_losses, load_drawn, train_step
from golden_file import load_golden
from golden_models import CONFIGS
from golden_views import fixed_order, two_views

from aligndet.adapters.base import with_proposal_codes
from polydet.backbones import fpn_p3_p7
from polydet.engine import load_config

CHANNELS, DIM = 64, 16
MAPS = list(WIDTHS)
ANCHORS = [ratio * 3 + scale for scale in range(3) for ratio in range(3)]  # theirs has the ratios outside

LEFT_OUT = ("updated_at", "head.cls_score", "roi_heads.box_predictor.cls_score")  # the classes of the detector
MAY_LACK = [LEFT_OUT[0], *(f"{side}.detector.{name}" for side in ("online", "target") for name in LEFT_OUT[1:])]


def pretraining(row):
    """Config of a row's model with room for objects."""
    model = load_config(CONFIGS / "aligndet" / f"pretrain_{row}_r50_1x.py").model
    model._set_flag("allow_objects", True)
    return model


def both_detectors(convert):
    """A map for the online and the momentum detector from one for the parts of an adapter."""

    def key_map(state):
        ours = {}
        for theirs, name in (("online_backbone.", "online."), ("target_backbone.", "target.")):
            part = {k.removeprefix(theirs): v for k, v in state.items() if k.startswith(theirs)}
            ours.update({name + k: v for k, v in convert(part).items()})
        return ours

    return key_map


def placed(state, rules, projector):
    """Names after the rules; what begins with `projector` is the projector, all else the detector's."""
    moved = renamed(state, rules)
    return {
        (k.replace(projector, "projector.", 1) if k.startswith(projector) else f"detector.{k}"): v
        for k, v in moved.items()
    }


def linear(state, name):
    """A 1x1 convolution's weight as a linear layer's."""
    return {**state, name: state[name].flatten(1)}


def step_of(golden, model, step, without=()):
    """Losses of a step on both views, whose gradients stay in the parameters."""
    inputs = [
        {**one, "second_image": other["image"], "second_boxes": other["instances"].gt_boxes.tensor}
        for one, other in zip(*two_views(step, golden.header["steps"][step]))
    ]
    with EventStorage(), fixed_order():
        return train_step(model, inputs, without)


def labels_of(adapter, golden, step):
    """The object of each anchor `[B, N]`, -1 background, -2 unused; objects are counted through the batch."""
    inputs, detector, start = two_views(step, golden.header["steps"][step])[0], adapter.detector, 0
    for item in inputs:
        instances = item["instances"]
        instances.gt_ids = torch.arange(start, start + len(instances))
        start += len(instances)
    images = detector.preprocess_image(inputs)
    pyramid = detector.backbone(images.tensor)
    anchors = detector.anchor_generator([pyramid[f] for f in detector.head_in_features])
    coded = with_proposal_codes([item["instances"] for item in inputs], 1)
    codes = torch.stack(adapter.assign(anchors, coded, images.image_sizes)[0])
    return torch.where(codes == 1, -1, torch.where(codes == -1, -2, codes - 2))


def divide_by(detector, labels, positives):
    """Detectron2 divides by a moving average of positives: let its value be `positives` in the next step."""
    detector.loss_normalizer = (positives - 0.1 * float((labels >= 0).sum())) / 0.9


# RetinaNet


@both_detectors
def from_retinanet(state):
    rules = {
        **pyramid_rules(3),
        r"^bbox_head\.cls_convs\.(\d)\.conv": lambda m: f"head.cls_subnet.{2 * int(m[1])}",
        r"^bbox_head\.reg_convs\.(\d)\.conv": lambda m: f"head.bbox_subnet.{2 * int(m[1])}",
        r"^bbox_head\.retina_reg": "head.bbox_pred",
    }
    ours = placed(state, rules, "bbox_head.retina_cls.")
    for name in ("detector.head.bbox_pred", "projector.2"):
        for kind in ("weight", "bias"):
            value = ours[f"{name}.{kind}"]
            ours[f"{name}.{kind}"] = value.unflatten(0, (9, -1))[ANCHORS].flatten(0, 1)
    return linear(linear(ours, "projector.0.weight"), "projector.2.weight")


@pytest.fixture(scope="module")
def retinanet():
    golden, cfg = load_golden("aligndet_retinanet"), pretraining("retinanet")
    cfg.adapter.update(num_samples=10**6, dim=DIM)
    detector = cfg.adapter.detector
    detector.backbone = FPN(Body(), MAPS[1:], CHANNELS, top_block=LastLevelP6P7(WIDTHS["res5"], CHANNELS, "res5"))
    detector.head.update(input_shape=[ShapeSpec(channels=CHANNELS)] * 5, conv_dims=[CHANNELS] * 4)
    model = instantiate(cfg)
    load_drawn(model, golden, from_retinanet, MAY_LACK)
    return model, golden


@pytest.mark.parametrize("step", ["single", "padded", "empty"])
def test_a_step_of_retinanet_is_the_authors(retinanet, step):
    model, golden = retinanet
    detector = model.online.detector
    ours = labels_of(model.online, golden, step)
    theirs = torch.from_numpy(golden.arrays[f"{step}/labels"]).long().unflatten(1, (-1, 9))[..., ANCHORS].flatten(1)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    divide_by(detector, ours, float(golden.arrays[f"{step}/positives"]))
    losses = step_of(golden, model, step)
    check_losses(golden, step, losses, {"loss_cls": "loss_contrastive", "losses_bboxes": "loss_box_reg"}.__getitem__)
    check_gradients(golden, step, model, from_retinanet)


# FCOS


@both_detectors
def from_fcos(state):
    rules = {
        **pyramid_rules(3),
        r"^bbox_head\.cls_convs\.(\d)\.(conv|gn)": lambda m: f"head.cls_subnet.{3 * int(m[1]) + (m[2] == 'gn')}",
        r"^bbox_head\.reg_convs\.(\d)\.(conv|gn)": lambda m: f"head.bbox_subnet.{3 * int(m[1]) + (m[2] == 'gn')}",
        r"^bbox_head\.conv_reg": "head.bbox_pred",
        r"^bbox_head\.conv_centerness": "head.ctrness",
    }
    ours = placed({k: v for k, v in state.items() if ".scales." not in k}, rules, "bbox_head.conv_cls.")
    for name in [k for k in ours if "subnet" in k and ours[k].ndim == 4]:  # there, no bias before GroupNorm
        ours[name.replace("weight", "bias")] = torch.zeros_like(ours[name][:, 0, 0, 0])
    return linear(ours, "projector.2.weight")


@pytest.fixture(scope="module")
def fcos():
    golden, cfg = load_golden("aligndet_fcos"), pretraining("fcos")
    cfg.adapter.update(num_samples=10**6, dim=DIM)
    detector = cfg.adapter.detector
    detector.backbone = fpn_p3_p7(Body(), CHANNELS)
    detector.head.channels = CHANNELS
    model = instantiate(cfg)
    load_drawn(model, golden, from_fcos, MAY_LACK)
    return model, golden


@pytest.mark.parametrize("step", ["single", "padded", "empty"])
def test_a_step_of_fcos_is_the_authors(fcos, step):
    model, golden = fcos
    detector = model.online.detector
    ours = labels_of(model.online, golden, step)
    theirs = torch.from_numpy(golden.arrays[f"{step}/labels"]).long()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    divide_by(detector, ours, float((theirs >= 0).sum()))
    losses = step_of(golden, model, step, without=["loss_fcos_loc"])
    check_losses(golden, step, losses, {"loss_cls": "loss_contrastive", "loss_centerness": "loss_fcos_ctr"}.__getitem__)
    check_gradients(golden, step, model, from_fcos)


# Faster R-CNN


@both_detectors
def from_rcnn(state):
    rules = {
        **pyramid_rules(2),
        r"^rpn_head\.rpn_conv": "proposal_generator.rpn_head.conv",
        r"^rpn_head\.rpn_cls": "proposal_generator.rpn_head.objectness_logits",
        r"^rpn_head\.rpn_reg": "proposal_generator.rpn_head.anchor_deltas",
        r"^roi_head\.bbox_head\.shared_convs\.(\d)\.conv": lambda m: f"roi_heads.box_head.conv{int(m[1]) + 1}",
        r"^roi_head\.bbox_head\.shared_fcs\.0": "roi_heads.box_head.fc1",
        r"^roi_head\.bbox_head\.fc_reg": "roi_heads.box_predictor.bbox_pred",
    }
    return placed(state, rules, "roi_head.bbox_head.fc_cls.")


@pytest.fixture(scope="module")
def rcnn():
    golden, cfg = load_golden("aligndet_rcnn"), pretraining("faster_rcnn")
    cfg.adapter.update(hidden=48, dim=DIM)
    detector = cfg.adapter.detector
    detector.backbone = FPN(Body(), MAPS, CHANNELS, top_block=LastLevelMaxPool())
    detector.proposal_generator.head.in_channels = CHANNELS
    detector.proposal_generator.post_nms_topk = (300, 300)
    head = detector.roi_heads.box_head
    head.update(conv_dims=[16] * 4, fc_dims=[48])
    head.input_shape.channels = CHANNELS
    model = instantiate(cfg)
    load_drawn(model, golden, from_rcnn, MAY_LACK)
    return model, golden


RCNN_LOSSES = {"loss_cls": "loss_contrastive", "loss_bbox": "loss_box_reg", "loss_rpn_bbox": "loss_rpn_loc"}


@pytest.mark.parametrize("step", ["single", "padded", "empty", "alike"])
def test_a_step_of_faster_rcnn_is_the_authors(rcnn, step):
    """`alike`: two sizes that are padded to one, the second image without objects."""
    model, golden = rcnn
    losses = step_of(golden, model, step)
    sampled = 4096 * len(golden.header["steps"][step])
    empty = sum(count == 0 for *_, count in golden.header["steps"][step])
    for name in ("loss_rpn_cls", "loss_rpn_loc"):  # the authors' divisor counts an image without objects as one more
        losses[name] *= sampled / (sampled + empty)
    check_losses(golden, step, losses, lambda name: RCNN_LOSSES.get(name, name))
    check_gradients(golden, step, model, from_rcnn)
