"""Detectors of this house and torchvision's Faster R-CNN on photographs with boxes, at equal CPU time.

    python benchmarks/real_photos.py --data cells=FOLDER --data raccoons=FOLDER --output results/real_photos.json
    ... --detectors torchvision finetune/scaledet --seeds 0 1 2     a part of it
    ... --folds 3     cross-validation on train.json alone, to choose settings with; val.json is not opened
    ... --set finetune/scaledet:optimizer.lr=5e-4 --set torchvision@cells:lr=5e-4     other settings, for one set only
    ... again with the same --output: what it holds is not run again

FOLDER holds ``train.json``, ``val.json`` (COCO) and ``images/``. Every detector starts from the same ImageNet weights,
which ship as a package (no pre-training is hidden in them: its cost would count otherwise). Training is measured in
seconds of CPU of the whole process, from the first to the last step, images decoded in it.  torchvision's detector has
the image size and the anchors of this house's recipe.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import re
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
import torchvision_peer
from cpu_clock import CpuClock

from polydet.data import DatasetCard, data_statistics, prepare_cards, register_card
from polydet.engine import run
from polydet.engine.recipe_rules import Facts
from polydet.model_zoo import get_config

DETECTORS = ["torchvision", "finetune/scaledet", "finetune/faster_rcnn"]


def folds_of(folder: Path, folds: int, scratch: Path) -> list[tuple[Path, Path]]:
    """(train, held out) annotation files: the given ones, or parts of train.json by the place of an image in it."""
    if not folds:
        return [(folder / "train.json", folder / "val.json")]
    document = json.loads((folder / "train.json").read_text())
    files = []
    for fold in range(folds):
        parts = []
        for held_out in (False, True):
            images = [x for i, x in enumerate(document["images"]) if (i % folds == fold) == held_out]
            ids = {x["id"] for x in images}
            boxes = [a for a in document["annotations"] if a["image_id"] in ids]
            path = scratch / f"{folder.name}-{fold}-{'val' if held_out else 'train'}.json"
            path.write_text(json.dumps({**document, "images": images, "annotations": boxes}))
            parts.append(path)
        files.append((parts[0], parts[1]))
    return files


def cards_of(files: tuple[Path, Path], images: Path, out: Path) -> list[str]:
    """Names of the cards of a training and a test file."""
    names = [f"{out.name}_train", f"{out.name}_val"]
    for name, file in zip(names, files):
        register_card(DatasetCard(name, str(file.absolute()), str(images.absolute())), overwrite=True)
    prepare_cards(names)
    return names


def train_here(config: str, files: tuple[Path, Path], images: Path, seed: int, settings: list[str], out: Path) -> dict:
    """One training of a config of this house -> metrics of its evaluation and the CPU seconds of its steps."""
    names = cards_of(files, images, out)
    cfg = get_config(
        config,
        [
            f"dataloader.train.datasets=[{names[0]}]",
            f"dataloader.test_datasets=[{names[1]}]",
            "dataloader.train.num_workers=0",
            "dataloader.test.num_workers=0",
            "train.pictures=0",
            "train.device=cpu",
            "train.checkpoint_period=100000",
            f"train.seed={seed}",
            f"train.output_dir={out}",
            "+train.hooks=[{_target_: cpu_clock.CpuClock}]",
            *settings,
        ],
    )
    metrics = run(cfg)[names[1]]["bbox"]
    return {"metrics": metrics, "cpu_seconds": CpuClock.seconds, "steps": int(cfg.train.max_iter)}


def train_peer(files: tuple[Path, Path], images: Path, seed: int, settings: list[str], out: Path) -> dict:
    """One training of torchvision's, with the size and the anchors of the recipe from stride 4 on."""
    facts = Facts(data_statistics(cards_of(files, images, out)[:1]), "fast", {"batch": 4, "lr": 1e-3, "visits": 300})
    first = facts.get("anchor_sizes")[0][0] / 2 ** (facts.get("finest") - 2)
    fitted = {"short": facts.get("short"), "long": facts.get("max_size"), "anchors": [first * 2**i for i in range(5)]}
    given = {key: json.loads(value) for key, value in (entry.split("=", 1) for entry in settings)}
    return torchvision_peer.train(files[0], files[1], images, seed, {**fitted, **given})


