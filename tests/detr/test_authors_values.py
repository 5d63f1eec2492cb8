"""Options of the shared parts that the authors of each member set otherwise: what the configs say, and what it does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from detectron2.config import LazyConfig
from omegaconf import OmegaConf

from metr import CategoryQuerySource
from polydet.detr import Queries, TwoStageQueries
from polydet.model_zoo.zoo import config_root

from .builders import DIM, batch, build

# option: members of `configs/common/models` by value
VALUES: dict[str, list[tuple[Any, str]]] = {
    "queries.content_init": [("xavier", "dino metr"), ("normal", "dino_5scale co_dino co_dino_vit")],
    "backbone.bias": [
        (True, "detr conditional_detr dab_detr deformable_detr deformable_detr_two_stage deformable_detr_pp"),
        (True, "dab_deformable_detr dn_dab_deformable_detr dino metr"),
        (False, "dino_5scale co_dino co_deformable_detr_pp"),
    ],
    "decoder.eps": [
        (1e-5, "conditional_detr deformable_detr deformable_detr_refine"),
        (1e-5, "deformable_detr_two_stage deformable_detr_pp co_deformable_detr_pp"),
        (1e-3, "dab_detr dab_deformable_detr dn_dab_deformable_detr dino dino_5scale metr co_dino co_dino_vit"),
    ],
    "denoising.normalizer": [
        ("objects", "dino metr"),
        ("pairs", "dino_5scale co_dino co_dino_vit"),
        ("local", "dn_dab_deformable_detr"),
    ],
    "decoder.query_position.relative_to": [
        ("map", "dab_deformable_detr dn_dab_deformable_detr dino dino_5scale metr co_dino co_dino_vit"),
    ],
    "queries.select_padding": [  # the authors' "always" but at inference
        ("training", "deformable_detr_two_stage deformable_detr_pp dino dino_5scale co_deformable_detr_pp co_dino_vit"),
    ],
}
CASES = [(key, member, value) for key, rows in VALUES.items() for value, members in rows for member in members.split()]


@pytest.mark.parametrize(("key", "member", "value"), CASES)
def test_configs_say_what_the_authors_do(key: str, member: str, value: Any) -> None:
    model = LazyConfig.load(str(config_root() / "common" / "models" / f"{member}.py")).model
    assert OmegaConf.select(model, key) == value


def test_content_of_dino_starts_small_and_that_of_co_detr_at_one() -> None:
    torch.manual_seed(0)
    xavier, normal = (TwoStageQueries(80, content_init=init).content for init in ("xavier", "normal"))
    assert xavier is not None and normal is not None
    assert xavier.weight.std().item() == pytest.approx(0.0416, abs=5e-4)  # the authors' 900 queries of 256 channels
    assert normal.weight.std().item() == pytest.approx(1.0, abs=0.01)
    # METR adds the category's embedding to it: with 100 queries the authors' rule gives 0.075
    metr = CategoryQuerySource(100, 256).content
    assert metr is not None
    assert metr.weight.std().item() == pytest.approx(0.0749, abs=2e-3)
    with pytest.raises(ValueError, match="normal or xavier"):
        TwoStageQueries(80, content_init="zeros")  # type: ignore[arg-type]


@pytest.mark.parametrize("eps", [1e-5, 1e-3])
def test_references_are_clamped_where_the_authors_do(eps: float) -> None:
    """A head that changes nothing gives back a reference inside (eps, 1 - eps), and the nearest logit outside."""
    model = build("dino").eval()
    model.decoder.eps = eps
    references = torch.tensor([0.0, 2e-4, 0.3, 0.9998, 1.0])[None, :, None].expand(1, 5, 4)
    memory = model.encode(model.preprocess(batch(((48, 64),), (0,))))
    boxes = model.decode(Queries(torch.zeros(1, 5, DIM), references), memory).boxes
    odds = references.clamp(min=eps) / (1 - references).clamp(min=eps)
    expected = odds / (1 + odds)
    for layer in boxes[:1]:
        torch.testing.assert_close(layer, expected, rtol=0, atol=1e-6)
    inside = expected[0, :, 0] - references[0, :, 0]
    assert bool((inside[1:4].abs() < 1e-6).all()) == (eps == 1e-5)
