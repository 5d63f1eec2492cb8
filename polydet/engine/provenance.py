"""Which config file set which value."""

import ast
from functools import lru_cache
from pathlib import Path
from typing import Any

from polydet.engine.config import flatten
from polydet.engine.lazy import house_file, read_config


def origins(path: Path) -> dict[str, tuple[Any, Path]]:
    """Dotted key -> (value, the file that set it) for every leaf of a LazyConfig file.

    A value that a file imports and leaves alone belongs to the file it comes from; interpolations are followed by the
    reader, not here.
    """
    path = path.resolve()
    return {key: (value, _owner(path, key, value)) for key, value in _leaves(path).items()}


def _owner(path: Path, key: str, value: Any) -> Path:
    name, _, rest = key.partition(".")
    source = _imports(path).get(name)
    if source is None:
        return path
    file, imported = source
    origin = f"{imported}.{rest}" if rest else imported
    leaves = _leaves(file, imported)
    if origin in leaves and _same(leaves[origin], value):
        return _owner(file, origin, value)
    return path


def _same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and str(a) == str(b)


@lru_cache(maxsize=256)
def _leaves(path: Path, name: str = "") -> dict[str, Any]:
    if name:
        node = read_config(path)[name]
        return {f"{name}.{key}": value for key, value in flatten(node).items()}
    return flatten(read_config(path))


@lru_cache(maxsize=256)
def _imports(path: Path) -> dict[str, tuple[Path, str]]:
    """Local name -> (config file, name there) of the relative imports of a config file."""
    found: dict[str, tuple[Path, str]] = {}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and (house := house_file(node.module or "")) and not node.level:
            found.update({alias.asname or alias.name: (house, alias.name) for alias in node.names})
        elif isinstance(node, ast.ImportFrom) and node.level:
            folder = path.parent
            for _ in range(node.level - 1):
                folder = folder.parent
            file = folder.joinpath(*(node.module or "").split(".")).with_suffix(".py")
            for alias in node.names:
                found[alias.asname or alias.name] = (file, alias.name)
    return found
