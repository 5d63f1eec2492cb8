"""Training step of Co-Deformable-DETR++ by the number of auxiliary heads, beside the paper's ratios (table 7).

The rows' own ResNet-50 models with random weights, on random images with seven objects each; every K in a process of
its own. The paper's hours are of a whole training on its GPUs, so only ratios compare. At small images the heads'
fixed work (512 RoIs, up to 300 queries a head) weighs more than at the paper's 800 x 1333.

    OMP_NUM_THREADS=1 python benchmarks/codetr_step.py --output benchmarks/results/codetr_step
    python benchmarks/codetr_step.py --device cuda --size 800 1333 --batch 2 --output benchmarks/results/codetr_step_gpu
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from detectron2.config import instantiate
from detectron2.structures import Boxes, Instances

from polydet.engine import load_config

CONFIGS = Path(__file__).parents[1] / "configs" / "codetr"
ROWS = {  # row: paper's (memory in MB, GPU hours)
    "table3_deformable_detr_pp_r50_12ep_k0": (12808, 70),
    "table3_deformable_detr_pp_r50_12ep_k1": (13947, 86),
    "table3_deformable_detr_pp_r50_12ep_k2": (14387, 120),
    "table7_deformable_detr_pp_r50_12ep_k6": (19385, 280),
}


def batch(args):
    generator = torch.Generator().manual_seed(0)
    height, width = args.size
    inputs = []
    for _ in range(args.batch):
        corner = torch.rand(7, 2, generator=generator) * 0.6
        extent = 0.1 + 0.3 * torch.rand(7, 2, generator=generator)
        boxes = torch.cat([corner, corner + extent], dim=1) * torch.tensor([width, height, width, height])
        target = Instances((height, width), gt_boxes=Boxes(boxes), gt_classes=torch.arange(7))
        image = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
        inputs.append({"image": image, "instances": target, "height": height, "width": width})
    return inputs


def memory(device, reset=False):
    """Peak bytes: of the allocator on a GPU, of the process on a CPU (after reset: what is resident now)."""
    if device.type == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated()
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    key = "VmRSS:" if reset else "VmHWM:"
    return next(int(x.split()[1]) * 1024 for x in lines if x.startswith(key))


def child(args):
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    before = memory(device, reset=True)
    cfg = load_config(CONFIGS / f"{args.only}.py")
    cfg.model.backbone.bottom_up.weights = None
    model = instantiate(cfg.model).to(device).train()
    inputs = batch(args)

    # CPU seconds do not depend on what else the machine does
    clock = time.process_time if args.device == "cpu" and args.threads == 1 else time.perf_counter

    def step():
        start = clock()
        sum(model(inputs).values()).backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return clock() - start

    for _ in range(2):
        step()
    peak = memory(device)
    times = [step() for _ in range(args.repeats)]
    auxiliary = sum(p.numel() for n, p in model.named_parameters() if n.startswith("collaborators"))
    print(
        json.dumps(
            {
                "seconds": statistics.median(times),
                "MiB": (peak - before) / 2**20,
                "parameters": sum(p.numel() for p in model.parameters()),
                "auxiliary_parameters": auxiliary,
            }
        )
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, nargs=2, default=[320, 320], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--output", default="", help="path without suffix; writes .json and .md")
    parser.add_argument("--only", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        child(args)
        return
    rows = {}
    for name in args.rows:
        command = [sys.executable, __file__, "--only", name, "--size", *map(str, args.size)]
        for key in ("batch", "threads", "repeats", "device"):
            command += [f"--{key}", str(getattr(args, key))]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        rows[name] = json.loads(output.splitlines()[-1])
    report = {"size": args.size, "batch": args.batch, "threads": args.threads, "torch": torch.__version__}
    report["device_type"] = args.device
    report["device"] = torch.cuda.get_device_name() if args.device == "cuda" else cpu_name()
    report["rows"] = rows
    text = table(report)
    print(text)
    if args.output:
        Path(f"{args.output}.json").write_text(json.dumps(report, indent=2) + "\n")
        Path(f"{args.output}.md").write_text(text + "\n")


def cpu_name():
    models = [x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")]
    return models[0].split(":")[1].strip() if models else platform.processor()


def table(report):
    rows = report["rows"]
    base, (paper_memory, paper_hours) = next(iter(rows.values())), ROWS[next(iter(rows))]
    height, width = report["size"]
    unit = "CPU seconds" if report["device_type"] == "cpu" and report["threads"] == 1 else "seconds"
    lines = [
        f"# Training step of Co-Deformable-DETR++ R50, {height} x {width}, batch {report['batch']}",
        "",
        f"Forward and backward, {unit}, float32, {report['device']}, {report['threads']} thread(s), "
        f"torch {report['torch']}; "
        "memory is the peak of model, gradients and activations. Ratios are to the first row; the paper's are of GPU "
        "hours and of memory at 800 x 1333 (table 7).",
        "",
        "| row | time | ratio | paper | memory | ratio | paper | auxiliary parameters |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        reported = ROWS[name]
        lines.append(
            f"| {name} | {row['seconds']:.2f} s | {row['seconds'] / base['seconds']:.2f} | "
            f"{reported[1] / paper_hours:.2f} | {row['MiB']:.0f} MiB | {row['MiB'] / base['MiB']:.2f} | "
            f"{reported[0] / paper_memory:.2f} | "
            f"{row['auxiliary_parameters'] / 1e6:.1f} M |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
