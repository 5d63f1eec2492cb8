"""Parameter groups and schedules against hand-computed values."""

import pytest
import torch
from torch import nn

from polydet.engine.optim import lr_schedule, param_groups


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
        self.head = nn.Linear(2, 2)
        self.tied = self.head
        self.frozen = nn.Parameter(torch.zeros(1), requires_grad=False)


def groups_by_name(model, **kwargs):
    names = {id(p): n for n, p in model.named_parameters()}
    groups = param_groups(model, lr=1.0, weight_decay=0.1, **kwargs)
    return {names[id(p)]: (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}


def test_every_trainable_parameter_is_in_one_group():
    groups = groups_by_name(Net(), lr_factors={"^backbone": 0.1}, weight_decay_norm=0.0, weight_decay_bias=0.05)
    assert groups == {
        "backbone.0.weight": (0.1, 0.1),
        "backbone.0.bias": (0.1, 0.05),
        "backbone.1.weight": (0.1, 0.0),
        "backbone.1.bias": (0.1, 0.0),
        "head.weight": (1.0, 0.1),
        "head.bias": (1.0, 0.05),
    }


def test_factors_multiply_and_unused_patterns_are_errors():
    groups = groups_by_name(Net(), lr_factors={"backbone": 0.1, "weight": 0.5}, lr_factor_bias=2.0)
    assert groups["backbone.0.weight"][0] == pytest.approx(0.05) and groups["head.bias"][0] == 2.0
    with pytest.raises(ValueError, match="bakbone"):
        groups_by_name(Net(), lr_factors={"bakbone": 0.1})
    model = Net().requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable"):
        param_groups(model, 1.0, 0.1)


def test_layer_decay_is_by_depth():
    model = nn.Module()
    model.backbone = nn.Module()
    model.backbone.patch = nn.Linear(1, 1)
    model.backbone.blocks = nn.ModuleList(nn.Linear(1, 1) for _ in range(3))
    model.head = nn.Linear(1, 1)
    groups = groups_by_name(model, layer_decay=0.5, num_layers=3)
    rates = [groups[f"backbone.blocks.{i}.weight"][0] for i in range(3)]
    assert rates == [0.5**3, 0.5**2, 0.5] and groups["backbone.patch.weight"][0] == 0.5**4
    assert groups["head.weight"][0] == 1.0


def values(schedule, max_iter):
    return [schedule(i / max_iter) for i in range(max_iter)]


def test_steps_in_any_unit_fall_on_the_same_iteration():
    expected = [1.0] * 6 + [0.1] * 2 + [0.01] * 2
    for kwargs in (
        {"milestones": [6, 8], "unit": "iter"},
        {"milestones": [0.6, 0.8], "unit": "fraction"},
        {"milestones": [3, 4], "unit": "epoch", "iters_per_epoch": 2.0},
    ):
        assert values(lr_schedule(10, **kwargs), 10) == pytest.approx(expected)
    assert values(lr_schedule(10, milestones=[20]), 10) == [1.0] * 10


def test_cosine_and_warmup():
    cosine = values(lr_schedule(4, kind="cosine"), 4)
    assert cosine == pytest.approx([1.0, 0.8535533906, 0.5, 0.1464466094])
    warm = values(lr_schedule(10, kind="constant", warmup_iters=5, warmup_factor=0.2), 10)
    assert warm[0] == pytest.approx(0.2) and warm[5:] == [1.0] * 5
    assert all(a < b for a, b in zip(warm[:5], warm[1:6]))
    assert values(lr_schedule(10, kind="constant", warmup_iters=5, warmup_factor=0.2, warmup="constant"), 10)[4] == 0.2


@pytest.mark.parametrize(
    "kwargs",
    [
        {"kind": "poly"},
        {"milestones": [4, 2]},
        {"milestones": [1], "unit": "epoch"},
        {"milestones": [1], "unit": "week"},
    ],
)
def test_bad_schedules_are_refused(kwargs):
    with pytest.raises(ValueError):
        lr_schedule(10, **kwargs)


@pytest.mark.parametrize("settings", [{"kind": "constant"}, {"kind": "step"}, {"kind": "constant", "warmup_iters": 10}])
def test_schedules_without_a_step_reach_the_end(settings):
    schedule = lr_schedule(100, **settings)
    assert [schedule(where) for where in (0.5, 0.99, 1.0)] == [pytest.approx(1.0)] * 3
