"""Configs and models by name, and the bridge to Detectron2's own ``DefaultPredictor``."""

from polydet.model_zoo.hub import push
from polydet.model_zoo.predictor import Predictor
from polydet.model_zoo.zoo import (
    brings_weights,
    config_path,
    get,
    get_cfg,
    get_config,
    get_model_config,
    list_configs,
    save,
)

__all__ = [
    "Predictor",
    "brings_weights",
    "config_path",
    "get",
    "get_cfg",
    "get_config",
    "get_model_config",
    "list_configs",
    "push",
    "save",
]
