"""Several taxonomies over one world.

Names were chosen so that a sentence encoder puts each name of `shapes_wild` next to trained names of the same kind
(ball near disc and sphere, wheel near tire, crate near box, ...): in a linear model of a region classifier that is
trained on the other names, the right kind has the highest cosine for every wild name.
"""

from __future__ import annotations

from polydet.data.shapeworld.world import COLOURS, NOVEL_KINDS, TRAINED_KINDS

__all__ = [
    "COARSE",
    "FINE",
    "FINE_CLASSES",
    "HIERARCHY",
    "NOVEL",
    "OID_CLASSES",
    "OID_IDS",
    "SYNONYMS",
    "WILD",
    "colour_weights",
    "fine_name",
]

COARSE: dict[str, str] = {  # shapes_coco: kind -> name, exhaustive
    "disc": "circle",
    "ring": "ring",
    "square": "square",
    "bar": "rectangle",
    "triangle": "triangle",
    "star": "star",
    "hexagon": "hexagon",
    "oval": "oval",
}
NOVEL: dict[str, str] = {kind: kind for kind in NOVEL_KINDS}
WILD: dict[str, str] = {
    "disc": "ball",
    "ring": "wheel",
    "square": "crate",
    "bar": "brick",
    "triangle": "pyramid",
    "star": "starfish",
    "hexagon": "honeycomb",
    "oval": "olive",
}

# shapes_lvis: kind -> names from frequent to rare, each with its colours (none: all colours no other name takes)
FINE: dict[str, dict[str, tuple[str, ...]]] = {
    "disc": {"disc": (), "sphere": ("blue",), "button": ("yellow",), "bead": ("purple",)},
    "ring": {"tire": (), "hoop": ("yellow",), "rim": ("white",), "rubber_ring": ("orange",)},
    "square": {"box": (), "blue_box": ("blue",), "parcel": ("brown",), "square_panel": ("white",)},
    "bar": {"stone_block": (), "block": ("red",), "plank": ("brown",), "bar": ("white",)},
    "triangle": {"wedge": (), "cone": ("orange",), "prism": ("purple",), "spike": ("gray",)},
    "star": {"pentagram": (), "gold_star": ("yellow",), "sun": ("orange",), "sea_urchin": ("purple",)},
    "hexagon": {"polygon": (), "nut": ("gray",), "honey_cell": ("yellow",), "hexagonal_cell": ("orange",)},
    "oval": {"ellipse": (), "egg": ("white",), "lime": ("green",), "bean": ("brown",)},
}
FINE_CLASSES: tuple[str, ...] = tuple(sorted(name for names in FINE.values() for name in names))
SYNONYMS: dict[str, list[str]] = {
    "disc": ["disc", "red_disc", "disk"],
    "tire": ["tire", "tyre"],
    "box": ["box", "cube"],
}

# shapes_oid: parent -> children; parents are boxable too
HIERARCHY: dict[str, tuple[str, ...]] = {
    "Entity": ("Shape",),
    "Shape": ("Polygon", "Round shape"),
    "Polygon": ("Square", "Rectangle", "Triangle", "Star", "Hexagon"),
    "Round shape": ("Circle", "Ring", "Oval"),
}
OID_CLASSES: tuple[str, ...] = (
    "Shape", "Polygon", "Round shape", "Circle", "Ring", "Square", "Rectangle", "Triangle", "Star", "Hexagon", "Oval",
)  # fmt: skip
OID_IDS: dict[str, str] = {name: f"/m/0sw{i:02d}" for i, name in enumerate(OID_CLASSES)}  # machine ids


def fine_name(kind: str, colour: str) -> str:
    """The name of shapes_lvis for a kind and colour."""
    names = FINE[kind]
    for name, colours in names.items():
        if colour in colours:
            return name
    return next(iter(names))


def colour_weights(long_tail: tuple[float, ...] | None = None) -> dict[tuple[str, str], float]:
    """Weight of each (kind, colour) of the trained kinds.

    Args:
        long_tail: weights of the four fine names of a kind; None: colours are uniform.
    """
    weights: dict[tuple[str, str], float] = {}
    for rank, kind in enumerate(TRAINED_KINDS):
        for colour in COLOURS:
            weights[kind, colour] = 1.0
            if long_tail is not None:
                names = list(FINE[kind])
                name = fine_name(kind, colour)
                share = sum(fine_name(kind, other) == name for other in COLOURS)
                weights[kind, colour] = long_tail[names.index(name)] / share / (1 + 0.25 * rank)
    return weights
