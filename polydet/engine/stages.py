"""Configs with several models: which one a tool is to look at."""

from omegaconf import DictConfig

from polydet.engine.config import stage_config
from polydet.engine.errors import ConfigError


def one_model(cfg: DictConfig, stage: str | None) -> DictConfig:
    """The part of a config that has a model: itself, or the stage that `stage` names.

    Raises:
        ConfigError: a stage that is none, or several models and no stage named.
    """
    if stage:
        return stage_config(cfg, stage)
    if "stages" in cfg:
        named = ", ".join(name for name, part in cfg.stages.items() if "model" in part)
        raise ConfigError(f"{cfg.source.file} has several models; name one with --stage: {named}")
    return cfg
