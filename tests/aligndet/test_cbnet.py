import pytest
import torch
from aligndet_detectors import composite_htc, swin, two_view_batch
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

from polydet.backbones import TimmBackbone
from polydet.backbones.cbnet import CBNet
from polydet.layers import linear_soft_nms


def batch(classes=3):
    inputs = two_view_batch(images=1)
    for item in inputs:
        item["instances"].gt_classes = torch.arange(6) % classes
        item["instances"].gt_masks = BitMasks(torch.rand(6, *item["instances"].image_size) > 0.5)
    return inputs


def test_fresh_connections_leave_the_lead_alone():
    torch.manual_seed(0)
    net = CBNet(swin(), swin()).eval()
    image = torch.randn(2, 3, 90, 131)
    with torch.no_grad():
        assistant, lead = net.forward_pair(image)
        for got, alone in ((assistant, net.assistant(image)), (lead, net.lead(image))):
            assert got.keys() == alone.keys()
            for name in got:
                torch.testing.assert_close(got[name], alone[name], rtol=1e-4, atol=1e-5)
        assert net(lead) is lead


def test_composition_reads_higher_levels_only():
    """Stage i of the lead moves with connections from assistant stages j >= i."""
    torch.manual_seed(0)
    net = CBNet(swin(), swin()).eval()
    image = torch.randn(1, 3, 96, 128)
    with torch.no_grad():
        before = net(image)
        torch.nn.init.normal_(net.connections[2][1].weight)  # level 4 of the assistant into stage 3 of the lead
        after = net(image)
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed == ["res4", "res5"]
    assert [len(level) for level in net.connections] == [4, 3, 2, 1]


def test_only_swins_of_one_shape_compose():
    with pytest.raises(ValueError, match="Swin"):
        CBNet(swin(), TimmBackbone("resnet18", ("res2", "res3", "res4", "res5"), None))


@pytest.mark.parametrize("masks", [False, True])
def test_training_supervises_both_pyramids_and_every_stage(masks):
    torch.manual_seed(0)
    model = composite_htc(3, masks).train()
    with EventStorage(0):
        losses = model(batch())
    stages = {f"loss_{kind}_stage{k}" for kind in ("cls", "box_reg", *(["mask"] if masks else [])) for k in range(3)}
    own = stages | {"loss_rpn_cls", "loss_rpn_loc"}
    assert set(losses) == own | {f"assistant_{name}" for name in own}
    sum(losses.values()).backward()
    idle = [n for n, p in model.named_parameters() if p.grad is None]
    assert idle == []
    # the assistant learns from its own pyramid even where the connections are zero
    assert model.backbone.bottom_up.assistant.body.patch_embed.proj.weight.grad.abs().sum() > 0


def test_images_without_objects_train():
    model = composite_htc(3, masks=True).train()
    inputs = batch()
    inputs[0]["instances"] = inputs[0]["instances"][:0]
    with EventStorage(0):
        losses = model(inputs)
    assert all(torch.isfinite(x) for x in losses.values())


@pytest.mark.parametrize("iou", [None, 0.5])
def test_inference_has_masks_and_sorted_scores(iou):
    torch.manual_seed(0)
    model = composite_htc(3, masks=True, soft_nms_iou=iou).eval()
    with torch.no_grad():
        (out,) = model([{"image": torch.randint(0, 255, (3, 96, 128), dtype=torch.uint8), "height": 96, "width": 128}])
    found = out["instances"]
    assert len(found) == 100 and found.pred_masks.shape == (100, 96, 128)
    assert (found.scores.diff() <= 1e-6).all() and (found.scores > 0).all()


def test_soft_nms_keeps_the_best_boxes():
    torch.manual_seed(0)
    low = torch.rand(240, 2) * 80
    boxes = torch.cat([low, low + 20 + torch.rand(240, 2) * 60], 1)
    found = Instances((200, 200), pred_boxes=Boxes(boxes), scores=torch.rand(240), pred_classes=torch.arange(240) % 7)
    heads = composite_htc(7, soft_nms_iou=0.5).roi_heads
    index, scores = linear_soft_nms(boxes, found.scores, found.pred_classes, 0.5)
    softened = heads._soften(found, 30)
    assert torch.equal(softened.pred_boxes.tensor, boxes[index[:30]]) and torch.equal(softened.scores, scores[:30])
    assert len(heads._soften(found[:0], 30)) == 0
