"""The DETR family on a CPU: time against HuggingFace's Deformable-DETR, memory, parameters and FLOPs per member.

    python benchmarks/detr_cpu.py speed            # equal-size two-stage models in one process, 300 and 900 queries
    python benchmarks/detr_cpu.py memory           # peak memory of a training step, one process a member
    python benchmarks/detr_cpu.py size             # parameters and FLOPs by fvcore, against the papers'

Speed takes the two models in turn, so that other work on the machine hits both; look at the ratio of the medians.
FLOPs are multiply-adds of convolutions, linear layers, matrix products and dense attention at one image size;
sampling in deformable attention is left out, as in the papers.
"""

from __future__ import annotations

import argparse
import math
import os
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from polydet.detr import DETR
from polydet.model_zoo.zoo import config_root

CLASSES = 91
# trainable parameters in millions: the authors' code, run on the same version of torch (COCO's 91 classes)
PUBLISHED = {
    "detr": 41.30,
    "conditional_detr": 43.20,
    "dab_detr": 43.45,
    "deformable_detr": 39.85,
    "deformable_detr_refine": 40.63,
    "deformable_detr_two_stage": 40.96,
    "deformable_detr_pp": None,
    "dab_deformable_detr": 47.18,
    "dn_dab_deformable_detr": None,
    "dino": 46.67,
    "dino_5scale": 47.03,
}


def member(name: str, classes: int = CLASSES, **changes: Any) -> DETR:
    """A member at paper size with random weights; `changes` by dotted key."""
    cfg = LazyConfig.load(str(config_root() / "common" / "models" / f"{name}.py"))
    cfg.model.num_classes = classes
    cfg.model.backbone.bottom_up.weights = None
    for key, value in changes.items():
        LazyConfig.apply_overrides(cfg, [f"model.{key}={value}"])
    return instantiate(cfg.model)


def sample(height: int, width: int, objects: int = 5) -> list[dict[str, Any]]:
    """One random image with objects."""
    g = torch.Generator().manual_seed(0)
    low = torch.rand(objects, 2, generator=g) * 0.6
    boxes = torch.cat((low, low + 0.2), dim=1) * torch.tensor([width, height, width, height])
    instances = Instances((height, width), gt_boxes=Boxes(boxes), gt_classes=torch.arange(objects))
    image = torch.randint(0, 256, (3, height, width), generator=g).to(torch.uint8)
    return [{"image": image, "instances": instances}]


# ---- speed


def alternate(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each call, taken in turn."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if turn:  # the first is a warm-up
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def their_model(queries: int) -> nn.Module:
    """HuggingFace's Deformable-DETR with refinement and two stages, ResNet-50, random weights."""
    import transformers

    config = transformers.DeformableDetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=transformers.ResNetConfig(out_features=["stage2", "stage3", "stage4"]),
        with_box_refine=True,
        two_stage=True,
        two_stage_num_proposals=queries,
        num_queries=queries,
        num_labels=CLASSES,
        auxiliary_loss=True,
        attention_dropout=0.1,  # as in the authors' code and ours; transformers' default leaves it out
    )
    return transformers.DeformableDetrForObjectDetection(config)


