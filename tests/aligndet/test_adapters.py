"""Default assignment, and features that belong to the boxes they are said to belong to."""

import pytest
import torch
import torch.nn.functional as F
from aligndet_detectors import build, faster_rcnn, fcos, retinanet, two_view_batch
from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K
from detectron2.structures import Boxes, pairwise_iou
from detectron2.utils.events import EventStorage

from aligndet.adapters import FCOSAdapter, RetinaNetAdapter
from aligndet.adapters.base import proposal_of_code, with_proposal_codes
from aligndet.pretrainer import AlignDet


def views(seed=0):
    return AlignDet.two_views(two_view_batch(seed=seed))[0]


@pytest.mark.parametrize("make", [fcos, retinanet])
def test_dense_assignment_is_the_detectors_own(make):
    """A detector with one class per proposal labels its anchors the same way."""
    torch.manual_seed(0)
    one, many = make(1), make(12)
    batch = views()
    targets = [v["instances"] for v in batch]
    features = [torch.zeros(2, 16, -(-544 // s), -(-704 // s)) for s in (8, 16, 32, 64, 128)]
    anchors = one.anchor_generator(features)
    codes, _ = one.label_anchors(anchors, with_proposal_codes(targets, 1))
    for target in targets:
        target.gt_classes = target.gt_ids
    labels, _ = many.label_anchors(anchors, targets)
    for code, label in zip(codes, labels):
        index = proposal_of_code(code, 1)
        assert torch.equal(index, torch.where((label >= 0) & (label < 12), label, -1))
        assert torch.equal(code == -1, label == -1)
        assert (index >= 0).any()


def test_retinanet_embeddings_are_those_of_their_anchors():
    """Against the dense projector of the paper, for two images: rows, levels, cells and anchors all line up."""
    torch.manual_seed(0)
    adapter = RetinaNetAdapter(retinanet(), dim=8).train()
    adapter.sample = lambda codes: (codes != -1).flatten().nonzero().squeeze(1)  # every anchor, in order
    batch = views()
    samples = adapter(batch, with_losses=False).samples[0]
    detector, (first, _, last) = adapter.detector, adapter.projector
    images = detector.preprocess_image(batch)
    pyramid = detector.backbone(images.tensor)
    features = [pyramid[f] for f in detector.head_in_features]
    dense = []
    for feature in features:
        tower = detector.head.cls_subnet(feature)
        hidden = F.relu(F.conv2d(tower, first.weight[:, :, None, None], first.bias))
        dense.append(permute_to_N_HWA_K(F.conv2d(hidden, last.weight[:, :, None, None], last.bias), 8))
    anchors = detector.anchor_generator(features)
    coded = with_proposal_codes(adapter.targets(batch), 1)
    codes = torch.stack(adapter.assign(anchors, coded, images.image_sizes)[0]).flatten()
    rows = (codes != -1).nonzero().squeeze(1)
    assert torch.equal(samples.labels, proposal_of_code(codes[rows], 1)) and set(samples.labels.tolist()) > {0, 6}
    expected = torch.cat(dense, 1).flatten(0, 1)[rows]
    torch.testing.assert_close(samples.embeddings, expected, rtol=1e-4, atol=1e-6)


def test_retinanets_anchors_in_padding_take_no_part():
    """The first image is 512 pixels high in a batch of 544: anchors below count neither way, those above as before."""
    torch.manual_seed(0)
    adapter = RetinaNetAdapter(retinanet(), dim=8)
    batch = views()
    sizes = [tuple(view["image"].shape[1:]) for view in batch]
    features = [torch.zeros(2, 16, -(-544 // s), -(-704 // s)) for s in (8, 16, 32, 64, 128)]
    anchors = adapter.detector.anchor_generator(features)
    coded = with_proposal_codes([view["instances"] for view in batch], 1)
    codes, boxes = adapter.assign(anchors, coded, sizes)
    plain, plain_boxes = adapter.detector.label_anchors(anchors, coded)
    for code, label, (height, width) in zip(codes, plain, sizes):
        inside = (Boxes.cat(anchors).get_centers() < torch.tensor([width, height])).all(1)
        assert (code[~inside] == -1).all() and (label[~inside] != -1).any()
        assert torch.equal(code[inside], label[inside])
    positive = codes[0] > 1
    assert positive.any() and torch.equal(boxes[0][positive], plain_boxes[0][positive])


def test_fcos_samples_positives_first_over_the_batch():
    torch.manual_seed(0)
    adapter = FCOSAdapter(fcos(), num_samples=40, dim=8).train()
    samples = adapter(views(), with_losses=False).samples[0]
    assert len(samples.labels) == 40 and (samples.labels >= 0).all()
    assert (samples.labels >= 6).any() and (samples.labels < 6).any()  # both images
    adapter.num_samples = 4000
    samples = adapter(views(), with_losses=False).samples[0]
    assert 0 < (samples.labels >= 0).sum() < len(samples.labels) <= 4000


def test_rcnn_takes_no_unassigned_boxes_and_every_proposal():
    adapter = build("faster_rcnn").train()
    with EventStorage(0):
        samples = adapter(views(), with_losses=True)
    assert set(samples.samples[0].labels.tolist()) == set(range(12))
    assert set(samples.losses) == {"loss_rpn_cls", "loss_rpn_loc", "loss_box_reg"}


def test_cascade_has_a_weighted_set_per_stage_with_background():
    adapter = build("cascade").train()
    with EventStorage(0):
        output = adapter(views(), with_losses=True)
    assert [s.weight for s in output.samples] == [1.0, 0.5, 0.25]
    assert all((s.labels == -1).any() and (s.labels >= 0).any() for s in output.samples)
    assert {"loss_box_reg_stage0", "loss_box_reg_stage1", "loss_box_reg_stage2"} < set(output.losses)


@pytest.mark.parametrize("refine", [False, True])
def test_stages_of_a_cascade_look_at_the_rpns_boxes_unless_they_refine(monkeypatch, refine):
    adapter = build("cascade").train()
    adapter.refine = refine
    detector, seen, found = adapter.detector, [], []
    rpn, pooler = detector.proposal_generator.forward, detector.roi_heads.box_pooler.forward
    monkeypatch.setattr(detector.proposal_generator, "forward", lambda *a: found.append(rpn(*a)) or found[-1])
    monkeypatch.setattr(
        detector.roi_heads.box_pooler, "forward", lambda maps, boxes: seen.append(boxes) or pooler(maps, boxes)
    )
    batch = views()
    with EventStorage(0):
        samples = adapter(batch, with_losses=True).samples
    truth = [view["instances"].gt_boxes.tensor for view in batch]
    rpns = [torch.cat([p.proposal_boxes.tensor, gt]) for p, gt in zip(found[0][0], truth)]
    for stage, (boxes, sample) in enumerate(zip(seen, samples)):
        known = [(b.tensor[:, None] == all_[None]).all(-1).any(1) for b, all_ in zip(boxes, rpns)]
        assert torch.cat(known).all() != (refine and stage > 0)
        overlap = pairwise_iou(Boxes(torch.cat([b.tensor for b in boxes])), Boxes(torch.cat(truth)))
        mine = sample.labels >= 0
        assert (overlap[mine, sample.labels[mine]] >= (0.5, 0.6, 0.7)[stage]).all() and mine.any()


def test_the_rpns_losses_of_a_cascade_may_weigh_more():
    losses = []
    for weight in (1.0, 1.5):
        adapter = build("cascade").train()
        adapter.rpn_weight = weight
        torch.manual_seed(0)
        with EventStorage(0):
            losses.append(adapter(views(), with_losses=True).losses)
    ratio = {name: (losses[1][name] / losses[0][name]).item() for name in losses[0]}
    expected = {name: 1.5 if "rpn" in name else 1.0 for name in ratio}
    assert ratio == pytest.approx(expected, rel=1e-4)


def test_the_assistants_sets_come_before_the_leads():
    """Figure 4 takes the last one."""
    adapter = build("cbnet").train()
    with EventStorage(0):
        output = adapter(views(), with_losses=False)
    assert [s.weight for s in output.samples] == [0.5, 0.25, 0.125, 1.0, 0.5, 0.25]


def test_detr_labels_follow_the_matching_of_its_loss():
    adapter = build("detr").train()
    batch = views()
    samples = adapter(batch, with_losses=False).samples[0]
    labels = samples.labels.view(2, 2, 20)  # layers, images, queries
    for layer in labels:
        assert sorted(layer[0][layer[0] >= 0].tolist()) == list(range(6))
        assert sorted(layer[1][layer[1] >= 0].tolist()) == list(range(6, 12))
    assert samples.embeddings.shape == (80, 8)


def test_losses_are_the_detectors_own():
    """With the class loss left out, the regression losses equal those of an ordinary training step."""
    torch.manual_seed(0)
    detector = fcos()
    batch = views()
    for view in batch:
        view["instances"].gt_classes = torch.zeros(6, dtype=torch.int64)
    adapter = FCOSAdapter(detector, num_samples=40, dim=8)
    with EventStorage(0):
        own = adapter(batch, with_losses=True).losses
    del detector.loss_normalizer  # the moving average of the first call
    with EventStorage(0):
        plain = detector(batch)
    for name, loss in own.items():
        torch.testing.assert_close(loss, plain[name])


def test_fcos_trains_on_an_image_without_objects():
    """Which is background: the other image's losses stay, the classification gains what an empty image costs."""
    torch.manual_seed(0)
    detector = fcos(classes=3).eval()  # batch statistics would mix the images
    batch = views()
    for view in batch:
        view["instances"].gt_classes = torch.zeros(6, dtype=torch.int64)
    full, empty = batch[0], {"image": torch.zeros_like(batch[0]["image"]), "instances": batch[0]["instances"][:0]}
    detector.training = True
    losses = []
    for images in ([full], [full, empty], [empty]):
        detector._buffers.pop("loss_normalizer", None)
        detector.__dict__.pop("loss_normalizer", None)
        with EventStorage(0):
            losses.append(detector(images))
    alone, together, nothing = losses
    positives = nothing["loss_fcos_cls"] / (together["loss_fcos_cls"] - alone["loss_fcos_cls"])
    assert positives > 1  # an empty image divides by 1
    for name in ("loss_fcos_loc", "loss_fcos_ctr"):
        torch.testing.assert_close(together[name], alone[name])
        assert nothing[name] == 0
    sum(nothing.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in detector.parameters() if p.grad is not None)


def test_mask_head_takes_no_part():
    assert "roi_heads.mask_head" in build("faster_rcnn").unused
    assert faster_rcnn(3).roi_heads.num_classes == 3
