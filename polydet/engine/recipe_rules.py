"""Rules of a recipe: one function for each quantity that follows from the data and the machine.

A rule takes the `Facts` and gives (value, reason).  Sizes are pixels of the network's input.  What was measured of them
stands in ``docs/own_data.md``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from polydet.backbones.pretrained import PACKAGES
from polydet.data import DataStatistics

Rule = Callable[["Facts"], tuple[Any, str]]
RULES: dict[str, Rule] = {}
PARTS: set[str] = set()  # quantities that the shapes of weights follow from
RELEASED = "as in the weights of train.init_checkpoint"
PAPER_LABELS = 2249  # joint labels of ScaleDet's training sets, which its lambda = 10 is for


@dataclass
class Facts:
    """What rules may look at.

    Attributes:
        data: of the training cards.
        speed: ``fast`` (two CPU cores, minutes) or ``gpu`` (one GPU, an hour).
        base: the config's own ``batch``, ``lr`` for it, and ``visits`` (images shown in a training) at this speed.
        start: what training starts from: ``""`` (the backbone's own weights), ``own`` (a model whose parts are in
            ``chosen``), or ``released`` (a published model, whose own quantities ``base["released"]`` holds).
        chosen: quantities that are given by the config or an override, and those that were decided.
        reasons: of those that were decided, in the order of decision.
    """

    data: DataStatistics
    speed: str
    base: Mapping[str, Any]
    start: str = ""
    chosen: dict[str, Any] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def get(self, quantity: str) -> Any:
        """The value of a quantity, decided now if it is not known yet."""
        if quantity not in self.chosen:
            published = self.base["released"] if self.released else {}
            found = (published[quantity], RELEASED) if quantity in published else RULES[quantity](self)
            self.chosen[quantity], self.reasons[quantity] = found
        return self.chosen[quantity]

    @property
    def released(self) -> bool:
        """Whether parts must have the published size."""
        return self.start == "released"

    @property
    def fast(self) -> bool:
        """Whether minutes on a CPU are all there is."""
        return self.speed == "fast"

    def sides(self) -> np.ndarray:
        """Width and height of every box at the training size, [m, 2]."""
        return self.data.sides(self.get("short"), self.get("max_size"))

    def small_side(self) -> float:
        """Side of a square as large as a small box: 5 % of the boxes are smaller."""
        return float(np.quantile(np.sqrt(self.sides().prod(1)), 0.05))


def rule(function: Rule) -> Rule:
    """Make a function the rule of the quantity that it is named after."""
    RULES[function.__name__] = function
    return function


def part(function: Rule) -> Rule:
    """A rule of a quantity that the shapes or the meaning of weights follow from."""
    PARTS.add(function.__name__)
    return rule(function)


# images ---------------------------------------------------------------------------------------------------------------


@rule
def short(facts: Facts) -> tuple[int, str]:
    """Short side: the smallest at which small boxes are still seen; images are hardly enlarged for it."""
    ladder, least = ((192, 240, 320), 20.0) if facts.fast else ((480, 640, 800), 32.0)
    own = float(np.median(facts.data.image_sizes.min(1)))
    for size in ladder:
        boxes = facts.data.sides(size, round(size * 5 / 3))
        side = float(np.quantile(np.sqrt(boxes.prod(1)), 0.05))
        if side >= least:
            return size, f"small boxes are {side:.0f} px there, {least:.0f} are enough"
        if size >= 1.25 * own:
            return size, f"the images are {own:.0f} px themselves"
    return ladder[-1], f"small boxes are {side:.0f} px there; larger images cost too much at speed={facts.speed}"


@rule
def max_size(facts: Facts) -> tuple[int, str]:
    """Long side."""
    return round(facts.get("short") * 5 / 3), "5/3 of the short side"


# pyramid --------------------------------------------------------------------------------------------------------------


@part
def finest(facts: Facts) -> tuple[int, str]:
    """Finest level, by its exponent of 2: small boxes span five of its cells, as far as the backbone has it."""
    side = facts.small_side()
    level = int(np.clip(math.floor(math.log2(side / 5)), 2, 3))
    return level, f"small boxes are {side:.0f} px, {side / 2**level:.0f} cells of stride {2**level}"


@part
def coarsest(facts: Facts) -> tuple[int, str]:
    """Coarsest level."""
    largest = float(np.quantile(facts.sides().max(1), 0.95))
    level = 7 if largest >= 512 else 6
    return level, f"large boxes are {largest:.0f} px long"


@part
def levels(facts: Facts) -> tuple[list[str], str]:
    """Names of the pyramid's levels."""
    return [f"p{k}" for k in _exponents(facts)], "finest to coarsest"


@part
def num_levels(facts: Facts) -> tuple[int, str]:
    """How many levels."""
    return len(_exponents(facts)), "finest to coarsest"


@part
def strides(facts: Facts) -> tuple[list[int], str]:
    """Pixels between cells of each level."""
    return [2**k for k in _exponents(facts)], "of the levels"


@part
def body_levels(facts: Facts) -> tuple[list[str], str]:
    """Maps of the backbone that the pyramid reads."""
    return [f"res{k}" for k in range(facts.get("finest"), 6)], "from the finest level on"


