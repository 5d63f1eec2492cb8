"""Rivals that the paper trains beside its own: several groups of queries, each matched on its own (Group-DETR,
arXiv:2207.13085; H-DETR, arXiv:2207.13080)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor

from polydet.detr import DETR, Branch, Memory, Predictions, Queries, Targets


@META_ARCH_REGISTRY.register()
class GroupedDETR(DETR):
    """A DETR whose further groups of queries help only in training.

    Args:
        group_sizes: queries of each group, the first is the detector's own; together the query source's number.
        repeats: how often each object may be matched in a group: `(1, 6)` in H-DETR, all 1 in Group-DETR.
        average: divide the losses of the matched queries by the number of groups (Group-DETR), or add them (H-DETR).
        base: arguments of `DETR`.

    Raises:
        ValueError: groups that do not fit the query source, or a base with denoising.
    """

    def __init__(self, *, group_sizes: Sequence[int], repeats: Sequence[int], average: bool, **base: Any) -> None:
        super().__init__(**base)
        self.group_sizes, self.repeats, self.average = list(group_sizes), list(repeats), average
        if len(self.repeats) != len(self.group_sizes) or sum(self.group_sizes) != self.queries.num_queries:
            raise ValueError(
                f"groups of {self.group_sizes} queries with {self.repeats} repeats do not divide the "
                f"{self.queries.num_queries} queries of the source"
            )
        if self.denoising is not None:
            raise ValueError("query groups and denoising both mask the self-attention: use one of them")

    def build_queries(self, memory: Memory, targets: Sequence[Targets] | None) -> Queries:
        """All groups in training, kept apart by the attention mask; the first one at inference."""
        queries = super().build_queries(memory, targets)
        if targets is None:
            own = slice(0, self.group_sizes[0])
            parts = {
                name: value[:, own]
                for name in ("content", "references", "position")
                if (value := getattr(queries, name)) is not None
            }
            return replace(queries, **parts)
        sizes = torch.tensor(self.sizes(queries.content.shape[1]))
        group = torch.arange(len(sizes)).repeat_interleave(sizes).to(queries.content.device)
        return replace(queries, attention_mask=group[:, None] != group[None, :])

    def sizes(self, available: int) -> list[int]:
        """Group sizes where the source gives fewer queries than asked for (a small image's proposals)."""
        sizes: list[int] = []
        for size in self.group_sizes:
            sizes.append(min(size, available - sum(sizes)))
        return sizes

    def branches(self, predictions: Predictions, queries: Queries, targets: Sequence[Targets]) -> list[Branch]:
        """One matched branch a group; the first keeps the base's names, the others are `group1`, `group2`, ..."""
        branches, start = list(queries.branches), 0
        for index, size in enumerate(self.sizes(predictions.boxes.shape[2])):
            count = self.repeats[index]
            repeated = [Targets(t.labels.repeat(count), t.boxes.repeat(count, 1), t.name) for t in targets]
            chosen = predictions.select(slice(start, start + size))
            branches.append(Branch(chosen, repeated, f"group{index}" if index else ""))
            start += size
        return branches

    def forward(self, batched_inputs: Sequence[dict[str, Any]]) -> Any:
        """Detectron2's contract, see `DETR.forward`."""
        result = super().forward(batched_inputs)
        if not self.training or not self.average:
            return result
        losses: dict[str, Tensor] = result
        return {k: v if "_enc" in k else v / len(self.group_sizes) for k, v in losses.items()}
