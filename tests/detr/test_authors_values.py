"""Options of the shared parts that the authors of each member set otherwise: what the configs say, and what it does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from detectron2.config import LazyConfig
from omegaconf import OmegaConf

from metr import CategoryQuerySource
from polydet.detr import TwoStageQueries
from polydet.model_zoo.zoo import config_root

# option: value of each member in `configs/common/models`
VALUES: dict[str, dict[str, Any]] = {
    "queries.content_init": {"dino": "xavier", "dino_5scale": "normal", "co_dino": "normal", "co_dino_vit": "normal"},
}


@pytest.mark.parametrize(("key", "member"), [(key, member) for key, values in VALUES.items() for member in values])
def test_configs_say_what_the_authors_do(key: str, member: str) -> None:
    model = LazyConfig.load(str(config_root() / "common" / "models" / f"{member}.py")).model
    assert OmegaConf.select(model, key) == VALUES[key][member]


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
