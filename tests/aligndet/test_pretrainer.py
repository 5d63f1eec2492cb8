"""One pre-training step per kind of detector: what learns, what stays, what follows."""

import math

import pytest
import torch
from aligndet_detectors import build, two_view_batch
from detectron2.utils.events import EventStorage

from aligndet.adapters.base import TASKS
from aligndet.modules import matches
from aligndet.pretrainer import AlignDet, momentum_at

# DETR's queries start with zero content: what the first self-attention multiplies by is zero, its gradient rounding
ZERO_INPUT = "online.detector.decoder.layers.0.self_attn.in_proj_weight"


def step(model, batch, iteration=0):
    with EventStorage(iteration):
        return model(batch)


def test_every_module_that_should_learn_gets_a_gradient_and_no_other(kind):
    model = AlignDet(build(kind), total_steps=10).train()
    losses = step(model, two_view_batch())
    assert all(torch.isfinite(loss) for loss in losses.values()) and "loss_contrastive" in losses
    assert any("cls" not in name and name != "loss_contrastive" for name in losses)
    sum(losses.values()).backward()
    idle = [f"online.detector.{name}" for name in (*model.online.unused, model.online.backbone)]
    for name, parameter in model.named_parameters():
        has = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
        wanted = name.startswith("online.") and not matches(name, idle)
        assert parameter.requires_grad == wanted, name
        assert has == wanted or name == ZERO_INPUT, f"{name}: gradient {has}, wanted {wanted}"


@pytest.mark.parametrize("tasks", [("classification",), ("regression",)])
def test_one_task_trains_only_its_modules(kind, tasks):
    model = AlignDet(build(kind), total_steps=10, tasks=tasks).train()
    losses = step(model, two_view_batch())
    assert ("loss_contrastive" in losses) == (tasks == ("classification",))
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        has = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
        assert has == parameter.requires_grad or name == ZERO_INPUT, name
    (missing,) = set(TASKS) - set(tasks)
    for name, parameter in model.online.detector.named_parameters():
        if matches(name, model.online.only[missing]):
            assert not parameter.requires_grad, name


def test_backbone_does_not_move_and_the_twin_follows_the_schedule(kind):
    model = AlignDet(build(kind), total_steps=3).train()
    backbone = model.online.detector.backbone.bottom_up
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.01, momentum=0.9, weight_decay=0.1)
    expected = [p.detach().clone() for p in model.target.parameters()]
    online_names = [n for n, _ in model.online.named_parameters()]
    for t in range(3):
        losses = step(model, two_view_batch(images=1, seed=t), t)
        for twin, want in zip(model.target.parameters(), expected):
            torch.testing.assert_close(twin, want)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        m = 1 - (1 - 0.996) * (math.cos(math.pi * t / 3) + 1) / 2
        source = dict(model.online.named_parameters())
        copied = [f"detector.{name}" for name in model.online.copied]
        expected = [
            source[n].detach().clone() if matches(n, copied) else m * want + (1 - m) * source[n].detach()
            for n, want in zip(online_names, expected)
        ]
    for key, value in backbone.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert model.target.detector.backbone.bottom_up is backbone and not backbone.training
    moved = [not torch.equal(a, b) for (_, a), b in zip(model.online.named_parameters(), model.target.parameters())]
    assert any(moved)


def test_accumulated_batches_update_the_twin_once():
    model = AlignDet(build("faster_rcnn"), total_steps=10).train()
    with torch.no_grad():
        for p in model.online.projector.parameters():
            p.add_(1.0)
    for _ in range(2):
        step(model, two_view_batch(images=1), iteration=4)
    online, twin = model.online.projector[0].weight, model.target.projector[0].weight
    torch.testing.assert_close(online - twin, torch.full_like(online, momentum_at(3, 10)), rtol=0, atol=1e-5)


def test_unfrozen_backbone_learns_and_has_its_own_twin():
    model = AlignDet(build("retinanet"), total_steps=10, freeze_backbone=False).train()
    ours, twin = (d.detector.backbone.bottom_up for d in (model.online, model.target))
    assert ours is not twin and ours.training
    sum(step(model, two_view_batch()).values()).backward()
    assert ours.body.conv1.weight.grad.abs().sum() > 0


def test_evaluation_runs_the_detector(kind):
    model = AlignDet(build(kind), total_steps=10).eval()
    with torch.no_grad():
        (output,) = model([{"image": torch.zeros(3, 96, 128, dtype=torch.uint8), "height": 48, "width": 64}])
    assert output["instances"].image_size == (48, 64)


def test_bf16_autocast_is_finite(kind):
    model = AlignDet(build(kind), total_steps=10).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = step(model, two_view_batch(images=1))
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert losses["loss_contrastive"].dtype == torch.float32


def test_more_than_256_proposals_keep_their_identity():
    batch = two_view_batch(images=2, proposals=150)
    first, second = AlignDet.two_views(batch)
    ids = torch.cat([view["instances"].gt_ids for view in first])
    assert ids.tolist() == list(range(300)) == torch.cat([v["instances"].gt_ids for v in second]).tolist()
    model = AlignDet(build("faster_rcnn"), total_steps=10).train()
    with EventStorage(0), torch.no_grad():
        labels = model.online(first, with_losses=False).samples[0].labels
    assert set(labels.tolist()) == set(range(300))  # ground truth is among the proposals


def test_bad_arguments():
    with pytest.raises(ValueError, match="tasks"):
        AlignDet(build("fcos"), 10, tasks=("masks",))
    with pytest.raises(KeyError, match="TwoViewMapper"):
        step(AlignDet(build("fcos"), 10), [{"image": torch.zeros(3, 64, 64), "instances": None}])
