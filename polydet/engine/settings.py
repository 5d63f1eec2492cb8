"""What a run can be told: name, type, default and meaning of every setting of ``train`` and ``dataloader``.

Files and overrides obey the same rule: an unknown key or a value of another type is an error.  The tables of
``docs/training.md`` are written by ``python -m polydet.engine.settings docs/training.md``.
"""

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass, field, fields, is_dataclass
from functools import cache
from os import PathLike
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from omegaconf import DictConfig, ListConfig, OmegaConf

from polydet.engine.errors import ConfigError
from polydet.engine.lazy import nearest
from polydet.files import write_text


def setting(default: Any, meaning: str, **limits: Any) -> Any:
    """A field with its meaning; ``least``, ``most`` and ``choices`` limit its values."""
    metadata = {"meaning": meaning, **limits}
    if isinstance(default, type):
        return field(default_factory=default, metadata=metadata)
    if isinstance(default, list | dict):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class Init:
    """How ``train.init_checkpoint`` is loaded."""

    min_coverage: float = setting(
        0.5,
        "least share of each top-level module that must come from there; below it the run stops and shows the ledger",
        least=0,
        most=1,
    )
    fresh: list[str] = setting(
        [],
        "prefixes of the model's keys that may start afresh, e.g. `[class_heads]`; without effect on an evaluation, "
        "for which all must be in the file",
    )
    key_map: str = setting("", "`module:function` that renames a state dict of a layout that is not known")
    class_names: list[str] = setting([], "names of the checkpoint's classes: class rows are carried over by name")
    skip: list[str] = setting([], "prefixes of the checkpoint's keys that are left out")


@dataclass
class Amp:
    """Autocast."""

    dtype: str = setting(
        "float32", "`float32`, `bfloat16`, `float16` (with loss scaling)", choices=("float32", "bfloat16", "float16")
    )


@dataclass
class ClipGrad:
    """Clipping of gradients."""

    kind: str = setting(
        "none", "`none`, `norm` (of all) or `value` (of each element)", choices=("none", "norm", "value")
    )
    value: float = setting(0.0, "the bound", least=0)


@dataclass
class Ema:
    """Average of the weights."""

    enabled: bool = setting(
        False, "average the weights: the average is evaluated, and kept as the model; a resumed run goes on from "
        "the trained ones"
    )  # fmt: skip
    decay: float = setting(0.9999, "what the average keeps of itself in a step", least=0, most=1)
    warmup: bool = setting(False, "begin with a smaller decay")
    exponential_steps: float = setting(
        0.0, "begin with a decay that rises exponentially, with this time constant (2000 in mmdetection)", least=0
    )


@dataclass
class Ddp:
    """Several processes."""

    find_unused_parameters: bool = setting(False, "for models with parameters that some steps do not use")


@dataclass
class Sentinels:
    """What stops a run that would train nothing."""

    ground_truth: int = setting(50, "steps without a ground-truth box before the run stops", least=0)
    zero_loss: int = setting(100, "steps with losses of zero before the run stops", least=0)
    frozen_period: int = setting(1000, "steps between checks that frozen weights stay as they are", least=0)


