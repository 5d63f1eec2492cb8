"""What a config builds, part by part: what each does, whose idea it is, how large it is and whether it trains."""

import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from detectron2.config import instantiate
from omegaconf import DictConfig
from torch import nn

from polydet.engine.made_up import make_up_words
from polydet.engine.published import skip_published_weights
from polydet.engine.trust import HOUSE
from polydet.files import whole_file

_SOURCE = re.compile(
    r"\s*\(([^()]*(?:et al\.|eqs?\. |sec\. |section |tables? \d|algorithm \d|figure \d|arXiv)[^()]*)\)"
)
_NAMED = re.compile(r"\s*\(([A-Z][^()]*(?:DETR|DINO|RetinaNet|ScaleDet|Detic|METR|CenterNet)[^()]{0,25})\)")


@dataclass(frozen=True)
class Part:
    """A module of a model.

    Attributes:
        path: its name in the model, ``""`` for the model itself; ``depth`` its number of parents that are listed.
        kind: its class; ``repeats`` how many siblings of that class stand under one line.
        does: the first sentence of the class's docstring. source: paper and equation, as the docstring names them.
        parameters, trained: numbers of parameters, of all repeats.
    """

    path: str
    depth: int
    kind: str
    repeats: int
    does: str
    source: str
    parameters: int
    trained: int

    @property
    def state(self) -> str:
        """``trained``, ``frozen``, ``part frozen``, or ``no weights``."""
        if not self.parameters:
            return "no weights"
        if self.trained in (0, self.parameters):
            return "trained" if self.trained else "frozen"
        return "part frozen"


def build_without_weights(cfg: DictConfig) -> nn.Module:
    """The model of a config with shapes but no values: nothing is downloaded and no memory is taken."""
    cfg = cfg.copy()
    skip_published_weights(cfg.model)
    make_up_words(cfg.model)
    with torch.device("meta"):
        return instantiate(cfg.model)


def parts_of(model: nn.Module, depth: int = 3) -> list[Part]:
    """The parts of a model, parents first.

    Args:
        depth: how deep to look below the model. Parts of other libraries are listed, their insides are not.
    """
    return list(_walk(model, "", 0, depth))


def _walk(module: nn.Module, path: str, level: int, depth: int, repeats: int = 1) -> Iterator[Part]:
    yield _part(module, path, level, repeats)
    if level >= depth or not _is_ours(module) and not isinstance(module, nn.ModuleList):
        return
    children = [(name, child) for name, child in module.named_children() if _worth_a_line(child)]
    while children:
        name, child = children.pop(0)
        same = [name]
        while name.isdigit() and children and children[0][0].isdigit() and type(children[0][1]) is type(child):
            same.append(children.pop(0)[0])
        label = f"{same[0]}..{same[-1]}" if len(same) > 1 else name
        own = f"{path}.{label}" if path else label
        if isinstance(child, nn.ModuleList):  # a list is no part of its own
            yield from _list(child, own, level, depth)
        else:
            yield from _walk(child, own, level + 1, depth, len(same))


def _list(modules: nn.ModuleList, path: str, level: int, depth: int) -> Iterator[Part]:
    children = [child for child in modules if _worth_a_line(child)]
    while children:
        first = children[0]
        count = next((i for i, child in enumerate(children) if type(child) is not type(first)), len(children))
        yield from _walk(first, path, level + 1, depth, count)
        children = children[count:]


def _worth_a_line(module: nn.Module) -> bool:
    """Ours, or a large part of another library: a single layer of torch's is no part."""
    if _is_ours(module) or isinstance(module, nn.ModuleList | nn.MultiheadAttention):
        return True
    return any(p.numel() >= 4096 for p in module.parameters()) and not type(module).__module__.startswith("torch.")


def _is_ours(module: nn.Module) -> bool:
    return type(module).__module__.split(".")[0] in HOUSE


def _part(module: nn.Module, path: str, level: int, repeats: int) -> Part:
    sizes = {id(p): (p.numel(), p.requires_grad) for p in module.parameters()}
    total = sum(size for size, _ in sizes.values()) * repeats
    trained = sum(size for size, learns in sizes.values() if learns) * repeats
    does, source = _said_of(type(module))
    return Part(path, level, type(module).__name__, repeats, does, source, total, trained)


def _said_of(kind: type) -> tuple[str, str]:
    """First sentence of a class's docstring without its references, and the references of class or file."""
    if kind.__module__.split(".")[0] not in HOUSE:
        return f"{kind.__module__.split('.')[0]}'s {kind.__name__}", ""
    text = inspect.cleandoc(kind.__doc__ or "").split("\n\nArgs:")[0]
    file = inspect.cleandoc(sys.modules[kind.__module__].__doc__ or "")
    found = [*_SOURCE.findall(text), *_NAMED.findall(text)] or [*_SOURCE.findall(file), *_NAMED.findall(file)]
    source = "; ".join(dict.fromkeys(" ".join(reference.split()) for reference in found[:2]))
    first = " ".join(text.split("\n\n")[0].split())
    return re.split(r"(?<=[a-z\])`])\. ", _SOURCE.sub("", _NAMED.sub("", first)))[0].strip(" ."), source


def table(parts: list[Part]) -> list[list[str]]:
    """Rows of text: part, class, what it does, source, parameters in millions, state."""
    rows = []
    for part in parts:
        name = part.path.rsplit(".", 1)[-1] if part.depth else "model"
        kind = part.kind + (f" x{part.repeats}" if part.repeats > 1 else "")
        size = f"{part.parameters / 1e6:.2f}" if part.parameters else ""
        rows.append(["  " * part.depth + name, kind, part.does, part.source, size, part.state])
    return rows


def draw(parts: list[Part], title: str, path: str | Path) -> None:
    """The same as a picture: a line a part, its share of the parameters as a bar, trained or frozen by colour.

    Raises:
        OSError: see :func:`polydet.files.whole_file`.
    """
    import matplotlib.pyplot as plt  # slow to import, and only pictures need it

    colours = {"trained": "#2a6f97", "part frozen": "#89a8b8", "frozen": "#b5b5b5", "no weights": "#e6e6e6"}
    most = max(part.parameters for part in parts) or 1
    figure, axes = plt.subplots(figsize=(16, 0.3 * len(parts) + 1), dpi=70)
    for row, part in enumerate(parts):
        name, kind, does, source, size, _ = table([part])[0]
        axes.barh(row, 0.12 * part.parameters / most, left=0.88, height=0.62, color=colours[part.state])
        axes.text(0.012 * part.depth, row, name.strip(), va="center", size=9, weight="bold" if part.depth < 2 else None)
        axes.text(0.13, row, kind, va="center", size=8.5, family="monospace", color="#333333")
        said = does if not source else f"{does}  [{source}]"
        axes.text(0.33, row, said if len(said) < 95 else said[:92] + "...", va="center", size=8, color="#222222")
        axes.text(0.875, row, f"{size} M" if size else "", va="center", ha="right", size=8)
    for state, colour in colours.items():
        axes.barh(-5, 0, color=colour, label=state)
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=4, frameon=False, fontsize=8)
    axes.set(xlim=(0, 1), ylim=(len(parts) - 0.4, -0.6))
    axes.axis("off")
    axes.set_title(title, loc="left", size=11, weight="bold")
    with whole_file(Path(path)) as file:
        figure.savefig(file, format=Path(path).suffix.lstrip(".") or "png", bbox_inches="tight")
    plt.close(figure)
