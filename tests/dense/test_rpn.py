"""The region proposal network beside a literal reading of mmdetection's assigner, and what a batch's padding may do."""

import pytest
import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.proposal_generator.rpn import StandardRPNHead
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage
from torchvision.ops import box_iou

from polydet.dense import FlooredMatcher, PaddingRPN, inside_image
from polydet.dense.postprocess import DenseInference, select_detections

STRIDES = (8, 16)
PLAIN = Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches=True)
FLOORED = FlooredMatcher([0.3, 0.7], [0, -1, 1], 0.3)


def made(kind=PaddingRPN, matcher=FLOORED, **options):
    """Nine anchors a location, 32 pixels and more, as the R-CNN head of Co-DETR has on strides from 8."""
    torch.manual_seed(0)
    sizes = [[4.0 * s * 2 ** (i / 3) for i in range(3)] for s in STRIDES]
    return kind(
        in_features=[str(s) for s in STRIDES],
        head=StandardRPNHead(in_channels=4, num_anchors=9),
        anchor_generator=DefaultAnchorGenerator(
            sizes=sizes, aspect_ratios=[[0.5, 1.0, 2.0]], strides=list(STRIDES), offset=0.0
        ),
        anchor_matcher=matcher,
        box2box_transform=Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0)),
        batch_size_per_image=10**6,  # all, so that nothing is drawn
        positive_fraction=1.0,
        pre_nms_topk=(200, 200),
        post_nms_topk=(50, 50),
        **options,
    )


def truth(boxes, size):
    instances = Instances(size)
    instances.gt_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
    return instances


def maps(batch, side):
    return {str(s): torch.zeros(batch, 4, side // s, side // s) for s in STRIDES}


def positives(rpn, *instances, side=256):
    anchors = rpn.anchor_generator(list(maps(1, side).values()))
    labels, boxes = rpn.label_and_sample_anchors(anchors, list(instances))
    return Boxes.cat(anchors).tensor, labels, boxes


def literal_assigner(quality, low=0.3, high=0.7, floor=0.3):
    """MaxIoUAssigner with `match_low_quality` and `gt_max_assign_all`, anchor by anchor and object by object."""
    count, total = quality.shape
    index, label = [0] * total, [-1] * total
    for a in range(total):
        best = max(range(count), key=lambda g: quality[g, a].item())
        index[a] = best
        if quality[best, a] < low:
            label[a] = 0
        elif quality[best, a] >= high:
            label[a] = 1
    for g in range(count):
        most = quality[g].max()
        if most >= floor:
            for a in range(total):
                if quality[g, a] == most:
                    index[a], label[a] = g, 1
    return index, label


@pytest.mark.parametrize("seed", range(4))
def test_matcher_equals_the_literal_assigner(seed):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(40, 2, generator=generator) * 20
    anchors = torch.cat([corner, corner + 4 + torch.rand(40, 2, generator=generator) * 20], dim=1).round()
    objects = torch.cat([anchors[:3] + 1.0, anchors[3:6] + torch.tensor([0.0, 0.0, 9.0, 9.0]), anchors[:1] / 9])
    quality = box_iou(objects, anchors)
    index, label = literal_assigner(quality)
    found, labels = FLOORED(quality)
    assert labels.tolist() == label
    assert [f for f, x in zip(found.tolist(), label) if x == 1] == [i for i, x in zip(index, label) if x == 1]
    assert labels.dtype == torch.int8 and {0, 1} <= set(label)
    assert FLOORED(quality[:0])[1].tolist() == [0] * 40


def test_an_object_smaller_than_every_anchor_has_no_positives():
    tiny = truth([100.0, 100.0, 108.0, 108.0], (256, 256))
    assert positives(made(), tiny)[1][0].eq(1).sum() == 0
    assert positives(made(RPN, PLAIN), tiny)[1][0].eq(1).sum() > 0  # anchors that hold it, at an IoU of 0.06
    near = truth([90.0, 90.0, 115.0, 115.0], (256, 256))
    assert positives(made(), near)[1][0].eq(1).sum() > 0


def test_anchors_in_padding_are_neither_background_nor_an_objects_best():
    size = (96, 112)
    border = truth([60.0, 60.0, 112.0, 96.0], size)
    for kind, options in ((PaddingRPN, {}), (PaddingRPN, {"ignore_padding": False}), (RPN, {})):
        anchors, (labels,), _ = positives(made(kind, **options), border)
        outside = ~inside_image(anchors, size)
        assert outside.any() and (labels[outside] == -1).all() == (options == {} and kind is PaddingRPN)
        assert (labels == 1).any() and (labels[~outside] == 0).any()
    anchors, (labels,), _ = positives(made(valid_multiple=32), border)  # 96 and 112 become 96 and 128
    assert (labels[~inside_image(anchors, (96, 128))] == -1).all()
    assert (labels[inside_image(anchors, (96, 128)) & ~inside_image(anchors, size)] == 0).any()
    anchors, labels, boxes = positives(made(), border, truth([], size))
    assert not (labels[1] == 1).any() and (labels[1][~inside_image(anchors, size)] == -1).all()
    assert boxes[0][labels[0] == 1].unique(dim=0).tolist() == border.gt_boxes.tensor.tolist()


@pytest.mark.parametrize(("option", "training", "inference"), [("always", 1, 1), ("training", 1, 0), ("never", 0, 0)])
def test_anchors_in_padding_propose_where_the_option_says(option, training, inference):
    """Objectness is high in the padding alone, and boxes move from there into the image."""
    rpn = made(select_padding=option)
    size = (96, 96)
    rpn.rpn_head.forward = lambda features: (
        [torch.where(torch.arange(f.shape[-1]) * s >= 96, 5.0, -5.0).expand(1, 9, *f.shape[2:]) + 0.0 * f[:, :1]
         for f, s in zip(features, STRIDES)],
        [torch.zeros(1, 36, *f.shape[2:]) - 0.3 for f in features],
    )  # fmt: skip
    for mode, expected in ((True, training), (False, inference)):
        rpn.train(mode)
        with EventStorage():
            found, _ = rpn(ImageList(torch.zeros(1, 3, 256, 256), [size]), maps(1, 256), [truth([], size)])
        assert bool((found[0].objectness_logits > 0).any()) == bool(expected)
    with pytest.raises(ValueError, match="always, training or never"):
        made(select_padding="no")


def test_dense_heads_detect_nothing_from_padding():
    class Head:
        settings = DenseInference(score_threshold=0.0)

        def decode(self, deltas, anchors):
            return anchors

        def scores(self, class_scores, quality):
            return class_scores

    anchors = torch.tensor([[0.0, 0.0, 8.0, 8.0], [4.0, 0.0, 16.0, 8.0]])  # the second lies with its centre outside
    logits = torch.tensor([[0.0], [3.0]])
    head = Head()
    for option, expected in ((False, 1), (True, 2)):
        head.settings = DenseInference(score_threshold=0.0, select_padding=option)
        found = select_detections([logits], [torch.zeros(2, 4)], [], [anchors], (8, 9), head)
        assert len(found) == expected
