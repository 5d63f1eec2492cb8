"""Our models as the goldens were computed: rows of the papers' tables made small by overrides."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from detectron2.config import instantiate
from omegaconf import OmegaConf
from torch import nn

from polydet.engine import load_config

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def small_row(row: str, changes: Mapping[str, Any]) -> nn.Module:
    """The model of ``configs/{row}.py`` in float64, after `changes` by dotted name below `model`."""
    cfg = load_config(CONFIGS / f"{row}.py").model
    for name, value in {"backbone.bottom_up.weights": None, **changes}.items():
        OmegaConf.update(cfg, name, value, merge=False)
    torch.manual_seed(0)
    return instantiate(cfg).double()
