"""Names and shapes of released files, read off the authors' modules, and checkpoints of them.

A line of `names/*.txt` is a pattern and a shape: `{a,b}` and `{0-5}` stand for each of the names. `@resnet50 PREFIX
tracked` is torchvision's network below a prefix, with (`tracked`) or without (`plain`) batch norm's counters.
"""

import itertools
import re
from pathlib import Path

import torch
import torchvision

HEADS = re.compile(r"(class_embed|bbox_embed|cls_branches|reg_branches)\.[1-5]\.")
NAMES = Path(__file__).parent / "names"
Shapes = dict[str, tuple[int, ...]]


def shapes_of(name: str) -> Shapes:
    """Every tensor of a released file."""
    shapes: Shapes = {}
    for line in (NAMES / f"{name}.txt").read_text().splitlines():
        pattern, *rest = line.split()
        if pattern.startswith("@"):
            shapes.update(torchvisions(pattern[1:], *rest))
        else:
            shape = () if rest[0] == "scalar" else tuple(int(n) for n in rest[0].split("x"))
            shapes.update(dict.fromkeys(expand(pattern), shape))
    return shapes


def torchvisions(name: str, prefix: str, kind: str) -> Shapes:
    """A network of torchvision without its classifier."""
    with torch.device("meta"):
        state = getattr(torchvision.models, name)().state_dict()
    kept = {k: v for k, v in state.items() if kind == "tracked" or "num_batches" not in k}
    return {prefix + k: tuple(v.shape) for k, v in kept.items() if not k.startswith("fc.")}


def expand(pattern: str) -> list[str]:
    """`a.{0-2}.{x,y}` to its six names."""
    parts = []
    for piece in re.split(r"(\{[^}]*\})", pattern):
        options = piece[1:-1].split(",") if piece.startswith("{") else [piece]
        parts.append([name for option in options for name in _range(option)])
    return ["".join(chosen) for chosen in itertools.product(*parts)]


def _range(option: str) -> list[str]:
    ends = re.fullmatch(r"(\d+)-(\d+)", option)
    return [str(i) for i in range(int(ends[1]), int(ends[2]) + 1)] if ends else [option]


def numbers_in(value: torch.Tensor) -> list[float]:
    """The different numbers of a tensor, which is likely to have one all over."""
    first = value.flatten()[:1]
    return (first if bool((value == first).all()) else value.unique()).tolist()


def write(name: str, path: Path, shared: bool = False) -> dict[str, float]:
    """A checkpoint of that layout; each tensor is one number all over, which is returned.

    A file of full size stays small, since a number is stored once. `shared`: the heads of all decoder layers are one
    module there, and so equal.
    """
    numbers: dict[str, float] = {}
    state = {}
    for index, (key, shape) in enumerate(sorted(shapes_of(name).items())):
        first = HEADS.sub(r"\1.0.", key) if shared else key
        numbers[key] = numbers.get(first, 1000.0 + index / 8)
        counter = key.endswith(("num_batches_tracked", "relative_position_index"))
        state[key] = torch.tensor(1 if counter else numbers[key]).expand(shape)
    torch.save({"model": state, "epoch": 1}, path)
    return numbers