def settings_of(detector: str, data: str, given: list[str]) -> list[str]:
    """Those for every set first, then those for this one."""
    prefixes = (f"{detector}:", f"{detector}@{data}:")
    return [entry.removeprefix(prefix) for prefix in prefixes for entry in given if entry.startswith(prefix)]


def one(detector: str, files: tuple[Path, Path], images: Path, seed: int, settings: list[str], out: Path) -> dict:
    if detector != "torchvision":
        return train_here(detector, files, images, seed, settings, out)
    return train_peer(files, images, seed, settings, out)


def table(rows: list[dict[str, Any]]) -> str:
    """Mean over seeds (and folds) for each set and detector; sets and detectors in the order of their first run."""
    lines = ["| photographs | detector | steps | CPU s | AP | of each run | AP50 |", "|---|---|---|---|---|---|---|"]
    for key in dict.fromkeys((row["data"], row["detector"]) for row in rows):
        mine = [row for row in rows if (row["data"], row["detector"]) == key]
        ap = [row["metrics"]["AP"] for row in mine]
        ap50 = statistics.mean(row["metrics"]["AP50"] for row in mine)
        seconds = statistics.mean(row["cpu_seconds"] for row in mine)
        each = " / ".join(f"{value:.1f}" for value in ap)
        lines.append(
            f"| {key[0]} | {key[1]} | {mine[0]['steps']} | {seconds:.0f} | {statistics.mean(ap):.1f} | {each} | "
            f"{ap50:.1f} |"
        )
    return "\n".join(lines)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", action="append", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--detectors", nargs="+", default=DETECTORS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folds", type=int, default=0, help="cross-validate on train.json instead of using val.json")
    parser.add_argument("--fold", type=int, nargs="+", help="only these of the folds")
    parser.add_argument("--set", action="append", default=[], metavar="DETECTOR:KEY=VALUE")
    parser.add_argument("--output", type=Path, required=True, help="json; a .md of the same name holds the table")
    return parser.parse_args(argv)


def main() -> None:
    args = parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = json.loads(args.output.read_text())["rows"] if args.output.is_file() else []
    done = [(row["seed"], row["fold"], row["data"], row["detector"]) for row in rows]
    with tempfile.TemporaryDirectory() as scratch:
        sets = dict(entry.split("=", 1) for entry in args.data)
        splits = {name: folds_of(Path(folder), args.folds, Path(scratch)) for name, folder in sets.items()}
        folds = args.fold or range(max(args.folds, 1))
        for seed, fold, name, detector in itertools.product(args.seeds, folds, sets, args.detectors):
            if (seed, fold, name, detector) in done:
                continue
            out = Path(scratch) / f"{name}_{detector.replace('/', '_')}_{fold}_{seed}"
            given = settings_of(detector, name, args.set)
            found = one(detector, splits[name][fold], Path(sets[name]) / "images", seed, given, out)
            rows.append({"data": name, "detector": detector, "fold": fold, "seed": seed, **found})
            print(rows[-1], flush=True)
            write(args, rows)
    write(args, rows)
    print(table(rows))


def write(args: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    report = {
        "machine": f"{platform.machine()} CPU, 1 thread",
        "torch": torch.__version__,
        "folds": args.folds,
        "settings": args.set,
        "rows": rows,
    }
    args.output.write_text(json.dumps(report, indent=1) + "\n")
    path = args.output.with_suffix(".md")
    text = path.read_text() if path.is_file() else "| |\n"
    path.write_text(re.sub(r"(^\|.*\n)+", lambda _: table(rows) + "\n", text, count=1, flags=re.MULTILINE))


if __name__ == "__main__":
    main()
