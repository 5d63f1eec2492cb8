"""Time and memory of multi-scale deformable attention against every peer that can be imported, in one process.

Peers: HuggingFace's PyTorch function, the original CUDA kernel (HuggingFace's hub build, package ``kernels``),
msda-triton, and this project's reference.  The *op* takes sampling locations and weights; the *layer* adds the four
projections, softmax and sampling locations: ours fused, the peers' in PyTorch around their op.  Peers without a dtype
are given float32 copies, and the casts count.  All are measured in turns, so that a busy machine slows all of them.

    OMP_NUM_THREADS=1 python benchmarks/msda.py --output benchmarks/results/msda_cpu
    python benchmarks/msda.py --device cuda --output benchmarks/results/msda_gpu
"""

import argparse
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from msda_peers import (
    CHANNELS,
    HEADS,
    HUB,
    HUGGINGFACE,
    LEVELS,
    MSDA_TRITON,
    OURS,
    OURS_DETERMINISTIC,
    OURS_TILED,
    POINTS,
    REFERENCE,
    Case,
    Inputs,
    Op,
    find_peers,
    make_inputs,
)
from torch import Tensor

from polydet.ops import MultiScaleDeformableAttention, backend, ms_deform_attn_reference


def op_call(op: Op, x: Inputs) -> tuple[Callable[[], Tensor], list[Tensor]]:
    tensors = [tensor.detach().clone().requires_grad_() for tensor in (x.value, x.locations, x.weights)]
    return lambda: op(x, *tensors), tensors


def layer_call(name: str, op: Op, case: Case, x: Inputs) -> tuple[Callable[[], Tensor], list[Tensor]]:
    """Ours: the fused layer. A peer: the same projections, softmax and locations in PyTorch, then its op."""
    torch.manual_seed(0)
    layer = MultiScaleDeformableAttention(
        HEADS * CHANNELS, HEADS, LEVELS, POINTS,
        tile_queries=name == OURS_TILED, deterministic=True if name == OURS_DETERMINISTIC else None,
    )  # fmt: skip
    torch.nn.init.normal_(layer.attention_weights.weight, std=0.1)
    layer.to(x.value)
    value = x.value.flatten(2).detach().clone().requires_grad_()
    query = value if case.queries == "encoder" else torch.randn_like(value[:, : case.query_count]).requires_grad_()
    points = x.reference_points
    leaves = [value, *layer.parameters()] + ([] if query is value else [query])
    if name.startswith(OURS):
        return lambda: layer(query, points, value, x.shapes), leaves

    def eager() -> Tensor:
        batch, queries, _ = query.shape
        projected = layer.value_proj(value).view(batch, -1, HEADS, CHANNELS)
        offsets = layer.sampling_offsets(query).view(batch, queries, HEADS, LEVELS, POINTS, 2)
        weights = layer.attention_weights(query).view(batch, queries, HEADS, -1).softmax(-1)
        locations = points[:, :, None, :, None] + offsets / x.sizes.flip(-1)[:, None]
        weights = weights.view(batch, queries, HEADS, LEVELS, POINTS)
        return layer.output_proj(op(x, projected, locations.to(projected.dtype), weights))

    return eager, leaves


