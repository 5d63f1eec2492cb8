"""Write ShapeWorld, a generated dataset, to disk.

Examples:
    python tools/make_shapeworld.py                                    the parts that the shapes_* cards read
    python tools/make_shapeworld.py --layout real --root /tmp/shapes   as COCO, LVIS, Objects365, OpenImages, VOC,
                                                                       WIDER, GoldG, CC, ODinW
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from polydet.data import DatasetError, datasets_root
from polydet.data.shapeworld.generate import PARTS, SEED, ensure_part
from polydet.data.shapeworld.real_layout import DATASETS, write_real_layout


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layout", choices=("shapeworld", "real"), default="shapeworld")
    parser.add_argument("--root", type=Path, help="default: DETECTRON2_DATASETS; a new folder for --layout real")
    parser.add_argument("--only", nargs="+", help=f"parts {sorted(PARTS)}, or datasets {sorted(DATASETS)}")
    parser.add_argument("--train", type=int, default=200, help="training images per real dataset")
    parser.add_argument("--val", type=int, default=40, help="validation images per real dataset")
    parser.add_argument("--seed", type=int, default=SEED, help="of the real layout")
    args = parser.parse_args(argv)
    known = PARTS if args.layout == "shapeworld" else DATASETS
    if unknown := sorted(set(args.only or ()) - set(known)):
        parser.error(f"--only {' '.join(unknown)}: not among {' '.join(sorted(known))}")
    try:
        if args.layout == "shapeworld":
            for part in args.only or PARTS:
                print(ensure_part(part, args.root))
            return 0
        root = args.root or datasets_root()
        if taken := [name for name in ("coco", "lvis", "objects365", "openimages") if (root / name).exists()]:
            parser.error(f"{root} holds {', '.join(taken)} already; choose a new folder with --root")
        write_real_layout(root, args.train, args.val, args.seed, tuple(args.only or DATASETS))
        print(f"written; use it with DETECTRON2_DATASETS={root.absolute()}")
    except (DatasetError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
