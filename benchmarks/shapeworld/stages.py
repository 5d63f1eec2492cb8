"""Quickstarts whose first stage makes a backbone: the studies make it once."""

from pathlib import Path

from detectron2.config import instantiate
from omegaconf import DictConfig

from polydet.engine.config import stage_config


def train_stage(cfg: DictConfig, work: Path) -> DictConfig:
    """The config of stage `train`, with a backbone in `work` that is made when it is not there."""
    backbone = work / "backbone.safetensors"
    cfg.stages.backbone.run.output = str(backbone)
    instantiate(cfg.stages.backbone.run)
    stage = stage_config(cfg, "train")
    stage.model.backbone.bottom_up.weights = str(backbone)
    return stage