@part
def roi_levels(facts: Facts) -> tuple[list[str], str]:
    """Levels that regions are pooled from."""
    return [f"p{k}" for k in range(facts.get("finest"), 6)], "those that the backbone has"


@part
def roi_strides(facts: Facts) -> tuple[list[int], str]:
    """Their strides."""
    return [2**k for k in range(facts.get("finest"), 6)], "of the levels"


@part
def roi_scales(facts: Facts) -> tuple[list[float], str]:
    """One over their strides."""
    return [1 / 2**k for k in range(facts.get("finest"), 6)], "of the levels"


def _exponents(facts: Facts) -> range:
    return range(facts.get("finest"), facts.get("coarsest") + 1)


# what a level looks for -----------------------------------------------------------------------------------------------


@rule
def sizes_of_interest(facts: Facts) -> tuple[list[list[float]], str]:
    """CenterNet2's ranges of half a box's diagonal for each level: 4 to 10 strides, open at both ends."""
    ranges = [[4.0 * s, 10.0 * s] for s in facts.get("strides")]
    ranges[0][0], ranges[-1][1] = 0.0, 1e6
    half = np.quantile(np.hypot(*facts.sides().T) / 2, [0.05, 0.5, 0.95])
    return ranges, f"half diagonals are {half[0]:.0f} to {half[2]:.0f} px, {half[1]:.0f} in the middle"


@rule
def box_bias(facts: Facts) -> tuple[float, str]:
    """Distance from a cell to the sides of its box at the start, in strides of the level that the box belongs to."""
    sides = facts.sides()
    half = np.hypot(*sides.T) / 2
    strides = np.asarray(facts.get("strides"), np.float64)
    low, high = np.asarray(facts.get("sizes_of_interest"), np.float64).T
    of_interest = (half[:, None] >= low) & (half[:, None] <= high)
    distances = (sides.mean(1) / 2)[:, None] / strides
    value = float(np.median(distances[of_interest])) if of_interest.any() else 8.0
    return round(value, 1), "median over boxes and the levels that look for them"


@rule
def anchor_sizes(facts: Facts) -> tuple[list[list[float]], str]:
    """One size for each level, doubling; the finest level's fits small boxes."""
    side = facts.small_side()
    stride = facts.get("strides")[0]
    first = float(np.clip(2 ** (round(2 * math.log2(side)) / 2), 4 * stride, 8 * stride))
    return [[round(first * 2**i, 1)] for i in range(facts.get("num_levels"))], f"small boxes are {side:.0f} px"


@rule
def anchor_octaves(facts: Facts) -> tuple[list[list[float]], str]:
    """RetinaNet's three sizes an octave for each level."""
    sizes, reason = anchor_sizes(facts)
    return [[round(s * 2 ** (i / 3), 1) for i in range(3)] for [s] in sizes], reason


# width and start ------------------------------------------------------------------------------------------------------


def _by_speed(name: str, fast: Any, gpu: Any, of_model: bool = True) -> None:
    """A quantity that only the speed decides; a part of the model has the size ``gpu`` for released weights too."""
    if of_model:
        PARTS.add(name)
    RULES[name] = lambda facts: (
        (gpu, RELEASED) if of_model and facts.released else (fast if facts.fast else gpu, f"speed={facts.speed}")
    )


_by_speed("backbone", "tf_efficientnet_lite0", "resnet50.tv_in1k")
_by_speed("channels", 64, 256)
_by_speed("dim", 128, 256)
_by_speed("noised_queries", 30, 100, of_model=False)
_by_speed("tower_convs", 1, 4)
_by_speed("fc_dims", [256, 256], [1024, 1024])
_by_speed("pooler", 5, 7)
_by_speed("layers", 3, 6)
_by_speed("ffn_dim", 256, 2048)
_by_speed("workers", 1, 4, of_model=False)
_by_speed("precision", "float32", "bfloat16", of_model=False)


@rule
def weights(facts: Facts) -> tuple[str | None, str]:
    """ImageNet weights of the backbone."""
    if facts.start:
        return None, "train.init_checkpoint brings them"
    name = facts.get("backbone")
    return (f"package:{name}", "ships as a package") if name in PACKAGES else ("timm", "timm's own")


@part
def pixel_mean(facts: Facts) -> tuple[list[float], str]:
    """Mean of the images that the weights are for."""
    lite = facts.get("backbone") in PACKAGES
    return ([127.0] * 3 if lite else [123.675, 116.28, 103.53]), f"of {facts.get('backbone')}"


@part
def pixel_std(facts: Facts) -> tuple[list[float], str]:
    """Their standard deviation."""
    lite = facts.get("backbone") in PACKAGES
    return ([128.0] * 3 if lite else [58.395, 57.12, 57.375]), f"of {facts.get('backbone')}"


@part
def box_convs(facts: Facts) -> tuple[list[int], str]:
    """Convs of Faster R-CNN's box head."""
    return ([256] * 4, RELEASED) if facts.released else ([], "two linear layers learn faster")