@dataclass
class Train:
    """What every run has: where it writes, how long it trains, how it starts."""

    output_dir: str = setting(
        "./output",
        "where everything goes; by default `./output/` and the path of the config below `configs/`. Tried for writing "
        "before anything else; a folder with checkpoints of another config is refused",
    )
    seed: int = setting(0, "of initialisation, data and every step")
    device: str = setting("auto", "`auto` (CUDA where there is one), `cuda`, `cpu`")
    max_iter: int = setting(90000, "optimiser steps; ignored when `max_epochs` is above 0", least=0)
    max_epochs: float = setting(0.0, "passes over the union of the training datasets", least=0)
    reference_batch_size: int = setting(
        0, "the batch that `optimizer.lr` is meant for; with another one the linear rule is printed", least=0
    )
    init_checkpoint: str = setting(
        "",
        "weights to start from: `.pth`, `.safetensors`, Detectron2's `.pkl` (nothing in a file runs), or `stage:NAME` "
        "for an earlier stage's",
    )
    init: Init = setting(Init, "")
    amp: Amp = setting(Amp, "")
    grad_accumulation: int = setting(
        1, "batches per step; `dataloader.train.total_batch_size` counts all of them and all processes", least=1
    )
    clip_grad: ClipGrad = setting(ClipGrad, "")
    ema: Ema = setting(Ema, "")
    ddp: Ddp = setting(Ddp, "")
    checkpoint_period: int = setting(5000, "steps between checkpoints", least=1)
    max_checkpoints: int = setting(3, "how many of them are kept, the newest", least=1)
    best_metric: str = setting("", "keep `model_best.pth` by this metric, e.g. `coco_2017_val/bbox/AP`")
    eval_period: int = setting(0, "steps between evaluations; 0: at the end only", least=0)
    eval_period_epochs: float = setting(
        0.0, "the same in epochs (to the nearest step, at least one), in place of `eval_period`", least=0
    )
    hooks: list[Any] = setting(
        [], "further hooks, run after the evaluation and before the checkpoint, e.g. "
        '`L(PlateauSchedule)(metric="coco_2017_val/bbox/AP")`: the rate falls when the metric stops rising'
    )  # fmt: skip
    log_period: int = setting(20, "steps between log lines", least=1)
    pictures: int = setting(8, "images a dataset in `predictions.png`; 0 for none", least=0)
    sentinels: Sentinels = setting(Sentinels, "")


@dataclass
class Dataloader:
    """What is read, and what is evaluated."""

    train: Any = setting(None, "the call that builds the train loader, see below for what the engine reads of it")
    test: Any = setting(None, "the call that builds the loader of one test dataset, given as `dataset`")
    test_datasets: list[str] = setting([], "cards that are evaluated, one after the other")
    evaluators: dict[str, Any] = setting(
        {},
        "card -> another evaluator than its own, or several, with settings where needed: "
        '`dict(shapes_coco_val=["coco", "multilabel"], my_val=dict(kind="coco", max_dets=300))`',
    )
    groups: dict[str, Any] = setting(
        {}, "lists of cards by name, for an override `'dataloader.test_datasets=${dataloader.groups.NAME}'`"
    )


@dataclass
class TrainLoader:
    """What the engine reads of ``dataloader.train``, whose other keys are its function's arguments."""

    datasets: list[str] = setting([], "cards that are trained on; they must be there before anything is built")
    merge: str = setting(
        "none", "`none`: every card has labels of its own; `name`: same names are one", choices=("none", "name")
    )
    total_batch_size: int = setting(16, "images of an optimiser step, all processes and accumulation together", least=1)


KINDS = (("train", Train), ("dataloader", Dataloader))


def fill(cfg: DictConfig) -> None:
    """Give the settings that a config (or stage) leaves out their defaults, for overrides to know them."""
    for key, kind in KINDS:
        if isinstance(cfg.get(key), DictConfig):
            cfg[key] = OmegaConf.merge(OmegaConf.create(defaults(kind), flags={"allow_objects": True}), cfg[key])


def conform(cfg: DictConfig, prefix: str = "") -> None:
    """Hold ``train`` and ``dataloader`` of a config (or stage) to their types, and give what is missing its default.

    Afterwards they stay typed: a value of another kind cannot be set either.

    Raises:
        ConfigError: an unknown key with the nearest known one, or a value of another type or outside its limits.
    """
    for key, kind in KINDS:
        if key not in cfg:
            continue
        if not isinstance(cfg[key], DictConfig):
            raise ConfigError(f"{prefix}{key} is a group of keys, not {cfg[key]!r}")
        check(cfg[key], kind, f"{prefix}{key}")
        cfg[key] = OmegaConf.merge(_typed(kind), cfg[key])
    loader = OmegaConf.select(cfg, "dataloader.train")
    if isinstance(loader, DictConfig):
        known = {item.name for item in fields(TrainLoader)}
        for name in known & set(loader):
            _check_value(loader, name, _items(TrainLoader)[name], f"{prefix}dataloader.train.{name}")


def check(node: DictConfig, kind: type, name: str) -> None:
    """Every key of ``node`` is a field of the dataclass ``kind``, and every value of its type; interpolations pass."""
    known = _items(kind)
    for key in map(str, node):
        if key not in known:
            raise ConfigError(
                f"{name}.{key}: unknown config key {key!r}{nearest(key, known)} ({name} has {', '.join(known)})"
            )
        _check_value(node, key, known[key], f"{name}.{key}")


