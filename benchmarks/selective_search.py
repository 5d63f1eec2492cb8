"""Selective search on ShapeWorld: images per second on one core and recall at IoU 0.5, by mode.

python benchmarks/selective_search.py --output benchmarks/results/selective_search.json
"""

import argparse
import json
import platform
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from torchvision.ops import box_iou

from aligndet.proposals import MODES, ProposalSettings, propose, selective_search
from polydet.data import load_card, read_image


def recall(found: np.ndarray, truth: np.ndarray) -> int:
    """How many annotated boxes (xyxy) some proposal overlaps by at least a half."""
    if len(found) == 0:
        return 0
    return int((box_iou(torch.from_numpy(truth), torch.from_numpy(found)).amax(1) >= 0.5).sum())


def measure(mode: str, records: list[dict], min_side: float) -> dict:
    settings = ProposalSettings(mode=mode, min_side=min_side)
    seconds, boxes, hits, raw_hits, total = 0.0, 0, 0, 0, 0
    for record in records:
        image = read_image(record, "BGR")
        truth = np.float32([a["bbox"] for a in record["annotations"]]).reshape(-1, 4)
        truth[:, 2:] += truth[:, :2]
        start = time.perf_counter()
        found = propose(image, settings, record["image_id"])
        seconds += time.perf_counter() - start
        boxes += len(found)
        hits += recall(found, truth)
        raw_hits += recall(selective_search(image, mode), truth)
        total += len(truth)
    return {
        "images_per_second": round(len(records) / seconds, 1),
        "boxes_per_image": round(boxes / len(records), 1),
        "recall_50": round(hits / total, 3),
        "recall_50_before_filters": round(raw_hits / total, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="shapes_coco_val")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--min-side", type=float, default=12.0, help="32 in the paper, for images four times as large")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    table = load_card(args.dataset)
    records = [table.record(i) for i in range(min(args.images, len(table)))]
    height, width = records[0]["height"], records[0]["width"]
    results = {mode: measure(mode, records, args.min_side) for mode in MODES}
    report = {
        "dataset": args.dataset,
        "images": len(records),
        "size": f"{width}x{height}",
        "min_side": args.min_side,
        "machine": f"{platform.machine()}, one core, other work beside it",
        "modes": results,
    }
    print(json.dumps(report, indent=1))
    if args.output:
        args.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
