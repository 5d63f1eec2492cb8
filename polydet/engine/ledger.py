"""What loading weights did, and what of it must stop a run."""

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from tabulate import tabulate
from torch import nn

CLASSWISE = re.compile(r"cls|class|label|logit|score|embed")
# made or counted by the modules themselves
DERIVED = re.compile(
    r"(num_batches_tracked|relative_position_index|attn_mask|_extra_state|pixel_mean|pixel_std|cell_anchors\.\d+)$"
)


@dataclass
class LoadLedger:
    """What loading weights did.

    Attributes:
        source: what the file is and how it was read.
        loaded: keys whose tensors were copied.
        transferred: ``key: (rows copied, rows of the model)`` of class-wise tensors, copied by class name.
        missing: keys of the model that the checkpoint lacks; they keep their initial values.
        unexpected: keys of the checkpoint that the model lacks.
        conflicts: ``key: (shape in the checkpoint, shape in the model)``; not copied.
        left_out: ``{what it is: keys}`` of the checkpoint that the model has no use for.
        modules: ``module: (elements loaded, elements)`` for the model's top-level modules.
    """

    source: str = ""
    loaded: list[str] = field(default_factory=list)
    transferred: dict[str, tuple[int, int]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    conflicts: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    modules: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def coverage(self) -> float:
        """Share of the model's elements that came from the checkpoint, 0 to 1."""
        total = sum(count for _, count in self.modules.values())
        return sum(count for count, _ in self.modules.values()) / total if total else 1.0

    def table(self) -> str:
        """A row a module and a line a conflict, for logs."""
        rows = [[name, n, total, f"{100 * n / total:.1f} %"] for name, (n, total) in self.modules.items() if total]
        lines = [self.source] if self.source else []
        lines.append(tabulate(rows, headers=["module", "loaded", "elements", "coverage"]))
        lines += [
            f"shape conflict, not loaded: {k} is {a} in the file, {b} here" for k, (a, b) in self.conflicts.items()
        ]
        lines += [f"by class name: {k}: {n} of {total} rows" for k, (n, total) in self.transferred.items()]
        lines += [f"left out, {what}: {_some(keys)}" for what, keys in self.left_out.items()]
        for title, keys in (("not in the file", self.missing), ("only in the file", self.unexpected)):
            if keys:
                lines.append(f"{title} ({len(keys)}): {_some(keys)}")
        return "\n".join(lines)


def _some(keys: Sequence[str], count: int = 8) -> str:
    return ", ".join(keys[:count]) + (" ..." if len(keys) > count else "")


def problems_of(
    model: nn.Module,
    ledger: LoadLedger,
    min_coverage: float,
    fresh: Sequence[str],
    complete: bool,
    covers: Sequence[str],
    known: bool = False,
) -> list[str]:
    """What must stop a load, with what to do about it."""
    problems = []
    for key, (theirs, ours) in ledger.conflicts.items():
        if not key.startswith(tuple(fresh) or ("\0",)):
            advice = remedy(key, theirs, complete)
            problems.append(f"{key} has another shape: {theirs} in the file, {ours} here; {advice}")
    modules = {name for name, _ in model.named_children()} | {name for name, _ in model.named_parameters()}
    surplus = [key for key in ledger.unexpected if known or key.split(".")[0] in modules]
    if surplus:
        problems.append(f"the model has no place for {_some(surplus, 3)} ({len(surplus)} in all); {_place(surplus)}")
    if complete:
        return [*problems, *_incomplete(ledger)]
    problems += _low_modules(model, ledger, min_coverage, fresh, covers)
    if not ledger.loaded and not ledger.transferred:
        problems.append("nothing in the file has a name that the model knows, less than train.init.min_coverage asks")
    return problems


def _low_modules(
    model: nn.Module, ledger: LoadLedger, min_coverage: float, fresh: Sequence[str], covers: Sequence[str]
) -> list[str]:
    sizes = {k: v.numel() for k, v in model.named_parameters() if k.startswith(tuple(covers) or "")}
    missing = {k for k in ledger.missing if not k.startswith(tuple(fresh) or ("\0",))}
    total, absent = Counter[str](), Counter[str]()
    for key, size in sizes.items():
        total[key.split(".")[0]] += size
        absent[key.split(".")[0]] += size * (key in missing)
    return [
        f"only {100 * (1 - absent[name] / count):.1f} % of {name!r} is in the file, less than train.init.min_coverage="
        f"{min_coverage:g}; if it is to start afresh: train.init.fresh=[{name}]"
        for name, count in total.items()
        if count and 1 - absent[name] / count < min_coverage
    ]


def _incomplete(ledger: LoadLedger) -> list[str]:
    problems = []
    if ledger.missing:
        problems.append(
            f"{len(ledger.missing)} weights are not in the file and would be random: {_some(ledger.missing, 3)}; use "
            "the config that the file was trained with"
        )
    partial = {k: (n, total) for k, (n, total) in ledger.transferred.items() if n < total}
    for key, (n, total) in partial.items():
        problems.append(f"{key} has rows for {n} of the model's {total} classes; evaluate on classes that the file has")
    return problems


_REMEDIES = (
    (r"^(encoder|decoder)\.layers\.(\d+)\.", lambda m: f"model.{m[1]}.num_layers={int(m[2]) + 1}"),
    (r"^(?:class|box)_heads\.[1-9]", lambda m: "model.share_heads=False"),
    (r"^decoder\.norm\.", lambda m: "model.decoder.norm=True"),
    (
        r"^backbone\.bottom_up\.(body\.)?(layer|res|blocks)",
        lambda m: "model.backbone.bottom_up to the network of the file, which is a deeper one",
    ),
    (r"^backbone\.(fpn_\w+|top_block\.p\d)\.bias$", lambda m: "model.backbone.norm=''"),
    (r"^backbone\.(fpn_\w+|top_block\.p\d)\.norm\.", lambda m: "model.backbone.norm=BN"),
)


def _place(keys: Sequence[str]) -> str:
    for pattern, advice in _REMEDIES:
        found = [match for key in keys if (match := re.match(pattern, key))]
        if found:
            return "set " + max((advice(match) for match in found), key=lambda text: (len(text), text))
    return f"if they are of no use: train.init.skip=[{_common_prefix(keys)}]"


def _common_prefix(keys: Sequence[str]) -> str:
    prefix = os.path.commonprefix(list(keys))
    return prefix.rsplit(".", 1)[0] if "." in prefix else keys[0].split(".")[0]


def remedy(key: str, theirs: Sequence[int], complete: bool) -> str:
    """What to do about a tensor of another shape."""
    if re.match(r"queries\.(content|position|anchors)\.", key):
        return f"set model.queries.num_queries={theirs[0]}"
    if re.match(r"(encoder|decoder)\.layers\.\d+\.ffn\.linear1", key):
        return f"set model.{key.split('.')[0]}.layer.ffn_dim={theirs[0]}"
    if complete:
        return "build the model as the file's was, on the classes that it was trained on"
    if CLASSWISE.search(key):
        return (
            "train.init.class_names=[...] (the file's, in order) carries rows over by name, "
            f"train.init.fresh=[{key.split('.')[0]}] starts with new ones"
        )
    return f"if it is to start afresh: train.init.fresh=[{key.split('.')[0]}]"
