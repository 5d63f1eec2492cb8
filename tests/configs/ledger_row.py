"""A run of the ledger beside its resolved config, and how to read a config."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from detectron2.config import instantiate
from detectron2.utils.registry import locate
from omegaconf import DictConfig, OmegaConf, open_dict

from polydet import model_zoo
from polydet.engine import load_config

_built: dict[str, torch.nn.Module] = {}
_loaded: dict[tuple[str, ...], DictConfig] = {}


def load(config: str, overrides: dict[str, Any] | None = None) -> DictConfig:
    """A config by its path below configs/, overridden strictly."""
    changes = tuple(f"{key}={value}" for key, value in (overrides or {}).items())
    if (config, *changes) not in _loaded:
        _loaded[config, *changes] = load_config(model_zoo.zoo.config_root() / config, changes)
    return _loaded[config, *changes]


def target(node: Any) -> Any:
    """What a call of a config calls; None where there is none."""
    if node is None or "_target_" not in node:
        return None
    return locate(node._target_) if isinstance(node._target_, str) else node._target_


def named(node: Any) -> str:
    """Name of the class or function that a node calls."""
    return getattr(target(node), "__name__", "")


def argument(node: DictConfig, name: str) -> Any:
    """An argument of a call: the config's, else the default of what is called."""
    if name in node:
        return node[name]
    default = inspect.signature(target(node)).parameters[name].default
    assert default is not inspect.Parameter.empty, f"{named(node)} needs {name}"
    return default


def build(cfg: DictConfig) -> torch.nn.Module:
    """The model on the meta device; equal models are built once."""
    # a model's interpolations reach outside it (dataloader.train.datasets): resolve them for the key
    key = repr(OmegaConf.to_container(cfg.model, resolve=False)) + repr(train_datasets(cfg)) + merge_of(cfg)
    if key not in _built:
        with torch.device("meta"):
            _built[key] = instantiate(cfg.model)
    return _built[key]


def train_datasets(cfg: DictConfig) -> list[str]:
    return list(cfg.dataloader.train.get("datasets", ()))


def merge_of(cfg: DictConfig) -> str:
    return cfg.dataloader.train.get("merge") or "none"


@dataclass(frozen=True)
class Row:
    """One run: its ledger entry and the config it resolves to.

    `stated` are the settings to compare with: the run's, or those of a table's row over the run's.
    """

    name: str
    run: dict[str, Any]
    stated: dict[str, Any]
    overrides: dict[str, Any]

    @property
    def paper(self) -> str:
        return self.name.split("/")[0]

    @property
    def cfg(self) -> DictConfig:
        return load(self.run["config"], self.overrides)

    @property
    def model(self) -> DictConfig:
        """The detector's node: of a pre-training, the one that it trains."""
        model = self.cfg.model
        return model.adapter.detector if "adapter" in model else model

    @property
    def bottom_up(self) -> DictConfig:
        """The image backbone's node (of two composed ones the lead)."""
        backbone = self.model.backbone
        backbone = backbone.get("bottom_up", backbone)
        return backbone.get("lead", backbone)

    @property
    def started_from(self) -> str:
        """The config, below configs/, whose final checkpoint this run starts from; "" if it starts from none."""
        checkpoint = self.cfg.train.init_checkpoint
        if not checkpoint:
            return ""
        for name in model_zoo.list_configs():
            if name.startswith(f"{self.paper}/"):
                cfg = load(f"{name}.py")
                if "odinw" not in cfg and f"{cfg.train.output_dir}/model_final.pth" == checkpoint:
                    return f"{name}.py"
        return f"no config writes {checkpoint}"

    @cached_property
    def rates(self) -> dict[str, float]:
        """Learning rate of every trained parameter."""
        model = build(self.cfg)
        optimizer = self.cfg.optimizer.copy()
        with open_dict(optimizer):
            optimizer.params.model = model
        groups = instantiate(optimizer).param_groups
        rate = {id(p): group["lr"] for group in groups for p in group["params"]}
        return {name: rate[id(p)] for name, p in model.named_parameters() if p.requires_grad}

    def rate_of(self, *prefixes: str, others: bool = False) -> Any:
        """The one learning rate of the parameters below the prefixes (or of all others); a list if they differ."""
        found = {rate for name, rate in self.rates.items() if name.startswith(prefixes) != others}
        return round(found.pop(), 12) if len(found) == 1 else sorted(found)

    @property
    def source(self) -> DictConfig:
        """Where boxes come from: the loader, or the detection source of a mixed one."""
        train = self.cfg.dataloader.train
        return train.sources.detection if "sources" in train else train

    @property
    def augmentation(self) -> DictConfig:
        """The call that makes the training augmentation."""
        mapper = self.source.mapper
        return (mapper.mapper if "mapper" in mapper else mapper).augmentations


# setting of the ledger -> what a config says about it
READERS: dict[str, Callable[[Row], Any]] = {}


def reads(*keys: str) -> Callable[[Callable[[Row], Any]], Callable[[Row], Any]]:
    def register(reader: Callable[[Row], Any]) -> Callable[[Row], Any]:
        READERS.update(dict.fromkeys(keys, reader))
        return reader

    return register


def at(path: str) -> Callable[[Row], Any]:
    """Reads one key of the config."""
    return lambda row: OmegaConf.select(row.cfg, path, throw_on_missing=True)


def hook(name: str) -> Callable[[Row], Any]:
    """Reads an argument of the run's only hook, the plateau schedule."""
    return lambda row: argument(row.cfg.train.hooks[0], name)
