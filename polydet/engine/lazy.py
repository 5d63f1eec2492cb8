"""Config files as they are written: LazyConfig's, and the house's parts by an absolute name."""

import ast
import builtins
import contextlib
import difflib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from detectron2.config import LazyConfig
from omegaconf import DictConfig, ListConfig

from polydet.engine.errors import ConfigError
from polydet.engine.file_config import load_model_config
from polydet.engine.trust import read_yaml_config
from polydet.model_file import is_model_file

KEYS = ("model", "dataloader", "optimizer", "lr_multiplier", "train", "stages", "recipe")
_OURS = ("source", "labels")  # what loading adds, and what a model file has
HOUSE = "polydet.configs"
_LAZY = "detectron2._cfg_loader"  # the package that LazyConfig says its files are in
_READ = re.compile(r"\$\{\.*([A-Za-z_]\w*)")


def config_root() -> Path:
    """The folder ``configs/``: inside the installed package, else beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "_configs"
    return installed if installed.is_dir() else package.parent / "configs"


def read_config(path: str | os.PathLike[str]) -> DictConfig:
    """The dicts of a config file by name: of a LazyConfig, of the yaml that a run saves, of a model file.

    A ``.py`` file anywhere may import from the house's configs, ``from polydet.configs.common.train import train``,
    with what a relative import does in a config: the file is read anew, and its dicts are config nodes.

    Raises:
        ConfigError: a file that holds no config, or one that calls what a file may not call.
    """
    if Path(path).suffix != ".py":
        return load_model_config(path) if is_model_file(path) else read_yaml_config(path)
    with _house_imports():
        return LazyConfig.load(str(path))


def drop_helpers(cfg: DictConfig, path: str | os.PathLike[str]) -> None:
    """Leave only the keys of a config, and those that an interpolation reads.

    What a file imports beside them is a part that it took something from, and goes.

    Raises:
        ConfigError: a name that is nearly a key, or a helper variable that the file itself sets.
    """
    unread = [name for name in cfg if name not in KEYS + _OURS]
    if not unread:
        return
    if odd := [name for name in unread if not isinstance(name, str)]:
        raise ConfigError(f"{path}: {odd[0]!r} is no key of a config ({', '.join(KEYS)})")
    read = set(_reads(cfg))
    own = _assigned(Path(path)) if Path(path).suffix == ".py" else set()
    for name in map(str, unread):
        if name in read:
            continue
        if difflib.get_close_matches(name, KEYS, cutoff=0.75):
            raise ConfigError(f"{path}: unknown config key {name!r}{nearest(name, KEYS)}")
        if name in own:
            raise ConfigError(
                f"{path}: {name!r} is no key of a config ({', '.join(KEYS)}) and nothing reads it; "
                f"a helper variable begins with an underscore: _{name}"
            )
        del cfg[name]


def check_keys(cfg: DictConfig, known: Iterable[str], prefix: str = "") -> None:
    """Every key is known, or read by an interpolation of the config.

    Raises:
        ConfigError: naming the nearest key.
    """
    unread = [str(name) for name in cfg if name not in (*known, *_OURS)]
    for name in sorted(set(unread) - set(_reads(cfg))) if unread else ():
        raise ConfigError(f"unknown config key {prefix + name!r}, which nothing reads{nearest(name, known)}")


def nearest(name: str, known: Iterable[str]) -> str:
    """``; did you mean ...?`` or nothing."""
    close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def house_file(module: str) -> Path | None:
    """The config file that ``polydet.configs.a.b`` means; None for other modules."""
    return config_root().joinpath(*module.split(".")[2:]).with_suffix(".py") if module.startswith(f"{HOUSE}.") else None


@contextlib.contextmanager
def _house_imports() -> Iterator[None]:
    before = builtins.__import__

    def load(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
        package = (globals or {}).get("__package__") or ""
        if level or not package.startswith(_LAZY) or name.split(".")[:2] != HOUSE.split("."):
            return before(name, globals, locals, fromlist, level)
        file = house_file(name)
        if file is None or not fromlist:
            raise ImportError(f"import a config's parts by name: from {HOUSE}.common.train import train")
        if not file.is_file():
            known = {f.relative_to(config_root()).with_suffix("").as_posix() for f in config_root().rglob("*.py")}
            part = "/".join(name.split(".")[2:])
            raise ImportError(f"there is no config {part!r} in {config_root()}{nearest(part, known)}")
        beside = {"__file__": str(file), "__package__": package}  # LazyConfig's own import, relative to that file
        return builtins.__import__(file.stem, beside, None, fromlist, 1)

    builtins.__import__ = load
    try:
        yield
    finally:
        builtins.__import__ = before  # also LazyConfig's, which stays when a file raises


def _assigned(path: Path) -> set[str]:
    """Names that a file sets itself, rather than imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = (node for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))
    return {node.id for node in names}


def _reads(node: Any) -> Iterator[str]:
    """First names of the interpolations below a node."""
    keys: Any = list(node.keys()) if isinstance(node, DictConfig) else range(len(node))
    for key in keys:
        child = node._get_node(key)
        if isinstance(child, DictConfig | ListConfig) and not (child._is_none() or child._is_interpolation()):
            yield from _reads(child)
        elif isinstance(value := child._value(), str):
            yield from _READ.findall(value)
