"""Word-region pictures: for each noun phrase of a caption the region that fits it best (appendix D).

python -m detclipv2.pictures --run output/quickstart_detclipv2/train --card shapes_captions_train --output words.png
python -m detclipv2.pictures --run detclipv2_swint --weights model_final.pth --image cat.jpg --caption "a cat on a mat"
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.figure
import numpy as np
from detectron2.utils.visualizer import Visualizer

from detclipv2.meta_arch import DetCLIPv2
from detclipv2.phrases import NounPhrases
from detclipv2.predictor import WordPredictor
from polydet import model_zoo
from polydet.data import DatasetError, load_card, prepare_cards, read_image
from polydet.engine import ConfigError
from polydet.engine.command import command
from polydet.engine.pictures import with_labels_inside
from polydet.files import save_figure

COLOURS = ("tab:red", "tab:blue", "tab:green", "tab:orange", "tab:purple", "tab:brown", "tab:pink", "tab:cyan")


def draw_word_regions(
    model: DetCLIPv2,
    image: np.ndarray,
    caption: str,
    phrases: Callable[[str], list[str]],
    short: int = 800,
    min_score: float = 0.0,
) -> tuple[np.ndarray, list[str]]:
    """A picture with the best region of every noun phrase.

    Args:
        image: uint8 RGB `[H, W, 3]`.
        phrases: noun phrases of a caption; a caption without any stands for itself.
        short: test size; 0 leaves the image as it is.
        min_score: regions of lower probability are left out.

    Returns:
        RGB picture and the phrases drawn.
    """
    words = phrases(caption) or [caption]
    boxes, scores = model.best_regions(WordPredictor(model, short).prepare(image), words)
    scale = max(1.0, 480 / max(image.shape[:2]))
    canvas = Visualizer(image, scale=scale)
    drawn = []
    for i, (word, box, score) in enumerate(zip(words, boxes.cpu().numpy(), scores.tolist())):
        if score < min_score:
            continue
        colour = COLOURS[i % len(COLOURS)]
        canvas.draw_box(box, edge_color=colour)
        canvas.draw_text(f"{word} {score:.2f}", box[:2], color=colour, horizontal_alignment="left")
        drawn.append(word)
    return with_labels_inside(canvas.get_output()), drawn


def save_pictures(pictures: Sequence[tuple[str, np.ndarray]], path: Path, columns: int = 4) -> None:
    """Pictures under their captions, as one image file."""
    rows = -(-len(pictures) // columns)
    width = min(columns, len(pictures))
    figure = matplotlib.figure.Figure(figsize=(4.2 * width, 4.2 * rows), layout="constrained")
    axes = figure.subplots(rows, width, squeeze=False).reshape(-1)
    for axis in axes:
        axis.axis("off")
    for axis, (caption, picture) in zip(axes, pictures):
        axis.imshow(picture)
        axis.set_title(caption, fontsize=8, wrap=True)
    save_figure(path, figure, dpi=90)


def _pairs(args: argparse.Namespace) -> list[tuple[np.ndarray, str]]:
    if args.image:
        return [(read_image({"file_name": args.image}), args.caption)]
    prepare_cards([args.card])
    table = load_card(args.card)
    records = [table[i] for i in range(args.first, min(args.first + args.count, len(table)))]
    if not records or "caption" not in records[0]:
        what = "captions" if records else f"{args.first} images"
        raise DatasetError(f"card {args.card!r} has no {what}", remedy="name a card of image-text pairs")
    return [(read_image(record), record["caption"]) for record in records]


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="run folder, config file or name of a config")
    parser.add_argument("--weights", help="checkpoint; by default the run's final one")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--card", help="card of image-text pairs")
    source.add_argument("--image", help="one image file, with --caption")
    parser.add_argument("--caption", default="")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--short", type=int, default=0, help="short side in pixels; 0: images as they are")
    parser.add_argument("--min-score", type=float, default=0.0)
    parser.add_argument("--output", type=Path, default=Path("word_regions.png"))
    args = parser.parse_args(argv)
    if args.image and not args.caption:
        parser.error("--image needs --caption")
    model_zoo.get_model_config(args.run, (), args.weights)  # says what is wrong with a config alone, or one of stages
    model: Any = model_zoo.get(args.run, args.weights)
    if not isinstance(model, DetCLIPv2):
        raise ConfigError(f"{args.run} builds a {type(model).__name__}, not a DetCLIPv2, which alone scores regions")
    phrases = NounPhrases()
    pictures = [
        (caption, draw_word_regions(model, image, caption, phrases, args.short, args.min_score)[0])
        for image, caption in _pairs(args)
    ]
    save_pictures(pictures, args.output)
    print(f"{len(pictures)} pictures in {args.output}")


if __name__ == "__main__":
    command(main, also=(ValueError,))