def seconds(function: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        function()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def saved_bytes(call: Callable[[], Tensor], leaves: list[Tensor]) -> int:
    """Bytes kept for the backward pass beyond the inputs, each storage once."""
    storages: dict[int, int] = {}
    keep = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        keep.append(storage)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = call()
    known = {leaf.untyped_storage().data_ptr() for leaf in (*leaves, output)}
    return sum(size for pointer, size in storages.items() if pointer not in known)


def peak_bytes(step: Callable[[], object], device: torch.device) -> int | None:
    if device.type != "cuda":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def relative_error(output: Tensor, expected: Tensor) -> float:
    return float((output.double() - expected).abs().max() / expected.abs().max())


def measure(case: Case, ops: dict[str, Op], device: torch.device, rounds: int, patience: float) -> list[dict]:
    """One row per peer: milliseconds of up to ``rounds`` calls in about ``patience`` seconds, memory, gather rate,
    error, or why it failed."""
    x = make_inputs(case, device)
    exact = None
    if case.level == "op" and case.batch == 1:
        with torch.no_grad():
            double = (x.value.double(), x.locations.double(), x.weights.double())
            exact = ms_deform_attn_reference(double[0], x.shapes, None, *double[1:])
    rows, steps = [], []
    for name, op in ops.items():
        call, leaves = op_call(op, x) if case.level == "op" else layer_call(name, op, case, x)
        grad = torch.randn(case.batch, case.query_count, HEADS * CHANNELS, device=device).to(x.value.dtype)

        def forward(call=call):
            with torch.no_grad():
                return call()

        def step(call=call, leaves=leaves, grad=grad):
            return torch.autograd.grad(call(), leaves, grad)

        row = {"case": case.title, "peer": name, **asdict(case), "size": list(case.size)}
        try:
            output = forward()
            step()
        except Exception as error:
            rows.append(row | {"failed": f"{type(error).__name__}: {str(error)[:200]}"})
            continue
        row["error"] = None if exact is None else relative_error(output, exact)
        row["saved_mb"] = saved_bytes(call, leaves) / 1e6
        peak = peak_bytes(step, device)
        row["peak_mb"] = None if peak is None else peak / 1e6
        rows.append(row)
        steps.append((row, forward, step))
    samples = case.batch * case.query_count * HEADS * LEVELS * POINTS
    gathered = samples * 4 * CHANNELS * x.value.element_size()
    for kind, index in (("forward_ms", 1), ("train_ms", 2)):
        times: dict[str, list[float]] = {entry[0]["peer"]: [] for entry in steps}
        one_round = sum(seconds(entry[index], device) for entry in steps)
        for _ in range(max(5, min(rounds, int(patience / one_round)))):
            for entry in steps:
                times[entry[0]["peer"]].append(seconds(entry[index], device) * 1e3)
        for entry in steps:
            entry[0][kind] = statistics.median(times[entry[0]["peer"]])
            entry[0][kind.replace("_ms", "_spread")] = [min(times[entry[0]["peer"]]), max(times[entry[0]["peer"]])]
    for row, *_ in steps:
        row["gather_gb_per_s"] = gathered / row["forward_ms"] / 1e6
    return rows


def cases(device: torch.device, args: argparse.Namespace) -> list[Case]:
    if args.quick:
        return [Case(level, (96, 96), "encoder", 1, "float32") for level in ("op", "layer")]
    if device.type == "cuda":
        sizes, large = [(800, 1333)], []
    else:
        sizes = [(320, 320)]
        large = [Case(level, (800, 1333), "encoder", 1, "float32") for level in args.levels if args.large]
    found = [
        Case(level, size, queries, batch, dtype)
        for level in args.levels
        for size in sizes
        for queries in ("encoder", "decoder")
        for batch in args.batches
        for dtype in args.dtypes
        if device.type == "cuda" or dtype == "float32" or (level == "op" and batch == 1)
    ]
    return found + large


def gates(rows: list[dict], device: torch.device) -> list[dict]:
    """The ratios asked for, from the rows at hand: peer's time over ours."""
    table = {(row["case"], row["peer"]): row for row in rows if "forward_ms" in row}

    def gate(title: str, case: Case, peer: str, kind: str, least: float) -> dict | None:
        ours, theirs = table.get((case.title, OURS)), table.get((case.title, peer))
        if ours is None or theirs is None:
            return None
        ratio = theirs[kind] / ours[kind]
        return {"gate": title, "against": peer, "least": least, "ratio": ratio, "met": ratio >= least}

    if device.type == "cpu":
        small = Case("op", (320, 320), "encoder", 1, "float32")
        found = [
            gate("op forward, 320 px", small, HUGGINGFACE, "forward_ms", 1.5),
            gate("op forward + backward, 320 px", small, HUGGINGFACE, "train_ms", 1.0),
        ]
        return [entry for entry in found if entry]
    size = (800, 1333)
    op, half = Case("op", size, "encoder", 1, "float32"), Case("op", size, "encoder", 1, "bfloat16")
    decoder, layer = Case("op", size, "decoder", 1, "float32"), Case("layer", size, "encoder", 1, "float32")
    original = HUB if (op.title, HUB) in table else MSDA_TRITON if (op.title, MSDA_TRITON) in table else REFERENCE
    found = [
        gate("op forward, float32", op, original, "forward_ms", 2.0),
        gate("op forward + backward, float32", op, original, "train_ms", 1.5),
        gate("op forward, bfloat16", half, original, "forward_ms", 2.0),
        gate("layer forward + backward, float32", layer, original, "train_ms", 2.5),
        gate("decoder forward", decoder, original, "forward_ms", 1.0),
        gate("decoder forward + backward", decoder, original, "train_ms", 1.0),
        gate("op forward + backward, float32", op, MSDA_TRITON, "train_ms", 1.5),
    ]
    return [entry for entry in found if entry]


def as_table(report: dict) -> str:
    lines = [f"# Multi-scale deformable attention on a {report['machine']}", "", report["note"], ""]
    lines += ["| gate | against | at least | measured | met |", "|---|---|---|---|---|"]
    for gate in report["gates"]:
        met = "yes" if gate["met"] else "no"
        lines.append(f"| {gate['gate']} | {gate['against']} | {gate['least']} x | {gate['ratio']:.2f} x | {met} |")
    head = "forward ms | x polydet | forward + backward ms | x polydet | saved MB | peak MB | gather GB/s | error"
    lines += ["", f"| case | peer | {head} |", "|" + "---|" * 10]
    ours = {row["case"]: row for row in report["rows"] if row["peer"] == OURS}
    for row in report["rows"]:
        if "failed" in row:
            lines.append(f"| {row['case']} | {row['peer']} | {row['failed']} |" + " |" * 7)
            continue
        base = ours[row["case"]]
        numbers = [f"{row['forward_ms']:.3g}", f"{row['forward_ms'] / base['forward_ms']:.2f}"]
        numbers += [f"{row['train_ms']:.3g}", f"{row['train_ms'] / base['train_ms']:.2f}", f"{row['saved_mb']:.1f}"]
        numbers += ["" if row["peak_mb"] is None else f"{row['peak_mb']:.0f}", f"{row['gather_gb_per_s']:.1f}"]
        numbers += ["" if row["error"] is None else f"{row['error']:.1e}"]
        lines.append(f"| {row['case']} | {row['peer']} | " + " | ".join(numbers) + " |")
    lines += ["", *(f"Not measured: {name} ({reason})." for name, reason in report["missing"].items())]
    return "\n".join(lines) + "\n"


def plot(report: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    titles = list(dict.fromkeys(row["case"] for row in report["rows"]))
    timed = {(row["case"], row["peer"]): row for row in report["rows"] if "forward_ms" in row}
    peers = [peer for peer in dict.fromkeys(row["peer"] for row in report["rows"]) if peer != OURS]
    figure, axes = pyplot.subplots(1, 2, figsize=(13, 1 + 0.35 * len(titles)), sharey=True)
    for axis, kind, title in zip(axes, ("forward_ms", "train_ms"), ("forward", "forward + backward")):
        for number, peer in enumerate(peers):
            points = [
                (timed[case, peer][kind] / timed[case, OURS][kind], index)
                for index, case in enumerate(titles)
                if (case, peer) in timed and (case, OURS) in timed
            ]
            axis.scatter(
                [ratio for ratio, _ in points], [index for _, index in points], label=peer, s=30, c=f"C{number}"
            )
        axis.axvline(1, color="black", linewidth=1)
        axis.set(xscale="log", title=title, xlabel="time over polydet's")
        axis.grid(alpha=0.3, which="both")
    axes[0].set_yticks(range(len(titles)), titles)
    axes[0].invert_yaxis()
    axes[1].legend(loc="best", fontsize=8)
    figure.suptitle(report["machine"])
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--levels", nargs="+", default=["op", "layer"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 2, 8])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], help="float16 as well")
    parser.add_argument("--rounds", type=int, default=50, help="timings per call at most, five at least")
    parser.add_argument("--patience", type=float, default=4.0, help="seconds per case and direction")
    parser.add_argument("--large", action="store_true", help="on a CPU: an 800 x 1333 encoder too (minutes, gigabytes)")
    parser.add_argument("--quick", action="store_true", help="one tiny case, to see that it runs")
    parser.add_argument("--output", type=Path, help="path without suffix for .json, .md and .png")
    args = parser.parse_args()
    device = torch.device(args.device)
    ops, missing = find_peers(device)
    rows: list[dict] = []
    for case in cases(device, args):
        whole = case.batch > 1 or (device.type == "cpu" and case.tokens > 10_000)
        some = {name: op for name, op in ops.items() if not (whole and name == REFERENCE)}  # it would need gigabytes
        found = measure(case, some, device, args.rounds, args.patience)
        print(case.title, {row["peer"]: round(row.get("forward_ms", math.nan), 3) for row in found}, flush=True)
        rows += found
    kind = platform.machine().replace("_", "-")
    machine = torch.cuda.get_device_name() if device.type == "cuda" else f"{os.cpu_count()}-core {kind} CPU"
    note = (
        f"Backend {backend(device)}, torch {torch.__version__}, {torch.get_num_threads()} CPU thread(s), medians, "
        f"peers in turns. {HEADS} heads x {CHANNELS} channels, {LEVELS} levels (strides 8 to 64), {POINTS} "
        "points. Error: largest difference from the float64 reference over its largest magnitude. Saved: kept for "
        "the backward pass beyond the inputs."
    )
    report = {"machine": machine, "note": note, "gates": gates(rows, device), "missing": missing, "rows": rows}
    print(as_table(report))
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
        args.output.with_suffix(".md").write_text(as_table(report))
        plot(report, args.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
