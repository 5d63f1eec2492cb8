"""Check datasets on disk: presence, counts, ids, boxes and, if asked, every image.

    python tools/check_datasets.py                       every card whose annotation file is there
    python tools/check_datasets.py coco_2017_train lvis_v1_val
    python tools/check_datasets.py --images my_train     also open every image (--decode: read it whole)
    python tools/check_datasets.py --list                what each card is, where it comes from and its licence

Says what is wrong and what to do about it; exits with 1 if anything is.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image
from tabulate import tabulate
from tqdm import tqdm

from polydet.data import DatasetError, get_card, list_cards, load_card, missing_files, read_image
from polydet.data.builtin.odinw import odinw13
from polydet.data.card import datasets_root, find_card
from polydet.data.card_files import card_folders
from polydet.data.images import exif_turn
from polydet.data.readers.openimages import image_sizes
from polydet.data.shapeworld.real_layout import MARKER


@dataclass
class Report:
    """What was found out about one card."""

    name: str
    images: int = 0
    boxes: int = 0
    crowds: int = 0
    classes: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Notes(logging.Handler):
    """Collects the readers' warnings (dropped boxes and the like)."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the message."""
        self.lines.append(record.getMessage())


def check(name: str, images: str | None, limit: int | None) -> Report:
    """Check one card; `images` is None, `open` or `decode`."""
    report = Report(name)
    absent = missing_files([name]).get(name, [])
    if absent and not find_card(name).generator:
        card = find_card(name)
        report.problems += [f"missing: {path}" for path in absent]
        report.problems.append(f"fetch it from {card.url or 'its source'} to {datasets_root().absolute()}")
        return report
    notes = Notes()
    logger = logging.getLogger("polydet.data")
    logger.addHandler(notes)
    try:
        table, card = load_card(name), get_card(name)
    except DatasetError as error:
        report.problems.append(str(error))
        return report
    finally:
        logger.removeHandler(notes)
    report.notes = notes.lines
    report.images, report.boxes, report.crowds = len(table), len(table.labels), table.crowds
    report.classes = len(card.classes or ())
    if card.images is not None and card.images != len(table):
        count = f"has {len(table):,} images, the whole dataset has {card.images:,}"
        small = (datasets_root() / MARKER).is_file()  # tools/make_shapeworld.py --layout real
        (report.notes if small else report.problems).append(
            f"{count}: {'made-up pictures' if small else 'fetch the rest'}"
        )
    rows = range(len(table) if limit is None else min(limit, len(table)))
    if images:
        report.notes += turned_images(table, rows)
    if images == "open":
        report.problems += open_images(table, rows)
    elif images == "decode":
        report.problems += decode_images(name, rows)
    return report


def open_images(table: object, rows: range) -> list[str]:
    """Images that are missing, unreadable or of another size than annotated (headers only)."""
    files = [table.files[i].decode() for i in rows]  # type: ignore[attr-defined]
    heights, widths = image_sizes(Path(table.image_root), files)  # type: ignore[attr-defined]
    problems = []
    for i, file, height, width in zip(rows, files, heights.tolist(), widths.tolist()):
        expected = int(table.heights[i]), int(table.widths[i])  # type: ignore[attr-defined]
        if height == 0:
            problems.append(f"image missing or unreadable: {file}")
        elif expected != (0, 0) and expected != (height, width):
            problems.append(f"image {file} is {width}x{height}, annotated as {expected[1]}x{expected[0]}")
    return problems


def turned_images(table: object, rows: range) -> list[str]:
    """How many images an EXIF tag turns, and of how many of these the size cannot tell whether the boxes are."""
    turned, unsure = 0, []
    for i in rows:
        try:
            with Image.open(table.file_name(i)) as image:  # type: ignore[attr-defined]
                turn = exif_turn(image)
        except Exception:  # Pillow raises almost anything on a broken file, which open_images names
            continue
        turned += turn != 1
        if turn in (2, 3, 4) or (turn != 1 and image.width == image.height):
            unsure.append(table.file_name(i))  # type: ignore[attr-defined]
    if not turned:
        return []
    note = f"{turned} images are turned by their EXIF tag and read upright"
    if unsure:
        note += (
            f"; of {len(unsure)} of them (such as {unsure[0]}) the size cannot tell whether the boxes are of the "
            "upright picture: look at some (tools/add_dataset.py draws them)"
        )
    return [note]


def decode_images(name: str, rows: range) -> list[str]:
    """Images that cannot be read whole."""
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(decode, [name] * len(rows), rows, chunksize=64)
        return [problem for problem in tqdm(results, name, total=len(rows), disable=None) if problem]


def decode(name: str, row: int) -> str:
    """The error of reading one image, empty if there is none."""
    try:
        read_image(load_card(name)[row])
    except DatasetError as error:
        return str(error)
    return ""


def chosen(names: list[str]) -> list[str]:
    """Cards to check: as named (`odinw13` stands for its sets), else those whose first annotation file exists."""
    if names:
        return [card for name in names for card in (odinw13() if name == "odinw13" else [name])]
    own = [path.stem for folder in card_folders() if folder.is_dir() for path in sorted(folder.glob("*.yaml"))]
    cards = [name for name in list_cards() if not find_card(name).generator]
    return [*(name for name in cards if find_card(name).json_files[0].exists()), *(n for n in own if n not in cards)]


def main(argv: list[str] | None = None) -> int:
    """Check and print; 1 if there is a problem."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cards", nargs="*", help="card names; odinw13 for the thirteen sets")
    parser.add_argument("--images", action="store_const", const="open", help="open every image")
    parser.add_argument("--decode", dest="images", action="store_const", const="decode", help="read every image whole")
    parser.add_argument("--limit", type=int, help="only the first images of each card")
    parser.add_argument("--list", action="store_true", help="list the cards")
    args = parser.parse_args(argv)
    if args.list:
        rows = [(c.name, c.about, c.url, c.licence) for c in map(find_card, args.cards or list_cards())]
        print(tabulate(rows, ["card", "what", "from", "licence"], maxcolwidths=[None, 60, 50, 30]))
        return 0
    try:
        names = chosen(args.cards)
        if not names:
            print(f"no dataset found under {datasets_root().absolute()}; set DETECTRON2_DATASETS or name a card")
            return 1
        reports = [check(name, args.images, args.limit) for name in tqdm(names, disable=None)]
    except DatasetError as error:
        print(error, file=sys.stderr)
        return 1
    rows = [(r.name, r.images, r.boxes, r.crowds, r.classes, len(r.problems) or "ok") for r in reports]
    print(tabulate(rows, ["card", "images", "boxes", "crowds", "classes", "problems"]))
    for report in reports:
        for problem in report.problems[:20]:
            print(f"\n{report.name}: {problem}")
        if len(report.problems) > 20:
            print(f"\n{report.name}: {len(report.problems) - 20} more problems")
        for note in report.notes:
            print(f"\n{report.name} (note): {note}")
    return 1 if any(report.problems for report in reports) else 0


if __name__ == "__main__":
    sys.exit(main())
