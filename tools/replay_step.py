#!/usr/bin/env python
"""Repeat the step that a run saved when a loss or gradient was not finite, and name the module where it began.

python tools/replay_step.py output/nonfinite/iter_0001234 [--rank 0] [--device cpu]
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from detectron2.config import instantiate
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from polydet.engine import ConfigError, load_config
from polydet.engine.command import command
from polydet.engine.distributed import seed_everything
from polydet.engine.nonfinite import first_nonfinite_module
from polydet.engine.published import skip_published_weights
from polydet.engine.trainer import DTYPES, autocast


def restore(item: dict[str, Any]) -> dict[str, Any]:
    """A saved model input with its ``Instances`` built again (boxes xyxy, pixels)."""
    item = dict(item)
    if "instances" in item:
        saved = item["instances"]
        instances = Instances(tuple(saved["image_size"]))
        for name, value in saved["fields"].items():
            instances.set(name, Boxes(value) if name.endswith("boxes") else value)
        item["instances"] = instances
    return item


def main() -> None:
    """Build the run's model, load the weights of the failed step, run its batch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    wanted = [args.folder / name for name in ("info.json", "model.pth", f"batch_rank{args.rank}.pth")]
    if absent := [path.name for path in wanted if not path.is_file()]:
        known = ", ".join(map(str, sorted(args.folder.glob("nonfinite/iter_*")))) or "none here"
        raise ConfigError(
            f"{args.folder} is no saved step, it has no {', '.join(absent)}: name a run's nonfinite/iter_N ({known})"
        )
    info = json.loads((args.folder / "info.json").read_text())
    cfg = load_config(args.folder.parent.parent / "config.yaml")
    skip_published_weights(cfg.model)
    model = instantiate(cfg.model).to(args.device).train()
    model.load_state_dict(torch.load(args.folder / "model.pth", weights_only=True)["model"])
    batch = torch.load(args.folder / f"batch_rank{args.rank}.pth", weights_only=True)
    seed_everything(info["seed"], info["iteration"], args.rank)
    with EventStorage(info["iteration"]), autocast(torch.device(args.device), DTYPES[cfg.train.amp.dtype]):
        name = first_nonfinite_module(model, [restore(item) for item in batch])
    print(f"iteration {info['iteration']}, seed {info['seed']}: {info['message']}")
    print("files:", *info["files"], sep="\n  ")
    print(f"first non-finite output: {name or 'none in this forward pass (look at the gradients)'}")


if __name__ == "__main__":
    command(main)
