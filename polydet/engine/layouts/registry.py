"""Layouts of released files: how each is recognised and what its tensors are called here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

StateDict = dict[str, Tensor]


@dataclass
class Converted:
    """A state dict in the names of a model.

    Attributes:
        state: tensors by the model's names; what no rule knows keeps its name, so that the ledger lists it.
        left_out: ``{what it is: keys in the file}`` for what the model has no use for by design.
        row_names: what each row of the class-wise tensors is called, in order; an empty name is a row without a class.
            None: rows are taken as they are.
        covers: prefixes of the model that such a file is of; all of it where empty (a backbone's file covers only it).
    """

    state: StateDict
    left_out: dict[str, list[str]] = field(default_factory=dict)
    row_names: Sequence[str] | None = None
    covers: Sequence[str] = ()


@dataclass(frozen=True)
class Layout:
    """One way of naming.

    Attributes:
        name: for logs and errors, e.g. ``DETR family, detrex``.
        recognise: whether a state dict is named so; looks at names and shapes only.
        fits: whether ``convert`` knows the names of this model.
        convert: the state dict in the names of the model. Raises ValueError for a model that is built otherwise than
            the file's (strides, channel order), naming the config key.
        heed_name: looks at what only the file's name says of it, and raises as ``convert`` does; None: nothing.
    """

    name: str
    recognise: Callable[[Mapping[str, Tensor]], bool]
    fits: Callable[[nn.Module], bool]
    convert: Callable[[StateDict, nn.Module], Converted]
    heed_name: Callable[[str, nn.Module], None] | None = None


_LAYOUTS: dict[str, Layout] = {}


def register_layout(layout: Layout) -> Layout:
    """Add a layout; papers call it where they are imported, so that whoever has their model has their layouts.

    Raises:
        ValueError: the name is taken.
    """
    if layout.name in _LAYOUTS:
        raise ValueError(f"a layout named {layout.name!r} is registered already")
    _LAYOUTS[layout.name] = layout
    return layout


def list_layouts() -> list[str]:
    """Names of the layouts that are known so far."""
    return sorted(_LAYOUTS)


def find_layout(state: Mapping[str, Tensor], model: nn.Module) -> Layout | None:
    """The layout that a state dict has; None for one in the model's own names, or in unknown ones.

    Raises:
        ValueError: a known layout of another kind of model.
    """
    own = model.state_dict().keys()
    if sum(key in own for key in state) > 0.9 * len(own):
        return None
    recognised = [layout for layout in _LAYOUTS.values() if layout.recognise(state)]
    fitting = [layout for layout in recognised if layout.fits(model)]
    if recognised and not fitting:
        raise ValueError(
            f"the file is of {' or '.join(layout.name for layout in recognised)}, whose weights a "
            f"{type(model).__name__} cannot take"
        )
    return fitting[0] if fitting else None
