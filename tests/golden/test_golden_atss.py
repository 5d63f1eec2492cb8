"""ATSS, which DetCLIPv2 is made of, against mmdetection's."""

import numpy as np
import pytest
from golden_body import Body, joined_scales, pyramid_rules, renamed
from golden_check import check_detections, check_gradients, check_losses, detect, load_drawn, train_step
from golden_file import load_golden

from polydet.backbones import fpn_p3_p7
from polydet.dense import ATSSHead, OneStageDetector
from polydet.dense.postprocess import DenseInference

CHANNELS = 64
RULES = {
    **pyramid_rules(3),
    r"^bbox_head\.cls_convs\.(\d)\.conv": r"head.class_tower.\1",
    r"^bbox_head\.reg_convs\.(\d)\.conv": r"head.box_tower.\1",
    r"^bbox_head\.cls_convs\.(\d)\.gn": r"head.class_tower.\1.norm",
    r"^bbox_head\.reg_convs\.(\d)\.gn": r"head.box_tower.\1.norm",
    r"^bbox_head\.atss_cls": "head.class_predictor",
    r"^bbox_head\.atss_reg": "head.box_predictor",
    r"^bbox_head\.atss_centerness": "head.quality_predictor",
}


def from_mmdet(state):
    """mmdetection's tensors under our names; its five scales are one tensor here."""
    return joined_scales(renamed(state, RULES), r"bbox_head\.scales\.(\d)\.scale", "head.level_scale")


def our_loss(name):
    return {"loss_cls": "loss_cls", "loss_bbox": "loss_box", "loss_centerness": "loss_quality"}[name]


@pytest.fixture(scope="module")
def golden():
    return load_golden("atss")


@pytest.fixture(scope="module")
def model(golden):
    inference = DenseInference(select_padding=True)  # mmdetection's candidates
    head = ATSSHead(CHANNELS, golden.num_classes, [8, 16, 32, 64, 128], channels=CHANNELS, inference=inference)
    model = OneStageDetector(fpn_p3_p7(Body(), CHANNELS), head)
    load_drawn(model, golden, from_mmdet)
    return model


@pytest.mark.parametrize("step, multiple", [("train", 32), ("empty", 32), ("nothing", 32), ("train_1", 1)])
def test_a_training_step_is_mmdetections(golden, model, step, multiple):
    model.head.valid_multiple = multiple
    inputs = golden.inputs(step.removesuffix("_1"))
    check_losses(golden, step, train_step(model, inputs), our_loss)
    check_gradients(golden, step, model, from_mmdet)

    images = model.preprocess_image(inputs)
    features = list(model.backbone(images.tensor).values())
    targets = model.head.assign(
        None, model.head.anchors(features), [x["instances"] for x in inputs], images.image_sizes
    )
    np.testing.assert_array_equal(targets.labels.numpy(), golden.arrays[f"{step}/labels"])
    boxes = targets.boxes[targets.positive].numpy()
    np.testing.assert_allclose(boxes, golden.arrays[f"{step}/boxes"], atol=1e-3)


def test_detections_are_mmdetections(golden, model):
    check_detections(golden, "test", detect(model, golden.inputs("test")))
