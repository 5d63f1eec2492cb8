"""Everything that Co-DETR adds to its base: one-to-many heads on the encoder and their positive queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn

from polydet.detr import DETR, Auxiliary, Branch, Memory, Predictions, Queries, TokenLayout, TrainingStep
from polydet.detr.structures import count_classes

from .adapter import MultiScaleAdapter
from .heads import AuxiliaryHead, Coordinates, build_head
from .positive_queries import HeadEmbedding, NegativePool, PositiveQueries, QueryGroup, sample_group

CO_BRANCH = "co"  # branches of positive queries are called co0, co1, ...


class Collaborators(Auxiliary):
    """The auxiliary part of any DETR whose queries have reference points (arXiv:2211.12860).

    Training adds, for each head, its loss times `lambda_2` times the number of decoder layers (eq. 6 puts it inside
    the sum over layers), and `lambda_1` times the decoder's losses on the head's positive queries, one decoder pass
    a head. Inference does without.

    Args:
        heads: names, or mappings `{"name", "loss", "queries", "options"}`: whether the head's loss is used, whether
            its positives become queries, and what differs from the head's defaults.
        in_strides: of the encoder's maps.
        num_classes: a number or a label space.
        lambda_1, lambda_2: of eq. 6.
        max_queries, min_queries, pad_with_negatives, negatives: see `sample_group`.
        query_position, query_feature, head_embedding: see `PositiveQueries`.
    """

    name = "collaborators"

    def __init__(
        self,
        heads: Sequence[str | Mapping[str, Any]],
        in_strides: Sequence[int],
        num_classes: int | Sized,
        dim: int = 256,
        *,
        lambda_1: float = 1.0,
        lambda_2: float = 2.0,
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
        self.lambda_1, self.lambda_2 = lambda_1, lambda_2
        self.names = [entry["name"] for entry in entries]
        self.with_loss = [entry["loss"] for entry in entries]
        order = accumulate(int(e["queries"]) for e in entries)
        self.query_index = [n - 1 if e["queries"] else None for n, e in zip(order, entries)]
        self.adapter = MultiScaleAdapter(in_strides, dim)
        self.heads = nn.ModuleList(
            build_head(e["name"], dim, count_classes(num_classes), self.adapter.strides, **e["options"])
            for e in entries
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

    def forward(self, detector: DETR, step: TrainingStep) -> tuple[dict[str, Tensor], list[Branch]]:
        """Losses of the heads, and the branches of their positive queries.

        Raises:
            ValueError: a Mask R-CNN head and images without `gt_masks`.
        """
        instances = [x["instances"].to(detector.device) for x in step.inputs]
        sizes = image_sizes(step.images)
        pyramid = self.adapter(step.memory.maps())
        losses: dict[str, Tensor] = {}
        branches = []
        for i, query_index in enumerate(self.query_index):
            head_losses, coordinates = self.assign(i, pyramid, instances, sizes)
            factor = self.lambda_2 * detector.decoder.num_layers
            losses.update({name: value * factor for name, value in head_losses.items()})
            if query_index is not None and self.queries is not None:
                group = self.sample(coordinates, sizes)
                queries = self.queries(query_index, group)
                if detector.class_heads.one_category:
                    queries = detector.class_heads.address(queries, group.classes())
                predictions = decode_group(detector, queries, group, step.memory)
                branches.append(group.branch(predictions, f"{CO_BRANCH}{i}", self.lambda_1))
        return losses, branches

    def assign(
        self, index: int, pyramid: list[Tensor], instances: list[Instances], sizes: list[tuple[int, int]]
    ) -> tuple[dict[str, Tensor], list[Coordinates]]:
        """Losses of head `index` named after it (none where its loss is off) and its coordinates.

        Args:
            instances: ground truth in the pixels of the network's input, on the model's device.
        """
        losses, coordinates = self.heads[index](pyramid, instances, sizes)
        if not self.with_loss[index]:
            return {}, coordinates
        prefix = f"loss_aux{index}_{self.names[index]}_"
        return {prefix + name.removeprefix("loss_"): value for name, value in losses.items()}, coordinates

    def sample(self, coordinates: Sequence[Coordinates], sizes: list[tuple[int, int]]) -> QueryGroup:
        """See `sample_group`."""
        limits = (self.max_queries, self.min_queries)
        return sample_group(coordinates, sizes, *limits, self.pad_with_negatives, self.negatives)

    def detections(
        self, index: int, images: ImageList, memory: Memory, batched_inputs: Sequence[dict[str, Any]]
    ) -> list[dict[str, Instances]]:
        """Detections of head `index` in the pixels of each original image (table 11)."""
        sizes = image_sizes(images)
        head = self.heads[index]
        assert isinstance(head, AuxiliaryHead)
        found = head.inference(self.adapter(memory.maps()), sizes)
        results = []
        for x, instances, (height, width) in zip(batched_inputs, found, sizes):
            scaled = detector_postprocess(instances, int(x.get("height", height)), int(x.get("width", width)))
            results.append({"instances": scaled})
        return results


def parse_head(entry: str | Mapping[str, Any]) -> dict[str, Any]:
    """A head's name or mapping with all keys filled in. Raises ValueError for a key that does not exist."""
    given = {"name": entry} if isinstance(entry, str) else dict(entry)
    defaults: dict[str, Any] = {"name": None, "loss": True, "queries": True, "options": {}}
    unknown = set(given) - set(defaults)
    if unknown or not given.get("name"):
        raise ValueError(f"an auxiliary head is a name or a mapping with the keys {list(defaults)}, got {given}")
    return {**defaults, **given}


def decode_group(detector: DETR, queries: Queries, group: QueryGroup, memory: Memory) -> Predictions:
    """Decode positive queries; where rows do not count, image by image, so that no query sees them."""
    if group.complete:
        return detector.decode(queries, memory)
    size = group.boxes.shape[1]
    logits, boxes = [], []
    for i, count in enumerate(group.rows):  # an image without positives decodes one row that does not count
        found = detector.decode(queries.of_image(i, max(count, 1)), memory_of(memory, i))
        missing = (0, 0, 0, size - found.logits.shape[2])
        logits.append(F.pad(found.logits, missing))
        boxes.append(F.pad(found.boxes, missing, value=0.5))
    return Predictions(torch.cat(logits, dim=1), torch.cat(boxes, dim=1), classes=queries.classes)


def image_sizes(images: ImageList) -> list[tuple[int, int]]:
    """Height and width of each image before padding, as integers."""
    return [(int(height), int(width)) for height, width in images.image_sizes]


def memory_of(memory: Memory, index: int) -> Memory:
    """The memory of one image of the batch."""
    rows, layout = slice(index, index + 1), memory.layout
    mask = None if layout.padding_mask is None else layout.padding_mask[rows]
    alone = TokenLayout(layout.spatial_shapes, mask, layout.valid_ratios[rows])
    return Memory(memory.tokens[rows], memory.position[rows], alone)
