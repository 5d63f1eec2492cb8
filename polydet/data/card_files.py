"""Cards in files: a user's own dataset is one small YAML file."""

from __future__ import annotations

import difflib
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from polydet.data.card import DatasetCard, add_finder, datasets_root
from polydet.data.errors import DatasetError
from polydet.files import write_text

__all__ = ["card_folders", "find_card_file", "load_card_file", "save_card_file"]

_FIELDS = {field.name for field in fields(DatasetCard)}


def card_folders() -> list[Path]:
    """Where card files are looked for: the folders in POLYDET_CARDS, then `cards` in the datasets folder."""
    given = [Path(folder) for folder in os.environ.get("POLYDET_CARDS", "").split(os.pathsep) if folder]
    return [*given, datasets_root() / "cards"]


def load_card_file(path: Path) -> DatasetCard:
    """A card from YAML: the fields of `DatasetCard`, of which `json_file` and `image_root` are needed.

    The name is by default the file's. Raises DatasetError naming the file and the key.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"cannot be read: {error}", file=path) from error
    except yaml.YAMLError as error:
        raise DatasetError(f"is not valid YAML ({error})", file=path) from error
    if not isinstance(content, dict):
        raise DatasetError("is not a mapping of a card's fields", file=path, remedy=f"fields: {sorted(_FIELDS)}")
    content = {"name": path.stem, **content}
    for key in content:
        if key not in _FIELDS:
            near = difflib.get_close_matches(str(key), _FIELDS, n=1)
            raise DatasetError(f"has the unknown key {key!r}", file=path, remedy=f"did you mean {near}?")
    for key in ("json_file", "image_root"):
        if key not in content:
            raise DatasetError(f"lacks {key!r}", file=path)
    try:
        given: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in content.items()}
        return DatasetCard(**given)
    except (DatasetError, TypeError, AttributeError) as error:
        raise DatasetError(f"is not a valid card: {error}", file=path) from error


def save_card_file(card: DatasetCard, path: Path) -> None:
    """Write a card as YAML; fields at their default are left out."""
    content: dict[str, Any] = {}
    for field in fields(DatasetCard):
        value = getattr(card, field.name)
        default = DatasetCard.__dataclass_fields__[field.name].default
        if value != default and value not in ({}, ()):
            content[field.name] = list(value) if isinstance(value, tuple) else value
    write_text(path, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def find_card_file(name: str) -> DatasetCard | None:
    """The card of that name in a card folder; None if there is none."""
    for folder in card_folders():
        path = folder / f"{name}.yaml"
        if "/" not in name and path.is_file():
            card = load_card_file(path)
            if card.name != name:
                raise DatasetError(f"holds a card named {card.name!r}", file=path, remedy="name file and card alike")
            return card
    return None


add_finder(find_card_file)