def training_step(model: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    """Forward, backward and an AdamW step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step


def speed(size: int, rounds: int) -> bool:
    """Print times and ratios; True if the gates hold: inference <= 0.9x, training step <= 1.0x."""
    passed = True
    for queries in (300, 900):
        ours = member("deformable_detr_two_stage", **{"queries.num_queries": queries})
        theirs = their_model(queries)
        inputs = sample(size, size)
        pixels = torch.randn(1, 3, size, size)
        mask = torch.ones(1, size, size, dtype=torch.long)
        target = ours.prepare_targets(inputs)[0]
        labels = [{"class_labels": target.labels, "boxes": target.boxes}]

        torch.set_num_threads(2)
        ours.eval()
        theirs.eval()
        with torch.inference_mode():
            found = alternate({"ours": lambda: ours(inputs), "theirs": lambda: theirs(pixels, mask)}, rounds)  # noqa: B023
        passed &= report(f"inference, 2 threads, {queries} queries", found, 0.9)

        torch.set_num_threads(1)
        ours.train()
        theirs.train()
        calls = {
            "ours": training_step(ours, lambda: torch.stack(list(ours(inputs).values())).sum()),  # noqa: B023
            "theirs": training_step(theirs, lambda: theirs(pixels, mask, labels=labels).loss),  # noqa: B023
        }
        passed &= report(f"training step, 1 thread, {queries} queries", alternate(calls, rounds), 1.0)
    return passed


def report(what: str, found: dict[str, float], gate: float) -> bool:
    """Print one line; True if the gate holds."""
    ratio = found["ours"] / found["theirs"]
    ms = {name: f"{1000 * seconds:.0f} ms" for name, seconds in found.items()}
    print(f"{what}: ours {ms['ours']}, transformers {ms['theirs']}, {ratio:.2f}x (gate {gate}x)", flush=True)
    return ratio <= gate


# ---- memory


def memory(size: int) -> None:
    """Peak resident memory of a training step, less that of the imported libraries, one process a member."""
    print(f"{'member':28} {'model MiB':>10} {'step MiB':>10}    training step, batch 2 at {size}x{size}, float32, CPU")
    for name in PUBLISHED:
        command = [sys.executable, __file__, "memory-of", "--member", name, "--size", str(size)]
        environment = {**os.environ, "MALLOC_ARENA_MAX": "1"}
        print(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.strip())


def memory_of(name: str, size: int) -> None:
    """What `memory` runs in a process of its own."""
    torch.set_num_threads(1)
    model = member(name)
    weights = sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()]) / 2**20
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    losses = model(sample(size, size) * 2)
    torch.stack(list(losses.values())).sum().backward()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{name:28} {weights:10.0f} {peak - before:10.0f}")


# ---- size


class Inference(nn.Module):
    """A model from a padded image tensor to tensors, for tracing."""

    def __init__(self, model: DETR) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        memory = self.model.encode(ImageList(image, [tuple(image.shape[-2:])]))
        predictions = self.model.decode(self.model.build_queries(memory, None), memory, last_only=True)
        return predictions.logits, predictions.boxes


def attention_flops(inputs: list[Any], outputs: list[Any]) -> int:
    """Multiply-adds of both matrix products of scaled dot-product attention."""
    query, key, value = (x.type().sizes() for x in inputs[:3])
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def flops(model: DETR, height: int, width: int) -> float:
    """Multiply-adds of one inference."""
    from fvcore.nn import FlopCountAnalysis

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        count = FlopCountAnalysis(Inference(model.eval()), torch.zeros(1, 3, height, width))
        count.set_op_handle("aten::scaled_dot_product_attention", attention_flops)
        count.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        return count.total()


def size(height: int, width: int) -> None:
    """Parameters (trainable, as the papers count) and FLOPs per member."""
    print(f"{'member':28} {'trainable':>10} {'authors':>9} {'GFLOPs':>8}    at {height}x{width}")
    for name, published in PUBLISHED.items():
        model = member(name)
        count = sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6
        known = f"{published:8.2f}M" if published else "        -"
        print(f"{name:28} {count:9.2f}M {known} {flops(model, height, width) / 1e9:8.1f}", flush=True)
    dino = member("dino", classes=80, **{"queries.num_queries": 100})
    count = sum(p.numel() for p in dino.parameters() if p.requires_grad) / 1e6
    print(
        f"{'dino, 100 queries, 80 classes':28} {count:8.2f}M   46.50M {flops(dino, height, width) / 1e9:8.1f}  (METR)"
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "memory", "size", "memory-of"])
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--member", default="dino")
    args = parser.parse_args()
    if args.what == "speed":
        sys.exit(0 if speed(args.size, args.rounds) else 1)
    if args.what == "memory":
        memory(args.size)
    elif args.what == "memory-of":
        memory_of(args.member, args.size)
    else:
        size(800, 1066)


if __name__ == "__main__":
    main()
