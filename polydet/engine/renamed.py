"""Checkpoints of earlier versions: tensors by the names that the model has for them now."""

from collections.abc import Mapping
from typing import TypeVar

from torch import nn

_Value = TypeVar("_Value")


def renamed_state(state: Mapping[str, _Value], model: nn.Module) -> dict[str, _Value]:
    """The state dict with the model's ``renamed`` prefixes (earlier -> now) in place; all else as it is."""
    renamed: Mapping[str, str] = getattr(model, "renamed", {})
    found = {}
    for key, value in state.items():
        earlier = next((prefix for prefix in renamed if key.startswith(prefix)), "")
        found[renamed[earlier] + key.removeprefix(earlier) if earlier else key] = value
    return found
