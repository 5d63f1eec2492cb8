"""LazyConfig files, read strictly: a key that nothing would ever read is an error that names the nearest one."""

import copy
import inspect
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from detectron2.utils.registry import locate
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, Node, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from polydet.engine.errors import ConfigError
from polydet.engine.lazy import KEYS, check_keys, drop_helpers, nearest, read_config
from polydet.engine.recipe import resolve_recipe
from polydet.engine.settings import conform, fill
from polydet.engine.trust import ConfigDumper, objects_in, plain_config
from polydet.files import write_text

logger = logging.getLogger(__name__)

REQUIRED_KEYS = ("model", "dataloader", "optimizer", "lr_multiplier", "train")
DEFAULT_OUTPUT = "./output"
_OWN_NAMES = re.compile(r"(stages\.[^.]+\.)?dataloader\.(evaluators|groups)(?=\.|$)")  # below are the user's own names


def load_config(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> DictConfig:
    """Load a LazyConfig file (``.py``, or the ``config.yaml`` that a run saves), override it and check every call.

    Python is run; yaml and model files are data, see :mod:`polydet.engine.trust`.

    Args:
        path: config file.
        overrides: ``key=value`` (the key must exist, or be a parameter of the call it belongs to), ``+key=value``
            (adds a key where any may stand, as in keyword arguments), ``~key`` (deletes one; a setting gets its
            default).  Hydra's grammar for values.

    Returns:
        the config; where it says nothing of ``train.output_dir``, that is a folder of its own below ``./output``.

    Raises:
        ConfigError: no such file, an unknown key (with the nearest known one), a value of another type, or an
            argument that its ``_target_`` does not take.
    """
    if not Path(path).is_file():
        raise ConfigError(f"config file {str(path)!r} does not exist{_nearest_file(Path(path))}")
    cfg = read_config(path)
    drop_helpers(cfg, path)
    for _, part in _configs(cfg):
        fill(part)
    starts = _starts(cfg)
    if OmegaConf.select(cfg, "train.output_dir") == DEFAULT_OUTPUT:
        cfg.train.output_dir = f"{DEFAULT_OUTPUT}/{_own_name(Path(path))}"
    apply_overrides(cfg, overrides)
    recipe = resolve_recipe(cfg)
    _refuse_missing(cfg, "")
    _conform(cfg)
    check_calls(cfg)
    _note_source(cfg, path, overrides, starts)
    if recipe:
        cfg.source.recipe = recipe
    return cfg


def _configs(cfg: DictConfig) -> Iterator[tuple[str, DictConfig]]:
    """(prefix of its keys, config) of the config and of its stages."""
    yield "", cfg
    for name, stage in cfg.get("stages", {}).items():
        if not isinstance(stage, DictConfig):
            raise ConfigError(f"stages.{name} is a config or dict(run=...), not {stage!r}")
        yield f"stages.{name}.", stage


def _conform(cfg: DictConfig) -> None:
    """Every key of the config and of its stages is one of a config's, and every setting has its type."""
    for prefix, part in _configs(cfg):
        check_keys(part, ("run",) if prefix and "run" in part else KEYS, prefix)
        conform(part, prefix)


def _refuse_missing(node: Any, prefix: str) -> None:
    for name, child in _items(node):
        key = _join(prefix, name)
        if isinstance(child, DictConfig | ListConfig) and not (child._is_none() or child._is_interpolation()):
            _refuse_missing(child, key)
        elif isinstance(child, Node) and child._is_missing():
            raise ConfigError(f"{key} is ???, which stands for a value that is still to be given: {key}=VALUE")


def _note_source(cfg: DictConfig, path: Any, overrides: Sequence[str], starts: dict[str, str]) -> None:
    """Where the config is from, and which weights its file starts from unless an override named others.

    A run's ``config.yaml`` keeps its first file, and the overrides of all loads; ``loaded`` is this load alone.
    """
    old = cfg.get("source") or {}
    named = {key for override in _parsed(overrides) for key in _named(override)}
    starts = {key: start for key, start in starts.items() if key not in named}
    cfg.source = {
        **old,
        "file": old.get("file", str(path)),
        "overrides": [*old.get("overrides", []), *overrides],
        "loaded": {"file": str(path), "overrides": list(overrides)},
        "start": starts.pop("train.init_checkpoint", None),
        "stage_starts": {key.split(".")[1]: start for key, start in starts.items()},
    }


def _starts(cfg: DictConfig) -> dict[str, str]:
    """Key -> value of every ``train.init_checkpoint``."""
    keys = ["train.init_checkpoint", *(f"stages.{name}.train.init_checkpoint" for name in cfg.get("stages", {}))]
    return {key: str(OmegaConf.select(cfg, key) or "") for key in keys}


def _named(override: Override) -> Iterator[str]:
    """Dotted keys of the values that an override sets."""

    def leaves(key: str, value: Any) -> Iterator[str]:
        if isinstance(value, Mapping):
            for name, item in value.items():
                yield from leaves(f"{key}.{name}", item)
        else:
            yield key

    if not override.is_delete():
        yield from leaves(override.key_or_group, override.value())


def _own_name(path: Path) -> str:
    """Path below the innermost folder ``configs``, without its ending; the file's name elsewhere."""
    parts = path.absolute().with_suffix("").parts
    below = parts[::-1].index("configs") if "configs" in parts[:-1] else 1
    return "/".join(parts[-below:])


def apply_overrides(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Override ``cfg`` in place; see :func:`load_config` for grammar and errors."""
    for override in _parsed(overrides):
        try:
            _apply(cfg, override)
        except OmegaConfBaseException as error:  # of a config that is typed already, or a value that cannot stand there
            raise ConfigError(f"override {override.input_line!r}: {str(error).splitlines()[0]}") from error


def _apply(cfg: DictConfig, override: Override) -> None:
    key = override.key_or_group
    if not key:
        raise ConfigError(f"override {override.input_line!r} names no key; write key=value")
    if not override.is_delete() and override.value() == "???":
        raise ConfigError(f"override {override.input_line!r}: ??? stands for a value that is to be given; give it")
    if override.is_delete():
        _delete(cfg, key)
    elif override.is_add() or override.is_force_add():
        OmegaConf.update(cfg, key, override.value(), merge=True, force_add=True)
    else:
        _set(cfg, key, override.value())


def _parsed(overrides: Sequence[str]) -> list[Override]:
    try:
        return OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise ConfigError(f"cannot parse the overrides {list(overrides)}: {error}") from error


def check_calls(cfg: Any) -> None:
    """Every node with a ``_target_`` has only arguments that its target takes.

    Raises:
        ConfigError: naming the key, the target and the nearest argument.
    """
    for key, node in _calls(cfg, ""):
        accepted = _parameters(_target(node))
        if accepted is None:
            continue
        for name in node:
            if name not in accepted and name != "_target_":
                raise ConfigError(
                    f"{_join(key, name)}: {_target_name(node)} has no argument {name!r}{nearest(str(name), accepted)}"
                )


def save_config(cfg: DictConfig, path: str | os.PathLike[str]) -> None:
    """Write ``cfg`` as yaml that :func:`load_config` reads back; whole or not at all.

    Where a Python config holds an object that is no value (a class as an argument), the log says so: such yaml is for
    reading, and the Python config for opening.
    """
    content = plain_config(cfg)
    if objects := objects_in(content):
        logger.warning("%s is for reading only, a file cannot say %s", path, ", ".join(objects))
    text = yaml.dump(content, Dumper=ConfigDumper, default_flow_style=None, allow_unicode=True, width=9999)
    write_text(path, text)


def stage_config(cfg: DictConfig, name: str) -> DictConfig:
    """A copy of the config of one stage, as a config of its own: ``${train.max_iter}`` in it is its own key.

    Raises:
        ConfigError: no such stage, one that only runs a function, or an interpolation that only the config around the
            stages could resolve.
    """
    known = [str(key) for key, stage in cfg.get("stages", {}).items() if "run" not in stage]
    if name not in known:
        raise ConfigError(f"no stage that trains is named {name!r}; the config has {', '.join(known) or 'no stages'}")
    stage = copy.deepcopy(cfg.stages[name])
    stage._set_parent(None)
    stage._set_flag("allow_objects", True)  # it was the outer config's
    lost = {key for key, _ in _unresolved(cfg.stages[name], "")}
    for key, text in _unresolved(stage, ""):
        if key not in lost:
            raise ConfigError(
                f"stages.{name}.{key}: {text} leads out of the stage, whose interpolations start at its own config "
                f"(${{train.max_iter}} is stages.{name}.train.max_iter); give the stage that key, or write the value"
            )
    return stage


def _unresolved(node: Any, prefix: str) -> Iterator[tuple[str, str]]:
    """(key, text) of interpolations that fail."""
    keys: Any = list(node.keys()) if isinstance(node, DictConfig) and len(node) else range(len(node))
    for key in keys:
        if OmegaConf.is_interpolation(node, key):
            try:
                node[key]
            except OmegaConfBaseException:
                yield _join(prefix, key), str(node._get_node(key)._value())
        elif not OmegaConf.is_missing(node, key) and isinstance(node[key], DictConfig | ListConfig):
            yield from _unresolved(node[key], _join(prefix, key))


def flatten(cfg: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> leaf value, interpolations left as they are written."""
    leaves: dict[str, Any] = {}
    for name, node in _items(cfg):
        key = _join(prefix, name)
        if isinstance(node, DictConfig | ListConfig) and len(node):
            leaves.update(flatten(node, key))
        else:
            leaves[key] = node
    return leaves


def _items(node: Any) -> Iterator[tuple[str, Any]]:
    keys: Any = list(node.keys()) if isinstance(node, DictConfig) else range(len(node))
    for key in keys:
        raw = OmegaConf.is_interpolation(node, key) or OmegaConf.is_missing(node, key)
        yield str(key), node._get_node(key) if raw else node[key]


def _calls(node: Any, prefix: str) -> Iterator[tuple[str, DictConfig]]:
    if isinstance(node, DictConfig) and "_target_" in node:
        yield prefix, node
    if isinstance(node, DictConfig | ListConfig):
        for name, child in _items(node):
            yield from _calls(child, _join(prefix, name))


def _join(prefix: str, name: Any) -> str:
    return f"{prefix}.{name}" if prefix else str(name)


def _target(node: DictConfig) -> Any:
    target = node._target_
    if isinstance(target, str):
        try:
            return locate(target)
        except ImportError as error:
            raise ConfigError(f"_target_ {target!r} cannot be imported: {error}") from error
    return target


def _target_name(node: DictConfig) -> str:
    target = node._target_
    return target if isinstance(target, str) else getattr(target, "__qualname__", str(target))


@cache
def _signature(target: Any) -> inspect.Signature | None:
    try:
        return inspect.signature(target)
    except (TypeError, ValueError):
        return None


def _parameters(target: Any) -> set[str] | None:
    """Names of the target's parameters; None when it takes anything (``**kwargs``) or cannot be inspected."""
    if isinstance(target, Mapping | DictConfig):
        return None
    signature = _signature(target)
    if signature is None or any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
        # Detectron2's @configurable hides the arguments of __init__ behind **kwargs
        wrapped = getattr(getattr(target, "__init__", None), "__wrapped__", None)
        signature = _signature(wrapped) if wrapped is not None else None
        if signature is None or any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
            return None
    return {name for name in signature.parameters if name != "self"}


def _set(cfg: DictConfig, key: str, value: Any) -> None:
    if (own := _OWN_NAMES.match(key)) and own[0] != key:
        if isinstance(OmegaConf.select(cfg, key.rpartition(".")[0]), str | ListConfig):
            raise ConfigError(f"{key}: {key.rpartition('.')[0]} is a value, not a group of keys: give it as a whole")
        OmegaConf.update(cfg, key, value, merge=False, force_add=True)
        return
    parent, name = _parent(cfg, key)
    if isinstance(parent, ListConfig):
        parent[int(name)] = value
        return
    if name not in parent and not _is_argument(parent, name) and not _is_free_mapping(cfg, key.rpartition(".")[0]):
        raise ConfigError(_unknown(cfg, key))
    current = None if name not in parent or OmegaConf.is_interpolation(parent, name) else parent[name]
    whole = isinstance(value, dict) and _is_free_mapping(cfg, key)
    if isinstance(value, dict) and isinstance(current, DictConfig) and "_target_" not in value and not whole:
        for sub, item in value.items():
            _set(cfg, f"{key}.{sub}", item)
        return
    if isinstance(current, bool | int | float) and isinstance(value, str) and not value.startswith("${"):
        raise ConfigError(f"{key} is {current!r}, a {type(current).__name__}; {value!r} is not one")
    if isinstance(current, DictConfig) and value is not None and not isinstance(value, dict):
        raise ConfigError(
            f"{key} is a group of keys ({', '.join(map(str, current))}); {value!r} would replace them all"
        )
    OmegaConf.update(parent, name, value, merge=False, force_add=True)


def _delete(cfg: DictConfig, key: str) -> None:
    parent, name = _parent(cfg, key)
    if isinstance(parent, ListConfig):
        del parent[int(name)]
    elif name in parent:
        del parent[name]
    else:
        raise ConfigError(_unknown(cfg, key))


def _parent(cfg: DictConfig, key: str) -> tuple[Any, str]:
    *path, name = key.split(".")
    node: Any = cfg
    for i, part in enumerate(path):
        try:
            node = node[int(part)] if isinstance(node, ListConfig) else node[part]
        except (KeyError, ValueError, IndexError, TypeError):
            node = None
        except Exception as error:
            raise ConfigError(f"{'.'.join(path[: i + 1])}: {error}") from error
        if not isinstance(node, DictConfig | ListConfig):
            raise ConfigError(_unknown(cfg, key))
    if isinstance(node, ListConfig) and not (name.isdigit() and int(name) < len(node)):
        raise ConfigError(f"{key}: {'.'.join(path)} is a list of {len(node)} items")
    return node, name


def _is_argument(node: DictConfig, name: str) -> bool:
    if "_target_" not in node:
        return False
    accepted = _parameters(_target(node))
    return accepted is None or name in accepted


def _is_free_mapping(cfg: DictConfig, key: str) -> bool:
    """Whether the key maps names of the user's own: ``dataloader.evaluators``, or an argument like ``lr_factors``."""
    if _OWN_NAMES.fullmatch(key):
        return True
    *path, name = key.split(".")
    node = OmegaConf.select(cfg, ".".join(path)) if path else None
    if not isinstance(node, DictConfig) or "_target_" not in node:
        return False
    signature = _signature(_target(node))
    parameter = signature.parameters.get(name) if signature else None
    return parameter is not None and "Mapping[str, float]" in str(parameter.annotation)


def _unknown(cfg: DictConfig, key: str) -> str:
    known: set[str] = set()
    for leaf in flatten(cfg):
        parts = leaf.split(".")
        known.update(".".join(parts[:i]) for i in range(1, len(parts) + 1))
    for prefix, node in _calls(cfg, ""):
        known.update(_join(prefix, name) for name in _parameters(_target(node)) or ())
    return f"unknown config key {key!r}{nearest(key, known)}"


def _nearest_file(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f": there is no folder {str(folder)!r}"
    return nearest(path.name, {p.name for p in folder.glob("*.py")})
