"""Time and peak memory of ScaleDet's language loss against a literal version, forward and backward.

Both take unit visual rows [R, D] and text rows [n, D]; a quarter of the regions is foreground.  The literal version
builds the one-hot target matrix of eq. 6 and the target rows of eq. 7 in full.

    OMP_NUM_THREADS=1 python benchmarks/scaledet_head.py --threads 1 2 --output benchmarks/results/scaledet_head
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
import torch.nn.functional as F

from polydet.text import LabelSpace, label_similarity
from scaledet.label_loss import LabelLoss

GATE = 0.6


def inputs(regions, labels, dim, device):
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(dim, generator=generator)  # the embeddings of a text encoder share a direction
    text = F.normalize(torch.randn(labels, dim, generator=generator) + common, dim=-1)
    visual = F.normalize(torch.randn(regions, dim, generator=generator), dim=-1)
    gt = torch.randint(0, labels, (regions,), generator=generator)
    gt[torch.rand(regions, generator=generator) < 0.75] = labels
    return visual.to(device), text.to(device), gt.to(device)


def literal_loss(text, gt):
    similarity = label_similarity(text)

    def loss(visual):
        cosine = visual @ text.T
        target = F.one_hot(gt, len(text) + 1)[:, :-1].to(cosine.dtype)
        hard = F.binary_cross_entropy_with_logits(cosine * 50.0, target, reduction="sum") / len(gt)
        fg = gt < len(text)
        goal = torch.cat([similarity, similarity.new_zeros(1, len(text))])[gt]
        soft = (F.mse_loss(cosine, goal, reduction="none").mean(1) * fg).sum() / fg.sum()
        return hard + 10.0 * soft

    return loss


def our_loss(text, gt):
    module = LabelLoss(dup="negative").to(text.device)  # the literal version knows no duplicates either
    names = [f"label {i}" for i in range(len(text))]
    module.set_labels(text, LabelSpace({"all": names}))
    return lambda visual: sum(module(visual, gt).values())


def measure(names, args):
    """Median milliseconds of forward and backward, taken in turns, MiB above the inputs, and the results."""
    device = torch.device(args.device)
    visual, text, gt = inputs(args.regions, args.labels, args.dim, device)
    losses = {name: LOSSES[name](text, gt) for name in names}

    def step(name):
        x = visual.clone().requires_grad_()
        value = losses[name](x)
        value.backward()
        return value.detach(), x.grad

    results = {}
    for name in names:
        value, grad = step(name)
        before = memory(device, reset=True)
        step(name)
        results[name] = {"MiB": (memory(device) - before) / 2**20, "loss": float(value), "grad": grad, "times": []}
    for _ in range(args.repeats):
        for name in names:
            synchronise(device)
            start = time.perf_counter()
            step(name)
            synchronise(device)
            results[name]["times"].append(time.perf_counter() - start)
    for result in results.values():
        result["ms"] = 1e3 * statistics.median(result.pop("times"))
    return results


def synchronise(device):
    if device.type == "cuda":
        torch.cuda.synchronize()


def memory(device, reset=False):
    """Peak bytes so far: of the allocator on a GPU, of the process (high-water mark) on a CPU."""
    if device.type == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated()
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
        return status("VmRSS")
    return status("VmHWM")


def status(key):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {key}")


LOSSES = {"literal": literal_loss, "ours": our_loss}


def child(args):
    torch.set_num_threads(args.threads[0])
    results = measure(args.only, args)
    grads = [result.pop("grad") for result in results.values()]
    if len(grads) == 2:
        results["gradient_error"] = float((grads[1] - grads[0]).norm() / grads[0].norm())
    print(json.dumps(results))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--regions", type=int, default=4096)
    parser.add_argument("--labels", type=int, default=2249)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", default="", help="path without suffix; writes .json and .md")
    parser.add_argument("--only", nargs="+", default=[], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        child(args)
        return
    rows = []
    for threads in args.threads:
        both = run_child(args, threads, ["literal", "ours"])
        for name in ("literal", "ours"):  # memory each in a process of its own
            both[name]["MiB"] = run_child(args, threads, [name])[name]["MiB"]
        rows.append({"threads": threads, **both, "ratio": both["ours"]["ms"] / both["literal"]["ms"]})
    report = {
        "regions": args.regions,
        "labels": args.labels,
        "dim": args.dim,
        "device": device_name(args.device),
        "torch": torch.__version__,
        "gate": GATE,
        "rows": rows,
    }
    text = table(report)
    print(text)
    if args.output:
        Path(f"{args.output}.json").write_text(json.dumps(report, indent=2) + "\n")
        Path(f"{args.output}.md").write_text(text + "\n")
    sys.exit(any(row["ratio"] > GATE for row in rows))


def run_child(args, threads, only):
    command = [sys.executable, __file__, "--threads", str(threads), "--only", *only]
    for name in ("regions", "labels", "dim", "repeats", "device"):
        command += [f"--{name}", str(getattr(args, name))]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(output.splitlines()[-1])


def device_name(device):
    if device != "cpu":
        return torch.cuda.get_device_name()
    models = [x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")]
    return models[0].split(":")[1].strip() if models else platform.processor()


def table(report):
    lines = [
        f"# ScaleDet's language loss: {report['regions']} regions x {report['labels']} labels, D = {report['dim']}",
        "",
        f"Forward and backward, float32, {report['device']}, torch {report['torch']}; median time, peak memory above "
        f"the inputs. Gate: at most {report['gate']} of the literal time.",
        "",
        "| threads | literal | ours | ratio | literal memory | ours memory | loss literal / ours | gradient error |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in report["rows"]:
        literal, ours = row["literal"], row["ours"]
        lines.append(
            f"| {row['threads']} | {literal['ms']:.0f} ms | {ours['ms']:.0f} ms | {row['ratio']:.2f} | "
            f"{literal['MiB']:.0f} MiB | {ours['MiB']:.0f} MiB | {literal['loss']:.5f} / {ours['loss']:.5f} | "
            f"{row['gradient_error']:.1e} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
