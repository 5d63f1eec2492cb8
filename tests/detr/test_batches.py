"""An image beside a larger one: what padding may do to its answer, and the options that keep it out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import Tensor

from polydet.detr import DETR, AnchorPosition, TwoStageQueries

from .builders import DIM, batch, build

TWO_STAGE = ("deformable_two_stage", "deformable_pp", "dino")
STRIDES = (8, 16, 32, 64)
SMALL, LARGE = (64, 64), (128, 192)


class Pooled(Backbone):
    """Means of patches, projected: nothing crosses the border to the padding where sizes are multiples of 64."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("projection", torch.randn(DIM, 3, 1, 1, generator=torch.Generator().manual_seed(0)))

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {f"p{i}": F.conv2d(F.avg_pool2d(image, s), self.projection) for i, s in enumerate(STRIDES)}

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {f"p{i}": ShapeSpec(channels=DIM, stride=s) for i, s in enumerate(STRIDES)}

    @property
    def size_divisibility(self) -> int:
        return 0


def made(member: str) -> DETR:
    """A member whose class head likes tokens of padding best, as a trained one may."""
    model = build(member, backbone=Pooled()).eval()
    torch.manual_seed(1)
    torch.nn.init.normal_(model.level_embed)
    source = model.queries
    torch.nn.init.normal_(source.token_proj.bias)
    with torch.no_grad():
        source.class_head.weight[:] = source.token_norm(source.token_proj.bias)
        for head in model.box_heads:
            torch.nn.init.normal_(head.layers[-1].weight, std=0.3)
    if isinstance(model.decoder.query_position, AnchorPosition):
        model.decoder.query_position.relative_to = "image"
    return model


def answers(model: DETR) -> tuple[Tensor, Tensor]:
    """Boxes of the small image alone, and beside a large one."""
    small, large = batch((SMALL, LARGE), (0, 0))
    with torch.no_grad():
        return tuple(model(b)[0]["instances"].pred_boxes.tensor for b in ([small], [small, large]))  # type: ignore


@pytest.mark.parametrize("member", TWO_STAGE)
def test_an_image_answers_in_a_batch_as_alone(member: str) -> None:
    alone, beside = answers(made(member))
    torch.testing.assert_close(beside, alone, rtol=0, atol=1e-3)


@pytest.mark.parametrize("member", TWO_STAGE)
def test_padding_may_take_the_queries_as_in_the_authors_code(member: str) -> None:
    model = made(member)
    model.queries.select_padding = "always"
    alone, beside = answers(model)
    assert not torch.allclose(alone, beside, atol=1.0)
    memory = model.encode(model.preprocess(batch((SMALL, LARGE), (0, 0))))
    references = model.queries(memory).references[0]
    assert (references == 1).all()  # where padding proposes: every query of the small image


@pytest.mark.parametrize(("option", "training", "inference"), [("always", 1, 1), ("training", 1, 0), ("never", 0, 0)])
def test_padding_competes_where_the_option_says(option: str, training: int, inference: int) -> None:
    model = made("dino")
    model.queries.select_padding = option
    inputs = batch((SMALL, LARGE), (1, 1))
    memory = model.encode(model.preprocess(inputs))
    for targets, expected in ((model.prepare_targets(inputs), training), (None, inference)):
        assert bool((model.queries(memory, targets).references[0] == 1).all()) == expected


def test_anchors_are_relative_to_the_padded_map_in_the_authors_code() -> None:
    model = made("dino")
    model.decoder.query_position.relative_to = "map"
    alone, beside = answers(model)
    assert not torch.allclose(alone, beside, atol=1e-2)


def test_options_say_what_they_know() -> None:
    with pytest.raises(ValueError, match="map or image"):
        AnchorPosition(DIM, relative_to="level")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="always, training or never"):
        TwoStageQueries(3, select_padding="sometimes")  # type: ignore[arg-type]