def defaults(kind: type = Train) -> dict[str, Any]:
    """The defaults of a dataclass as plain dicts, for configs to start from."""
    values = OmegaConf.to_container(OmegaConf.structured(kind), enum_to_str=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def table(kind: type, prefix: str = "") -> str:
    """A markdown table: key, default, meaning."""
    rows = [f"| `{key}` | `{default}` | {meaning} |" for key, default, meaning in _rows(kind, prefix)]
    return "\n".join(["| key | default | meaning |", "|---|---|---|", *rows])


def write_tables(text: str) -> str:
    """``text`` with the tables between ``<!-- settings: NAME -->`` and ``<!-- end -->`` written anew."""
    kinds = {"train": Train, "dataloader": Dataloader, "dataloader.train": TrainLoader}

    def fresh(match: re.Match[str]) -> str:
        return f"{match[1]}\n{table(kinds[match[2]])}\n{match[3]}"

    return re.sub(r"(<!-- settings: ([\w.]+) -->)\n.*?(<!-- end -->)", fresh, text, flags=re.DOTALL)


@cache
def _items(kind: type) -> dict[str, tuple[Field, Any]]:
    hints = get_type_hints(kind)
    return {item.name: (item, hints[item.name]) for item in fields(kind)}


@cache
def _typed(kind: type) -> Any:
    return OmegaConf.structured(kind, flags={"allow_objects": True})


def _check_value(node: DictConfig, key: str, item: tuple[Field, Any], name: str) -> None:
    declared, hint = item
    if OmegaConf.is_interpolation(node, key):
        if is_dataclass(hint):
            raise ConfigError(f"{name} is a group of keys: let each of them be an interpolation, not all at once")
        return
    value = node[key]
    if is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, DictConfig):
            known = ", ".join(_items(hint))
            raise ConfigError(f"{name} is a group of keys ({known}); {value!r} would replace them all")
        check(value, hint, name)
        return
    kind = get_origin(hint) or hint
    if not _is_a(value, kind, hint):
        raise ConfigError(
            f"{name} is {_NAMES.get(hint) or _NAMES[kind]}; {_plain(value)!r}, of type {_type(value)}, is not"
        )
    limits: Mapping[str, Any] = declared.metadata
    choices = limits.get("choices")
    if choices and value not in choices:
        raise ConfigError(f"{name} is one of {', '.join(choices)}, not {value!r}{nearest(value, choices)}")
    if "least" in limits and value < limits["least"] or "most" in limits and value > limits["most"]:
        most = f" and at most {limits['most']}" if "most" in limits else ""
        raise ConfigError(f"{name} is at least {limits['least']}{most}, not {value!r}")


_NAMES = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "a text",
    list: "a list",
    list[str]: "a list of texts",
    dict: "a group of keys",
}


def _is_a(value: Any, kind: Any, hint: Any) -> bool:
    if kind is Any:
        return True
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind is list:
        texts = not isinstance(value, ListConfig) or hint != list[str] or all(isinstance(v, str) for v in _raw(value))
        return isinstance(value, ListConfig) and texts
    if kind is dict:
        return isinstance(value, DictConfig)
    return isinstance(value, (str, PathLike) if kind is str else kind)


def _raw(values: ListConfig) -> Iterator[Any]:
    """Items, an interpolation as its text."""
    for i in range(len(values)):
        yield values._get_node(i)._value() if OmegaConf.is_interpolation(values, i) else values[i]  # type: ignore[union-attr]


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def _type(value: Any) -> str:
    return type(_plain(value)).__name__


def _rows(kind: type, prefix: str) -> Iterator[tuple[str, Any, str]]:
    for name, (item, hint) in _items(kind).items():
        if is_dataclass(hint) and isinstance(hint, type):
            yield from _rows(hint, f"{prefix}{name}.")
        else:
            default = item.default_factory() if callable(item.default_factory) else item.default
            yield f"{prefix}{name}", default if default != "" else '""', item.metadata["meaning"]


if __name__ == "__main__":
    page = Path(sys.argv[1])
    write_text(page, write_tables(page.read_text(encoding="utf-8")))
