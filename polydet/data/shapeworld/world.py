"""The visual world: shapes with a kind and a colour on textured backgrounds."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

__all__ = ["COLOURS", "KINDS", "NOVEL_KINDS", "TRAINED_KINDS", "Scene", "Shape", "render", "sample_scene"]

WIDTH, HEIGHT = 192, 160
MIN_SIZE, MAX_SIZE = 18.0, 72.0  # pixels, longest side before rotation

TRAINED_KINDS = ("disc", "ring", "square", "bar", "triangle", "star", "hexagon", "oval")
NOVEL_KINDS = ("heart", "cross", "crescent", "arrow")  # named in captions only
KINDS = TRAINED_KINDS + NOVEL_KINDS

COLOURS: dict[str, tuple[int, int, int]] = {  # RGB
    "red": (212, 42, 38),
    "green": (50, 160, 62),
    "blue": (40, 84, 204),
    "yellow": (236, 206, 44),
    "orange": (240, 132, 30),
    "purple": (138, 56, 172),
    "white": (240, 240, 236),
    "gray": (96, 98, 102),
    "brown": (124, 76, 40),
}


@dataclass(frozen=True)
class Shape:
    """One object: its kind, colour and outline (float64 [k, 2], xy pixels; may leave the image)."""

    kind: str
    colour: str
    outline: np.ndarray
    texture: str = "plain"

    def box(self, clip: bool = True) -> tuple[float, float, float, float]:
        """XYXY box of the outline in pixels, rounded to 0.01, clipped to the image unless told otherwise."""
        low, high = self.outline.min(axis=0), self.outline.max(axis=0)
        if clip:
            low, high = np.maximum(low, 0), np.minimum(high, (WIDTH, HEIGHT))
        x0, y0, x1, y1 = (round(float(v), 2) for v in (*low, *high))
        return x0, y0, x1, y1

    def polygon(self) -> list[float]:
        """Outline clipped to the image, flat [x0, y0, x1, y1, ...]."""
        points = np.clip(self.outline, 0, (WIDTH, HEIGHT))
        return [round(float(v), 2) for v in points.reshape(-1)]


@dataclass(frozen=True)
class Scene:
    """One image before it is drawn. `groups` lists, as tuples of indices into `shapes`, tight clusters of one kind."""

    background: str
    seed: int
    shapes: tuple[Shape, ...]
    groups: tuple[tuple[int, ...], ...] = ()


def _circle(n: int = 40) -> np.ndarray:
    angle = np.linspace(0, 2 * math.pi, n, endpoint=False)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _regular(n: int, start: float = -math.pi / 2) -> np.ndarray:
    angle = start + np.arange(n) * 2 * math.pi / n
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _star() -> np.ndarray:
    points = _regular(10)
    points[1::2] *= 0.42
    return points


def _ring() -> np.ndarray:
    """Outer circle, a slit, inner circle backwards: one polygon with a hole."""
    outer = np.concatenate([_circle(), _circle()[:1]])
    return np.concatenate([outer, 0.55 * outer[::-1]])


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * math.pi, 40, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([x, y], axis=1) / 17


def _crescent() -> np.ndarray:
    outer = np.linspace(0.25 * math.pi, 1.75 * math.pi, 30)
    inner = outer[::-1]
    a = np.stack([np.cos(outer), np.sin(outer)], axis=1)
    b = np.stack([0.42 + 0.76 * np.cos(inner), 0.93 * np.sin(inner)], axis=1)
    return np.concatenate([a, b])


def _polygon(*points: tuple[float, float]) -> np.ndarray:
    return np.array(points, np.float64)


def _cross() -> np.ndarray:
    a = 0.3
    corners = [
        (-a, -1),
        (a, -1),
        (a, -a),
        (1, -a),
        (1, a),
        (a, a),
        (a, 1),
        (-a, 1),
        (-a, a),
        (-1, a),
        (-1, -a),
        (-a, -a),
    ]
    return _polygon(*corners)


_UNIT: dict[str, np.ndarray] = {  # outlines in [-1, 1]
    "disc": _circle(),
    "ring": _ring(),
    "square": _polygon((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
    "bar": _polygon((-1, -0.4), (1, -0.4), (1, 0.4), (-1, 0.4)),
    "triangle": _polygon((0, -0.95), (1, 0.8), (-1, 0.8)),
    "star": _star(),
    "hexagon": _regular(6),
    "oval": _circle() * (1, 0.58),
    "heart": _heart(),
    "cross": _cross(),
    "crescent": _crescent(),
    "arrow": _polygon((1, 0), (0.1, -0.75), (0.1, -0.3), (-1, -0.3), (-1, 0.3), (0.1, 0.3), (0.1, 0.75)),
}
_TURN = {"disc": 0.0, "ring": 0.0, "square": 0.25, "bar": 0.35, "triangle": 0.3, "oval": 0.5, "cross": 0.3}  # radians


def _outline(rng: np.random.Generator, kind: str, size: float, centre: np.ndarray) -> np.ndarray:
    points = _UNIT[kind].copy()
    stretch = rng.uniform(0.82, 1.0) if kind in ("bar", "oval", "triangle") else rng.uniform(0.95, 1.0)
    points[:, 1] *= stretch
    if kind == "bar" and rng.random() < 0.3:
        points = points[:, ::-1] * (1, -1)  # upright
    turn = rng.uniform(-1, 1) * _TURN.get(kind, 0.4)
    rotation = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    return centre + (points @ rotation) * size / 2


def _place(rng: np.random.Generator, kind: str, boxes: list[np.ndarray], low: float, high: float) -> np.ndarray | None:
    """An outline that is mostly inside the image and covers little of the others; None if there is no room."""
    for _ in range(25):
        size = math.exp(rng.uniform(math.log(low), math.log(high)))
        outline = _outline(rng, kind, size, rng.uniform((0, 0), (WIDTH, HEIGHT)))
        full = np.concatenate([outline.min(axis=0), outline.max(axis=0)])
        seen = np.concatenate([np.maximum(full[:2], 0), np.minimum(full[2:], (WIDTH, HEIGHT))])
        if _area(seen) < 0.75 * _area(full):
            continue
        if all(_overlap(seen, other) < 0.18 * min(_area(seen), _area(other)) for other in boxes):
            boxes.append(seen)
            return outline
    return None


def _area(box: np.ndarray) -> float:
    return float(max(box[2] - box[0], 0) * max(box[3] - box[1], 0))


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    return _area(np.concatenate([np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])]))


def sample_scene(
    rng: np.random.Generator,
    draw_shape: dict[tuple[str, str], float],
    background: str = "plain",
    max_shapes: int = 5,
    group_rate: float = 0.0,
) -> Scene:
    """A random scene.

    Args:
        draw_shape: weight of each (kind, colour).
        max_shapes: 1 to this many single shapes.
        group_rate: chance of a cluster of five to eight small shapes of one kind beside them.
    """
    pairs = list(draw_shape)
    weights = np.fromiter(draw_shape.values(), np.float64)
    weights /= weights.sum()
    shapes: list[Shape] = []
    boxes: list[np.ndarray] = []
    groups = []
    if rng.random() < group_rate:
        groups.append(_cluster(rng, pairs[rng.choice(len(pairs), p=weights)], shapes, boxes))
    for _ in range(rng.integers(1, max_shapes + 1)):
        kind, colour = pairs[rng.choice(len(pairs), p=weights)]
        outline = _place(rng, kind, boxes, MIN_SIZE, MAX_SIZE)
        if outline is not None:
            shapes.append(Shape(kind, colour, outline, _TEXTURES[rng.integers(len(_TEXTURES))]))
    return Scene(background, int(rng.integers(2**31)), tuple(shapes), tuple(groups))


def _cluster(
    rng: np.random.Generator, pair: tuple[str, str], shapes: list[Shape], boxes: list[np.ndarray]
) -> tuple[int, ...]:
    size = rng.uniform(15, 19)
    corner = rng.uniform((4, 4), (WIDTH - 4 * size, HEIGHT - 3 * size))
    members = []
    for i in range(rng.integers(5, 9)):
        centre = corner + size * (np.array([i % 4, i // 4]) + 0.5) + rng.uniform(-2, 2, 2)
        members.append(len(shapes))
        shapes.append(Shape(*pair, _outline(rng, pair[0], size, centre)))
    low = np.min([shapes[i].outline.min(axis=0) for i in members], axis=0)
    high = np.max([shapes[i].outline.max(axis=0) for i in members], axis=0)
    boxes.append(np.concatenate([low, high]))
    return tuple(members)


_TEXTURES = ("plain", "plain", "stripes", "shaded")


def render(scene: Scene) -> np.ndarray:
    """RGB image, uint8 [HEIGHT, WIDTH, 3]; the same scene gives the same pixels."""
    rng = np.random.default_rng(scene.seed)
    image = _BACKGROUNDS[scene.background](rng)
    for shape in scene.shapes:
        _draw(image, shape, rng)
    noise = 5 * rng.standard_normal((HEIGHT, WIDTH, 1), np.float32)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def _draw(image: np.ndarray, shape: Shape, rng: np.random.Generator) -> None:
    """Paint a shape into an RGB image (float32, changed in place)."""
    colour = np.clip(np.array(COLOURS[shape.colour]) + rng.uniform(-16, 16, 3), 0, 255)
    angle, band = rng.uniform(0, 3), rng.integers(4, 8)
    x0, y0 = np.maximum(shape.outline.min(axis=0).astype(int) - 2, 0)
    x1, y1 = np.minimum(shape.outline.max(axis=0).astype(int) + 3, (WIDTH, HEIGHT))
    patch = image[y0:y1, x0:x1]
    points = np.round((shape.outline - (x0, y0)) * 16).astype(np.int32)
    paint = np.tile(colour.astype(np.float32), (*patch.shape[:2], 1))
    yy, xx = np.mgrid[y0:y1, x0:x1]
    if shape.texture == "stripes":
        bands = (xx * math.cos(angle) + yy) // band % 2
        paint *= np.where(bands[..., None] == 1, 0.78, 1.0)
    elif shape.texture == "shaded":
        low, high = shape.outline[:, 1].min(), shape.outline[:, 1].max()
        paint *= (1.08 - 0.35 * np.clip((yy - low) / (high - low), 0, 1))[..., None]
    mask = np.zeros(patch.shape[:2], np.uint8)
    cv2.fillPoly(mask, [points], 255, cv2.LINE_AA, 4)
    edge = np.zeros(patch.shape[:2], np.uint8)
    rims = [points[: len(points) // 2], points[len(points) // 2 :]] if shape.kind == "ring" else [points]
    cv2.polylines(edge, rims, True, 255, 1, cv2.LINE_AA, 4)
    for weight, new in ((mask, paint), (edge, colour * 0.55)):
        alpha = weight[..., None] / np.float32(255)
        patch[:] = patch * (1 - alpha) + new * alpha


def _smooth(rng: np.random.Generator, cells: int, base: float, spread: float) -> np.ndarray:
    grid = rng.normal(base, spread, (cells, cells, 3)).astype(np.float32)
    return cv2.resize(grid, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)


def _plain(rng: np.random.Generator) -> np.ndarray:
    """Soft blotches and thin scratches."""
    image = _smooth(rng, 6, rng.uniform(120, 190), 14)
    for _ in range(rng.integers(2, 7)):
        a, b = rng.integers((0, 0), (WIDTH, HEIGHT), (2, 2))
        shade = float(rng.uniform(60, 220))
        cv2.line(image, a.tolist(), b.tolist(), (shade, shade, shade), 1)
    return image


def _checker(rng: np.random.Generator) -> np.ndarray:
    """A tiled floor."""
    yy, xx = np.mgrid[0:HEIGHT, 0:WIDTH]
    cell = rng.integers(14, 30)
    tiles = ((xx // cell + yy // cell) % 2)[..., None]
    return _smooth(rng, 4, rng.uniform(120, 180), 10) + tiles * rng.uniform(-28, 28, 3).astype(np.float32)


def _meadow(rng: np.random.Generator) -> np.ndarray:
    """Sky above rough ground."""
    horizon = int(rng.uniform(0.25, 0.7) * HEIGHT)
    image = _smooth(rng, 5, 0, 9)
    image[:horizon] += np.array([150, 180, 205], np.float32)
    image[horizon:] += np.array([132, 140, 104], np.float32)
    speckle = 22 * rng.standard_normal((HEIGHT // 2, WIDTH // 2, 1), np.float32)
    image[horizon:] += cv2.resize(speckle, (WIDTH, HEIGHT))[horizon:, :, None]
    return image


_BACKGROUNDS = {"plain": _plain, "checker": _checker, "meadow": _meadow}
