"""Co-DETR: any DETR of the family with collaborative one-to-many heads and their positive queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn

from polydet.detr import (
    DETR,
    Branch,
    ConditionalPosition,
    LearnedQueries,
    Memory,
    Predictions,
    Queries,
    Targets,
    TokenLayout,
)
from polydet.layers.federated import sample_federated_labels

from .adapter import MultiScaleAdapter
from .heads import AuxiliaryHead, Coordinates, build_head
from .positive_queries import HeadEmbedding, NegativePool, PositiveQueries, QueryGroup, sample_group
from .tta import BoxVotingTTA

CO_BRANCH = "co"  # branches of positive queries are called co0, co1, ...


class Collaborators(nn.Module):
    """Everything that Co-DETR adds to its base, and that inference leaves out.

    Args:
        heads: names, or mappings `{"name", "loss", "queries", "options"}`: whether the head's loss is used, whether
            its positives become queries, and what differs from the head's defaults.
        in_strides: of the encoder's maps.
        max_queries, min_queries, pad_with_negatives, negatives: see `sample_group`.
        query_position, query_feature, head_embedding: see `PositiveQueries`.
    """

    def __init__(
        self,
        heads: Sequence[str | Mapping[str, Any]],
        in_strides: Sequence[int],
        num_classes: int,
        dim: int = 256,
        *,
        max_queries: int = 300,
        min_queries: int = 9,
        pad_with_negatives: bool = True,
        negatives: NegativePool = "all",
        query_position: bool = False,
        query_feature: bool = True,
        head_embedding: HeadEmbedding = "none",
    ) -> None:
        super().__init__()
        entries = [parse_head(entry) for entry in heads]
        self.names = [entry["name"] for entry in entries]
        self.with_loss = [entry["loss"] for entry in entries]
        order = accumulate(int(e["queries"]) for e in entries)
        self.query_index = [n - 1 if e["queries"] else None for n, e in zip(order, entries)]
        self.adapter = MultiScaleAdapter(in_strides, dim)
        self.heads = nn.ModuleList(
            build_head(e["name"], dim, num_classes, self.adapter.strides, **e["options"]) for e in entries
        )
        for head, used in zip(self.heads, self.with_loss):
            head.requires_grad_(used)
        if not any(self.with_loss) and not query_feature:  # then nothing reads the pyramid with gradient
            self.adapter.requires_grad_(False)
        count = sum(e["queries"] for e in entries)
        self.queries = PositiveQueries(count, dim, query_position, query_feature, head_embedding) if count else None
        self.max_queries, self.min_queries = max_queries, min_queries
        if negatives not in ("all", "background"):
            raise ValueError(f"negatives must be all or background, got {negatives!r}")
        self.pad_with_negatives, self.negatives = pad_with_negatives, negatives

    def assign(
        self, index: int, pyramid: list[Tensor], instances: list[Instances], sizes: list[tuple[int, int]]
    ) -> tuple[dict[str, Tensor], list[Coordinates]]:
        """Losses of head `index` named after it (none where its loss is off) and its coordinates."""
        losses, coordinates = self.heads[index](pyramid, instances, sizes)
        if not self.with_loss[index]:
            return {}, coordinates
        prefix = f"loss_aux{index}_{self.names[index]}_"
        return {prefix + name.removeprefix("loss_"): value for name, value in losses.items()}, coordinates

    def sample(self, coordinates: Sequence[Coordinates], sizes: list[tuple[int, int]]) -> QueryGroup:
        """See `sample_group`."""
        limits = (self.max_queries, self.min_queries)
        return sample_group(coordinates, sizes, *limits, self.pad_with_negatives, self.negatives)


def parse_head(entry: str | Mapping[str, Any]) -> dict[str, Any]:
    """A head's name or mapping with all keys filled in. Raises ValueError for a key that does not exist."""
    given = {"name": entry} if isinstance(entry, str) else dict(entry)
    defaults: dict[str, Any] = {"name": None, "loss": True, "queries": True, "options": {}}
    unknown = set(given) - set(defaults)
    if unknown or not given.get("name"):
        raise ValueError(f"an auxiliary head is a name or a mapping with the keys {list(defaults)}, got {given}")
    return {**defaults, **given}


