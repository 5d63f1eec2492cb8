"""Configs and models by name, and the bridge to Detectron2's own ``DefaultPredictor``."""

from polydet.model_zoo.zoo import config_path, get, get_cfg, get_config, list_configs, save

__all__ = ["config_path", "get", "get_cfg", "get_config", "list_configs", "save"]
