"""The small network under the authors' necks and heads and under ours, and what mmdetection calls a pyramid on it."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import Tensor, nn
from torch.nn import functional as F

WIDTHS = {"res2": 8, "res3": 16, "res4": 24, "res5": 32}
State = dict[str, Tensor]


class Body(Backbone):
    """Five 3x3 convolutions of stride 2 with ReLU; maps `res2` to `res5` at strides 4 to 32."""

    def __init__(self) -> None:
        super().__init__()
        widths = [3, 8, *WIDTHS.values()]
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in zip(widths, widths[1:]))
        self._out_features = list(WIDTHS)
        self._out_feature_channels = dict(WIDTHS)
        self._out_feature_strides = {name: 4 * 2**i for i, name in enumerate(WIDTHS)}

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        maps = []
        for conv in self.convs:
            image = F.relu(conv(image))
            maps.append(image)
        return dict(zip(WIDTHS, maps[1:]))

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {
            name: ShapeSpec(channels=width, stride=self._out_feature_strides[name]) for name, width in WIDTHS.items()
        }


def renamed(state: Mapping[str, Tensor], rules: Mapping[str, str]) -> State:
    """Tensors whose names went through all substitutions."""
    moved = {}
    for name, value in state.items():
        for pattern, new in rules.items():
            name = re.sub(pattern, new, name)
        moved[name] = value
    return moved


def pyramid_rules(first: int) -> dict[str, str]:
    """mmdetection's body and FPN -> `Body` under Detectron2's FPN from P`first`, P6 and P7 being its `top_block`."""
    rules = {r"^backbone\.(?=convs)": "backbone.bottom_up."}
    for level in range(first, 6):
        rules[rf"^neck\.lateral_convs\.{level - first}\.conv"] = f"backbone.fpn_lateral{level}"
        rules[rf"^neck\.fpn_convs\.{level - first}\.conv"] = f"backbone.fpn_output{level}"
    for level in (6, 7):
        rules[rf"^neck\.fpn_convs\.{level - first}\.conv"] = f"backbone.top_block.p{level}"
    return rules


def joined_scales(state: State, pattern: str, target: str) -> State:
    """The levels' factors (names that match `pattern`, the level being its group) as the one tensor `target`."""
    levels = sorted((int(m[1]), name) for name in state if (m := re.fullmatch(pattern, name)))
    rest = {name: value for name, value in state.items() if not re.fullmatch(pattern, name)}
    return {**rest, target: torch.cat([state[name].reshape(1) for _, name in levels])}
