"""Make your own data a dataset card: one file that every config can name.

    python tools/add_dataset.py my_train --annotations ann.json --images images/
    python tools/add_dataset.py my_train --format yolo --images images --annotations labels --classes data.yaml
    python tools/add_dataset.py my_train --format voc --images JPEGImages --annotations Annotations

writes DETECTRON2_DATASETS/cards/my_train.yaml (YOLO and VOC are converted to a COCO json beside it), prints which id is
which class, draws a few pictures with their boxes, and tells how to train on it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import orjson
from PIL import Image
from tabulate import tabulate

from polydet.data import DatasetCard, DatasetError, class_image_counts, get_card, load_card, read_image, register_card
from polydet.data.card_files import card_folders, save_card_file
from polydet.data.convert import voc_to_coco, yolo_class_names, yolo_to_coco
from polydet.files import write_bytes


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="the card's name, for example my_train")
    parser.add_argument("--annotations", type=Path, required=True, help="a COCO json, or the folder of label files")
    parser.add_argument("--images", type=Path, required=True, help="the image folder")
    parser.add_argument("--format", choices=("coco", "yolo", "voc"), default="coco")
    parser.add_argument("--classes", type=Path, help="class names: data.yaml or one per line (needed for yolo)")
    parser.add_argument("--templates", default="photo", help="prompt with one {} for the class name, or its key")
    parser.add_argument("--cards", type=Path, help="folder of the card; default the first that is looked at")
    parser.add_argument("--pictures", type=int, default=6, help="sample pictures to draw")
    parser.add_argument("--overwrite", action="store_true", help="replace a card of that name")
    return parser.parse_args(argv)


def convert(args: argparse.Namespace, folder: Path) -> Path:
    """The COCO json of the data, converted if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    if args.format == "coco":
        return args.annotations.absolute()
    names = yolo_class_names(args.classes) if args.classes else None
    if args.format == "yolo":
        if names is None:
            raise DatasetError("YOLO files do not name their classes", remedy="give --classes data.yaml")
        document = yolo_to_coco(args.images, args.annotations, names)
    else:
        document = voc_to_coco(args.images, args.annotations, names)
    path = folder / f"{args.name}.json"
    write_bytes(path, orjson.dumps(document))
    return path.absolute()


def draw(name: str, count: int, path: Path) -> None:
    """Sample pictures with their boxes in one image file."""
    from detectron2.data import MetadataCatalog
    from detectron2.utils.visualizer import Visualizer

    table = load_card(name)
    rows = np.random.default_rng(0).permutation(np.flatnonzero(table.usable_images()))[:count]
    panels = []
    for row in rows:
        record = table[int(row)]
        drawn = Visualizer(read_image(record), MetadataCatalog.get(name)).draw_dataset_dict(record)
        picture = Image.fromarray(drawn.get_image())
        picture.thumbnail((480, 480))
        panels.append(picture)
    if not panels:
        raise DatasetError(f"no image of {name!r} has an annotation")
    columns = min(3, len(panels))
    sheet = Image.new("RGB", (480 * columns, 480 * -(-len(panels) // columns)), "white")
    for i, panel in enumerate(panels):
        sheet.paste(panel, (480 * (i % columns), 480 * (i // columns)))
    sheet.save(path)


def main(argv: list[str] | None = None) -> int:
    """Write the card; 1 and a message if something is wrong with the data."""
    args = parse_args(argv)
    folder = args.cards or card_folders()[0]
    path = folder / f"{args.name}.yaml"
    try:
        if path.exists() and not args.overwrite:
            raise DatasetError("exists already", file=path, remedy="choose another name or give --overwrite")
        json_file = convert(args, folder)
        card = DatasetCard(args.name, str(json_file), str(args.images.absolute()), templates=args.templates)
        register_card(card, overwrite=args.overwrite)
        table, full = load_card(args.name), get_card(args.name)
        counts = class_image_counts(args.name)
        boxes = np.bincount(table.labels, minlength=len(counts))
        rows = zip(full.category_ids or (), range(len(counts)), full.classes or (), counts.tolist(), boxes.tolist())
        print(tabulate(list(rows), ["id in file", "label", "class", "images", "boxes"]))
        if args.pictures:
            draw(args.name, args.pictures, path.with_suffix(".png"))
            print(f"pictures: {path.with_suffix('.png')}")
        save_card_file(full, path)
    except (DatasetError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"card: {path}")
    print(
        "train on it with, for example:\n  python tools/lazyconfig_train_net.py --config-file "
        f"configs/finetune/scaledet.py 'dataloader.train.datasets=[{args.name}]'"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
