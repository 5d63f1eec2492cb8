#!/usr/bin/env python
"""Parameters, FLOPs, peak memory and step time of a config, on made-up images and without published weights.

python tools/analyze.py metr/table2_dino_r50_12ep --size 800 1066 [--steps 5] [--device cuda] [key=value ...]
python tools/analyze.py detclipv2_swint --steps 5 --loader            # a model that trains on more than boxes
python tools/analyze.py quickstart/aligndet --stage finetune          # one of a config's stages

FLOPs are multiply-adds (fvcore's convention, and the DETR papers'); operators that fvcore cannot count are listed, the
deformable attention kernel among them. Embeddings of words are made up as well.
"""

import argparse
import json
import resource
import time
from collections.abc import Iterator
from itertools import repeat
from typing import Any

import torch
from detectron2.config import instantiate
from detectron2.structures import Boxes, Instances, PolygonMasks
from detectron2.utils.analysis import FlopCountAnalysis
from detectron2.utils.events import EventStorage
from tabulate import tabulate
from torch import nn

from polydet import model_zoo
from polydet.data.card import find_card
from polydet.engine.build import build_loader
from polydet.engine.command import command
from polydet.engine.distributed import seed_everything
from polydet.engine.made_up import make_up_words
from polydet.engine.published import skip_published_weights
from polydet.engine.stages import one_model
from polydet.files import write_text


def made_up_batch(size: tuple[int, int], images: int, boxes: int, dataset: str) -> list[dict[str, Any]]:
    """``images`` random images of ``size`` (height, width), each with ``boxes`` objects of class 0: xyxy, and masks."""
    batch = []
    for i in range(images):
        instances = Instances(size)
        corner = torch.rand(boxes, 2) * 0.6
        low_high = torch.cat([corner, corner + 0.1 + 0.25 * torch.rand(boxes, 2)], dim=1)
        instances.gt_boxes = Boxes(low_high * torch.tensor([size[1], size[0]] * 2))
        instances.gt_classes = torch.zeros(boxes, dtype=torch.long)
        instances.gt_masks = PolygonMasks([[box[[0, 1, 2, 1, 2, 3, 0, 3]].numpy()] for box in instances.gt_boxes])
        image = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
        batch.append(
            {"image": image, "height": size[0], "width": size[1], "image_id": i, "file_name": f"made up {i}",
             "dataset_name": dataset, "instances": instances}
        )  # fmt: skip
    return batch


def count_parameters(model: nn.Module) -> list[list[str]]:
    """A row a top-level module: name, trainable and all parameters in millions."""
    rows = []
    for name, module in [*model.named_children(), ("total", model)]:
        total = sum(p.numel() for p in module.parameters())
        learning = sum(p.numel() for p in module.parameters() if p.requires_grad)
        if total:
            rows.append([name, f"{learning / 1e6:.2f}", f"{total / 1e6:.2f}"])
    return rows


def count_flops(model: nn.Module, batch: list[dict[str, Any]]) -> tuple[float, dict[str, int]]:
    """(multiply-adds of one image, operators that were not counted)."""
    item = {key: batch[0][key] for key in ("image", "height", "width")}
    analysis = FlopCountAnalysis(model.eval(), [item]).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    return float(analysis.total()), dict(analysis.unsupported_ops())


def time_steps(
    model: nn.Module, training: Iterator[list[dict[str, Any]]], image: dict[str, Any], steps: int
) -> dict[str, float]:
    """Median seconds of a training step (forward, backward, no optimiser) and of inference, and peak memory in MiB.

    Args:
        training: batches. image: the input of inference.
    """
    device = next(model.parameters()).device

    def median(work: Any, batches: Iterator[Any]) -> float:
        times = []
        for _ in range(steps + 1):  # the first one warms up
            inputs = next(batches)
            start = time.perf_counter()
            work(inputs)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - start)
        return sorted(times[1:])[steps // 2]

    def train(batch: list[dict[str, Any]]) -> None:
        model.zero_grad(set_to_none=True)
        sum(model(batch).values()).backward()

    with EventStorage():
        model.train()
        step = median(train, training)
    with torch.no_grad():
        model.eval()
        infer = median(model, repeat([image]))
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device) / 2**20
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return {"train_step_s": step, "inference_s": infer, "peak_memory_mib": peak}


def main() -> None:
    """Parse the command line, build, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--size", nargs=2, type=int, default=(800, 1066), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--stage", help="its name, where the config has stages")
    parser.add_argument("--steps", type=int, default=0, help="timed steps; 0 for none")
    parser.add_argument("--loader", action="store_true", help="time steps on batches of the config's own loader")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", help="also write the numbers here")
    args = parser.parse_intermixed_args()
    seed_everything(0)
    cfg = model_zoo.get_config(args.config, args.overrides)
    cfg = one_model(cfg, args.stage)
    skip_published_weights(cfg.model)
    make_up_words(cfg.model)
    model = instantiate(cfg.model).to(args.device)
    dataset = next(iter(cfg.dataloader.train.get("datasets", [""])))
    if "vocabulary" in cfg.model and not cfg.model.vocabulary:  # DetCLIPv2 looks for what it is asked
        model.set_vocabulary(list(find_card(dataset).classes or ["object"]))
    batch = made_up_batch(tuple(args.size), args.images, 8, dataset)
    rows = count_parameters(model)
    print(tabulate(rows, headers=["module", "trainable (M)", "all (M)"]))
    flops, skipped = count_flops(model, batch)
    print(f"\n{flops / 1e9:.1f} G multiply-adds for one image of {args.size[0]}x{args.size[1]}")
    print("not counted:", ", ".join(f"{name} x{n}" for name, n in sorted(skipped.items())) or "nothing")
    numbers: dict[str, Any] = {"config": args.config, "size": args.size, "gflops": flops / 1e9, "not_counted": skipped}
    numbers["parameters"] = {name: {"trainable": t, "all": a} for name, t, a in rows}
    if args.steps:
        training = iter(build_loader(cfg)) if args.loader else repeat(batch)
        numbers["timing"] = time_steps(model, training, batch[0], args.steps)
        print(", ".join(f"{name} {value:.3g}" for name, value in numbers["timing"].items()))
    if args.json:
        write_text(args.json, json.dumps(numbers, indent=2))


if __name__ == "__main__":
    command(main, also=(RuntimeError,))