@META_ARCH_REGISTRY.register()
class CoDETR(DETR):
    """Collaborative hybrid assignments training (arXiv:2211.12860).

    Training adds, for each head, its loss times `lambda_2` times the number of decoder layers (eq. 6 puts it inside
    the sum over layers), and `lambda_1` times the decoder's losses on the head's positive queries, one decoder pass
    a head. Without heads this is the base detector itself. Inference runs the base detector.

    Args:
        heads: see `Collaborators`.
        lambda_1, lambda_2: of eq. 6.
        class_counts: training images of each class: classification losses of the decoder count `federated_classes`
            classes a step, those present and others drawn by count ** 0.5 (FedLoss, for LVIS). None: all classes.
        collaboration: further arguments of `Collaborators`.
        eval_branch: None, or the head whose detections inference returns (table 11).
        tta: test-time augmentation around inference, or None.
        base: arguments of `DETR`.

    Raises:
        ValueError: a base whose queries have no reference (plain DETR), an unknown head.
    """

    class_sampling: Tensor | None

    def __init__(
        self,
        *,
        heads: Sequence[str | Mapping[str, Any]] = (),
        lambda_1: float = 1.0,
        lambda_2: float = 2.0,
        collaboration: Mapping[str, Any] | None = None,
        eval_branch: int | None = None,
        tta: BoxVotingTTA | None = None,
        class_counts: Sequence[float] | None = None,
        federated_classes: int = 50,
        dim: int = 256,
        **base: Any,
    ) -> None:
        super().__init__(dim=dim, **base)
        self.lambda_1, self.lambda_2, self.eval_branch = lambda_1, lambda_2, eval_branch
        self.federated_classes, self.tta = federated_classes, tta
        weights = None if class_counts is None else torch.tensor([float(c) for c in class_counts]).sqrt()
        if weights is not None and len(weights) != self.num_classes:
            raise ValueError(f"class_counts has {len(weights)} entries for {self.num_classes} classes")
        self.register_buffer("class_sampling", weights, persistent=False)
        self.collaborators: Collaborators | None = None
        if len(heads):
            self.collaborators = self._build_collaborators(heads, dim, collaboration or {})
        if eval_branch is not None and not 0 <= eval_branch < len(heads):
            raise ValueError(f"eval_branch is {eval_branch}, but the model has {len(heads)} auxiliary heads")

    def _build_collaborators(
        self, heads: Sequence[str | Mapping[str, Any]], dim: int, options: Mapping[str, Any]
    ) -> Collaborators:
        if isinstance(self.queries, LearnedQueries) and self.queries.reference is None:
            raise ValueError("positive queries need a base whose queries have reference points; plain DETR has none")
        strides = [shape.stride for shape in self.backbone.output_shape().values()]
        derived = self.decoder.query_position
        needs_position = derived is None or isinstance(derived, ConditionalPosition)
        return Collaborators(heads, strides, self.num_classes, dim, **{"query_position": needs_position, **options})

    def without_auxiliary(self) -> CoDETR:
        """Drop everything that only training needs; returns the same model."""
        self.collaborators, self.eval_branch = None, None
        return self

    def forward(self, batched_inputs: Sequence[dict[str, Any]]) -> Any:
        """Detectron2's contract, see `DETR.forward`; `gt_masks` of the instances feed a Mask R-CNN head.

        Raises:
            ValueError: also for a Mask R-CNN head without masks.
        """
        if not self.training:
            return self.detect(batched_inputs) if self.tta is None else self.tta(self.detect, batched_inputs)
        if self.collaborators is None and self.class_sampling is None:
            return super().forward(batched_inputs)
        images = self.preprocess(batched_inputs)
        targets = self.prepare_targets(batched_inputs)
        memory = self.encode(images)
        queries = self.build_queries(memory, targets)
        branches = self.branches(self.decode(queries, memory), queries, targets)
        losses: dict[str, Tensor] = {}
        if self.collaborators is not None:
            instances = [x["instances"].to(self.device) for x in batched_inputs]
            losses, positive = self.collaborate(self.collaborators, memory, instances, images)
            branches += positive
        for branch in self.federate(branches, targets):
            factor = self.lambda_1 if branch.name.startswith(CO_BRANCH) else 1.0
            losses.update({name: value * factor for name, value in self.criterion(branch).items()})
        return losses

    def detect(self, batched_inputs: Sequence[dict[str, Any]]) -> list[dict[str, Instances]]:
        """Inference without test-time augmentation."""
        if self.eval_branch is not None:
            return self.branch_detections(self.eval_branch, batched_inputs)
        return super().forward(batched_inputs)

    def collaborate(
        self, parts: Collaborators, memory: Memory, instances: list[Instances], images: ImageList
    ) -> tuple[dict[str, Tensor], list[Branch]]:
        """Losses of the auxiliary heads, and the branches of their positive queries.

        Args:
            memory: the encoder's output.
            instances: ground truth in the pixels of the network's input, on the model's device.
        """
        sizes = image_sizes(images)
        pyramid = parts.adapter(memory.maps())
        losses: dict[str, Tensor] = {}
        branches = []
        for i, query_index in enumerate(parts.query_index):
            head_losses, coordinates = parts.assign(i, pyramid, instances, sizes)
            factor = self.lambda_2 * self.decoder.num_layers
            losses.update({name: value * factor for name, value in head_losses.items()})
            if query_index is not None and parts.queries is not None:
                group = parts.sample(coordinates, sizes)
                predictions = self.decode_group(parts.queries(query_index, group), group, memory)
                branches.append(group.branch(predictions, f"{CO_BRANCH}{i}"))
        return losses, branches

    def decode_group(self, queries: Queries, group: QueryGroup, memory: Memory) -> Predictions:
        """Decode positive queries; where rows do not count, image by image, so that no query sees them."""
        if group.complete:
            return self.decode(queries, memory)
        images = []
        for i, count in enumerate(group.rows):
            rows = slice(0, max(count, 1))  # an image without positives decodes one row that does not count
            alone = Queries(
                queries.content[i : i + 1, rows],
                group.boxes[i : i + 1, rows],
                position=None if queries.position is None else queries.position[i : i + 1, rows],
            )
            images.append(self.decode(alone, memory_of(memory, i)))
        size = group.boxes.shape[1]
        logits = [F.pad(p.logits, (0, 0, 0, size - p.logits.shape[2])) for p in images]
        boxes = [F.pad(p.boxes, (0, 0, 0, size - p.boxes.shape[2]), value=0.5) for p in images]
        return Predictions(torch.cat(logits, dim=1), torch.cat(boxes, dim=1))

    def federate(self, branches: list[Branch], targets: Sequence[Targets]) -> list[Branch]:
        """Restrict the classification of decoder branches to the classes of this step (FedLoss)."""
        if self.class_sampling is None:
            return branches
        present = torch.cat([t.labels for t in targets])
        chosen = sample_federated_labels(present, self.class_sampling, self.federated_classes)
        weight = torch.zeros_like(self.class_sampling)
        weight[chosen] = 1.0
        return [
            b
            if b.name == "enc"
            else replace(b, class_weight=weight if b.class_weight is None else b.class_weight * weight)
            for b in branches
        ]

    def branch_detections(self, index: int, batched_inputs: Sequence[dict[str, Any]]) -> list[dict[str, Instances]]:
        """Detections of auxiliary head `index` in the pixels of each original image (table 11)."""
        parts = self.collaborators
        assert parts is not None  # checked with eval_branch
        images = self.preprocess(batched_inputs)
        sizes = image_sizes(images)
        head = parts.heads[index]
        assert isinstance(head, AuxiliaryHead)
        found = head.inference(parts.adapter(self.encode(images).maps()), sizes)
        results = []
        for x, instances, (height, width) in zip(batched_inputs, found, sizes):
            scaled = detector_postprocess(instances, int(x.get("height", height)), int(x.get("width", width)))
            results.append({"instances": scaled})
        return results


def image_sizes(images: ImageList) -> list[tuple[int, int]]:
    """Height and width of each image before padding, as integers."""
    return [(int(height), int(width)) for height, width in images.image_sizes]


def memory_of(memory: Memory, index: int) -> Memory:
    """The memory of one image of the batch."""
    rows, layout = slice(index, index + 1), memory.layout
    mask = None if layout.padding_mask is None else layout.padding_mask[rows]
    alone = TokenLayout(layout.spatial_shapes, mask, layout.valid_ratios[rows])
    return Memory(memory.tokens[rows], memory.position[rows], alone)
