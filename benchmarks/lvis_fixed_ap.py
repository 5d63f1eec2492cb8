"""Memory and time of Fixed AP at LVIS val's size: 20,000 images, 1,203 classes, 10,000 boxes per class (simulated).

    python benchmarks/lvis_fixed_ap.py [--images 20000 --per-image 700] [--output FILE]

Reports what the evaluator adds to the peak resident memory; gate: at most 2.5 GiB. Exits with 1 if it fails.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import orjson
import torch
from detectron2.structures import Boxes, Instances

GATE_GIB = 2.5


def simulate(path: Path, images: int, classes: int, rng: np.random.Generator) -> None:
    """An LVIS json with about twelve boxes an image and a long tail of classes."""
    document: dict[str, list] = {"images": [], "annotations": [], "categories": []}
    for k in range(1, classes + 1):
        document["categories"].append({"id": k, "name": f"class {k}", "frequency": "rcf"[k % 3]})
    for i in range(1, images + 1):
        labels = np.exp(rng.uniform(0, np.log(classes), rng.integers(1, 24))).astype(int)
        negative = sorted({*rng.integers(1, classes + 1, 12).tolist()} - set(labels.tolist()))
        document["images"].append(
            {
                "id": i, "height": 480, "width": 640, "coco_url": f"http://x/val2017/{i:012d}.jpg",
                "neg_category_ids": negative, "not_exhaustive_category_ids": [],
            }
        )  # fmt: skip
        for k in labels.tolist():
            x, y, w, h = rng.uniform((0, 0, 8, 8), (400, 300, 200, 160)).round(1).tolist()
            item = {"id": len(document["annotations"]) + 1, "image_id": i, "category_id": k, "area": w * h}
            document["annotations"].append({**item, "bbox": [x, y, w, h]})
    path.write_bytes(orjson.dumps(document))


def predictions(record: dict, count: int, classes: int, rng: np.random.Generator) -> Instances:
    """Jittered ground truth and boxes at random."""
    truth = np.array([a["bbox"] for a in record["annotations"]]).reshape(-1, 4)
    labels = np.array([a["category_id"] for a in record["annotations"]], np.int64)
    pick = rng.integers(0, len(truth), count // 10)
    boxes = np.concatenate([truth[pick] + rng.normal(0, 4, (len(pick), 4)), rng.uniform(5, 300, (count, 4))])
    boxes[:, 2:] = boxes[:, :2] + np.maximum(boxes[:, 2:], 1)
    instances = Instances((480, 640))
    instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32))
    instances.scores = torch.tensor(rng.random(len(boxes)), dtype=torch.float32)
    instances.pred_classes = torch.tensor(np.concatenate([labels[pick], rng.integers(0, classes, count)]))
    return instances


def peak() -> float:
    """Peak resident memory of this process so far, GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> int:
    from polydet.data import DatasetCard, load_card, register_card
    from polydet.evaluation import build_evaluator

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--classes", type=int, default=1203)
    parser.add_argument("--per-image", type=int, default=700)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "lvis_fixed_ap.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["POLYDET_CACHE"] = folder
        simulate(Path(folder) / "lvis.json", args.images, args.classes, rng)
        before = peak()
        register_card(DatasetCard("simulated_lvis", f"{folder}/lvis.json", folder, format="lvis"))
        evaluator = build_evaluator("simulated_lvis", None, "lvis_fixed")
        start, total = time.perf_counter(), 0
        for record in load_card("simulated_lvis"):
            found = predictions(record, args.per_image, args.classes, rng)
            evaluator.process([record], [{"instances": found}])
            total += len(found)
        processed = time.perf_counter() - start
        start = time.perf_counter()
        results = evaluator.evaluate()["bbox"]
        report = {
            "machine": {"cpu": platform.machine(), "cores": os.cpu_count()},
            "images": args.images,
            "classes": args.classes,
            "detections": total,
            "added_peak_gib": peak() - before,
            "process_seconds": processed,
            "evaluate_seconds": time.perf_counter() - start,
            "AP": results["AP"],
            "gate_gib": GATE_GIB,
        }
    print(json.dumps(report, indent=1))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(report, indent=1) + "\n")
    return 0 if report["added_peak_gib"] <= GATE_GIB else 1


if __name__ == "__main__":
    sys.exit(main())