# how many -------------------------------------------------------------------------------------------------------------


@rule
def rois(facts: Facts) -> tuple[int, str]:
    """Regions an image that the second stage learns from."""
    most = facts.data.objects_per_image(0.95)
    low, high = (32, 64) if facts.fast else (128, 512)
    return _power_of_two(4 * most, low, high), f"{most} objects in a full image, four regions each"


@rule
def proposals(facts: Facts) -> tuple[list[int], str]:
    """Proposals an image after NMS, (training, inference)."""
    most = facts.data.objects_per_image(1.0)
    if not facts.fast:
        return [2000, max(256, _power_of_two(4 * most, 256, 1024))], f"{most} objects at most"
    return [_power_of_two(8 * most, 128, 256), _power_of_two(8 * most, 128, 256)], f"{most} objects at most"


@rule
def candidates(facts: Facts) -> tuple[list[int], str]:
    """Proposals a level before NMS, (training, inference)."""
    return [2 * n for n in facts.get("proposals")], "twice what is kept of all levels"


@rule
def detections(facts: Facts) -> tuple[int, str]:
    """Detections an image: more than the fullest has objects."""
    most = facts.data.objects_per_image(1.0)
    return (100 if most <= 50 else max(300, 100 * math.ceil(1.25 * most / 100))), f"{most} objects at most"


@part
def queries(facts: Facts) -> tuple[int, str]:
    """Queries of a DETR: twice the objects of a full image."""
    most = facts.data.objects_per_image(1.0)
    low, high = (50, 200) if facts.fast else (100, 900)
    return int(np.clip(50 * math.ceil(2 * most / 50), low, high)), f"{most} objects at most, two queries each"


def _power_of_two(wanted: float, low: int, high: int) -> int:
    return int(np.clip(2 ** math.ceil(math.log2(max(wanted, 1))), low, high))


# training -------------------------------------------------------------------------------------------------------------


@rule
def batch(facts: Facts) -> tuple[int, str]:
    """Images a step."""
    return int(facts.base["batch"]), f"speed={facts.speed}"


@rule
def steps(facts: Facts) -> tuple[int, str]:
    """Optimiser steps: on a CPU as many as its minutes hold, on a GPU enough passes for a small set."""
    images, size = facts.data.images, facts.get("batch")
    if facts.fast:
        cost = 0.4 + 0.6 * (facts.get("short") / 240) ** 2 * (1.0 if facts.get("finest") == 2 else 0.65)
        shown = facts.base["visits"] / cost
        return max(20, round(shown / size)), f"{shown:.0f} images, {shown / images:.1f} passes, fit into two minutes"
    shown = float(np.clip(40 * images, facts.base["visits"] / 4, facts.base["visits"]))
    return round(shown / size), f"{shown / images:.0f} passes over {images} images"


@rule
def warmup(facts: Facts) -> tuple[int, str]:
    """Steps of warm-up."""
    return max(1, min(1000, facts.get("steps") // 5)), "a fifth of the steps, at most 1000"


@rule
def lr(facts: Facts) -> tuple[float, str]:
    """Learning rate of AdamW: by the square root of the batch."""
    scale = math.sqrt(facts.get("batch") / facts.base["batch"])
    if facts.released:
        return float(
            f"{facts.base['lr'] * scale / 4:.3g}"
        ), "a quarter of the rate from ImageNet: all parts are trained"
    reason = f"{facts.base['lr']:g} is for batches of {facts.base['batch']:g}, and goes by the square root"
    return float(f"{facts.base['lr'] * scale:.3g}"), reason


@rule
def eval_period(facts: Facts) -> tuple[int, str]:
    """Steps between evaluations."""
    if facts.fast:
        return 0, "at the end only: it takes as long as many steps"
    return max(1, facts.get("steps") // 5), "five times"


# labels ---------------------------------------------------------------------------------------------------------------


@rule
def soft_weight(facts: Facts) -> tuple[float, str]:
    """ScaleDet's lambda: the weight that a single label has in the paper, which divides by their number."""
    n = facts.data.labels
    if len(facts.data.datasets) == 1 and n < 20:
        return 0.0, f"{n} labels of one card: there is no other label space to be near to"
    return round(min(10.0, 10.0 * n / PAPER_LABELS), 3), f"10 is for {PAPER_LABELS} labels, these are {n}"


@rule
def labels_per_image(facts: Facts) -> tuple[int, str]:
    """METR's categories an image: the paper's 20, or all where there are fewer."""
    return min(20, facts.data.labels), f"{facts.data.labels} labels, at most 20"


@rule
def hl_scope(facts: Facts) -> tuple[str, str]:
    """Which labels are negatives of an image."""
    if len(facts.data.datasets) > 1:
        shared = ", ".join(facts.data.shared_names[:3]) or "no name"
        return "own_dataset", f"several cards: none labels what only another names; {shared} in more than one"
    return "all", "one card labels everything"


@rule
def federated(facts: Facts) -> tuple[str, str]:
    """Whether only verified labels of an image count."""
    if facts.data.federated:
        return "verified", "a card is labelled for verified classes only"
    return "none", "every card is labelled exhaustively"
