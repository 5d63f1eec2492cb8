"""A config that fits itself to the data: leaves that say ``auto`` are decided from the cards and the machine.

A config with a node ``recipe`` has the value ``"auto"`` where a quantity of its own shall be decided::

    recipe = dict(
        speed="auto",                                        # fast, gpu, or what the machine is
        fast=dict(batch=4, lr=1e-3, visits=300), gpu=dict(batch=16, lr=2e-4, visits=90_000),
        released=dict(finest=3, coarsest=7),                 # quantities of published weights (train.init_checkpoint)
        keys=dict(short="dataloader.train.mapper.augmentations.short", lr="optimizer.lr"),
    )

``keys`` says where each quantity of `polydet.engine.recipe_rules` stands.  It is resolved after overrides: what
the config or an override states wins, and the other quantities follow from it.  Afterwards there is no node and no
``auto`` left, and the config is an ordinary one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf, open_dict

from polydet.data import data_statistics
from polydet.engine.errors import ConfigError
from polydet.engine.file_config import load_model_config
from polydet.engine.recipe_rules import PARTS, RULES, Facts
from polydet.engine.trust import read_yaml_config
from polydet.model_file import is_model_file

AUTO = "auto"
SPEEDS = ("fast", "gpu")
_OPTIONS = {"speed", "keys", "released", *SPEEDS}


def resolve_recipe(cfg: DictConfig) -> list[str]:
    """Replace the node ``recipe`` of ``cfg``, in place, by what it decides.

    Returns:
        a line on the data, then one for each key with its value and reason; nothing for a config without the node.

    Raises:
        ConfigError: a quantity or key that does not exist, or a speed other than auto, fast and gpu.
        DatasetError: no training dataset is named, or a card cannot be read.
    """
    if "recipe" not in cfg:
        return []
    recipe = cfg.recipe
    _check(cfg, recipe)
    facts = _facts(cfg, recipe)
    data = facts.data
    lines = [
        f"{', '.join(data.datasets)} at speed={facts.speed}: {data.images} images, {len(data.boxes)} boxes, "
        f"{data.labels} labels"
    ]
    for quantity, key in recipe["keys"].items():  # `keys` is a method of the node
        if OmegaConf.select(cfg, key) == AUTO:
            OmegaConf.update(cfg, key, facts.get(quantity), merge=False)
            lines.append(f"{key} = {facts.get(quantity)}: {facts.reasons[quantity]}")
        else:
            lines.append(f"{key} = {facts.get(quantity)}: given")
    with open_dict(cfg):
        del cfg["recipe"]
    return lines


def _check(cfg: DictConfig, recipe: DictConfig) -> None:
    if unknown := set(recipe) - _OPTIONS:
        first = sorted(map(str, unknown))[0]
        raise ConfigError(f"recipe.{first} is unknown; a recipe has {', '.join(sorted(_OPTIONS))}")
    if recipe.speed not in (AUTO, *SPEEDS):
        raise ConfigError(f"recipe.speed must be auto, fast or gpu, not {recipe.speed!r}")
    for node in ("keys", "released"):
        for quantity in recipe[node]:
            if quantity not in RULES:
                raise ConfigError(f"recipe.{node}.{quantity} is no quantity; known are {', '.join(sorted(RULES))}")
    for quantity, key in recipe["keys"].items():
        if OmegaConf.select(cfg, key, default=_ABSENT) is _ABSENT:
            raise ConfigError(f"recipe.keys.{quantity}: the config has no key {key!r}")


_ABSENT = object()


def _facts(cfg: DictConfig, recipe: DictConfig) -> Facts:
    speed = recipe.speed if recipe.speed != AUTO else ("gpu" if torch.cuda.is_available() else "fast")
    given: dict[str, Any] = {}
    for quantity, key in recipe["keys"].items():
        value = OmegaConf.select(cfg, key)
        if value != AUTO:
            given[quantity] = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    base: Any = {**OmegaConf.to_container(recipe[speed]), "released": dict(recipe.released)}  # type: ignore[dict-item]
    data = data_statistics(list(cfg.dataloader.train.datasets))
    start = str(cfg.train.init_checkpoint or "")
    facts = Facts(data, speed, base, "released" if start else "", given)
    if origin := _config_of(start):
        facts.start = "own"
        for quantity, key in recipe["keys"].items():
            value = OmegaConf.select(origin, key)
            if quantity in PARTS and quantity not in given and value is not None:
                facts.chosen[quantity] = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
                facts.reasons[quantity] = f"as in {start}"
    return facts


def _config_of(checkpoint: str) -> DictConfig | None:
    """The config of the run that wrote a checkpoint, or of a model file; None for weights of others."""
    path = Path(checkpoint)
    if not checkpoint or not path.is_file():
        return None
    if is_model_file(path):
        return load_model_config(path)
    config = path.parent / "config.yaml"
    return read_yaml_config(config) if config.is_file() else None
