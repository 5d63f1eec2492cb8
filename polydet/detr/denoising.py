"""Denoising queries: ground truth with noise, to be rebuilt (DN-DETR; contrastive in DINO)."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polydet.layers import cxcywh_to_xyxy, inverse_sigmoid, mean_over_processes, xyxy_to_cxcywh

from .structures import DenoisingQueries, Targets, count_classes

EPS = 1e-3  # of the authors' inverse sigmoid: noised corners may cross or leave the image


class Denoising(nn.Module):
    """Makes groups of noised objects.

    Contrastive groups (DINO, sec. 3.3) hold, for each object, a positive whose corners move by less than
    `box_noise` times half its size, and a negative that moves further, to be called background. Plain groups
    (DN-DETR) hold positives whose centre moves within the box and whose size changes by up to `box_noise`.
    Images with fewer objects than the largest of the batch are filled up with zero queries, which count as background
    in contrastive groups and are left out of the loss in plain ones, as in the authors' codes.

    Args:
        num_classes: a number or a label space; None: no table, a class has the content that the label head gives it.
        num_queries: with contrastive groups: pairs in all; the number of groups is this over the most objects.
        num_groups: with plain groups: their number.
        label_noise: chance that a query is given a random class.
        box_noise: see above. indicator: DN-DETR: the last content channel is 1.
        see_matching: whether denoising queries may see the other queries.
        normalizer: what the denoising losses are divided by, at least 1; `groups` depends on the most objects of a
            process's images. "pairs": positive pairs, averaged over processes (Co-DINO); "objects": objects averaged
            over processes, times this process's groups (DINO); "local": this process's own pairs (DN-DETR). With one
            process they are the same.
    """

    def __init__(
        self,
        num_classes: int | Sized | None,
        dim: int = 256,
        num_queries: int = 100,
        num_groups: int = 5,
        label_noise: float = 0.25,
        box_noise: float = 1.0,
        contrastive: bool = True,
        indicator: bool = False,
        see_matching: bool = True,
        normalizer: Literal["pairs", "objects", "local"] = "pairs",
    ) -> None:
        super().__init__()
        if normalizer not in ("pairs", "objects", "local"):
            raise ValueError(f"normalizer must be pairs, objects or local, got {normalizer!r}")
        self.normalizer = normalizer
        self.num_queries = num_queries
        self.num_groups = num_groups
        self.label_noise = label_noise
        self.box_noise = box_noise
        self.contrastive = contrastive
        self.indicator = indicator
        self.see_matching = see_matching
        self.label_embedding: nn.Embedding | None = None
        if num_classes is not None:
            self.label_embedding = nn.Embedding(count_classes(num_classes), dim - int(indicator))

    def flip(self, labels: Tensor, targets: Sequence[Targets], image: Tensor, num_classes: int) -> Tensor:
        """Random classes for the noised queries: ``[n]`` labels of the objects of image ``[n]`` to ``[n]`` labels, of
        the image's own dataset where its targets say which those are."""
        own = [target.own for target in targets]
        if not len(labels) or all(mask is None for mask in own):
            return torch.randint_like(labels, num_classes)
        every = torch.ones(num_classes, dtype=torch.bool, device=labels.device)
        allowed = torch.stack([every if mask is None else mask for mask in own]).float()
        return torch.multinomial(allowed[image], 1)[:, 0]  # a list of categories would make the GPU wait for its length

    def embed(self, labels: Tensor, table: Tensor) -> Tensor:
        """Content ``[n, C]`` of queries that pretend to be of these classes, of rows of `table` ``[K, C]``."""
        content = F.embedding(labels, table)
        if labels.numel() == 0:  # keep the table in the graph where no image has an object
            content = content + 0.0 * table.sum()
        return F.pad(content, (0, 1), value=1.0) if self.indicator else content

    def forward(self, targets: Sequence[Targets], contents: Tensor | None = None) -> DenoisingQueries:
        """Denoising queries of a batch; none (``D = 0``) where no image has an object.

        Args:
            contents: ``[K, C]``, what the detector's label head has for a class (`LabelHead.contents`), for one without
                a table of its own (`num_classes` None).
        """
        table = contents if self.label_embedding is None else self.label_embedding.weight
        if table is None:
            raise ValueError("denoising without num_classes needs a label head whose classes have contents")
        counts = [len(t) for t in targets]
        most = max(counts, default=0)
        groups = self._groups(most)
        device = targets[0].boxes.device
        labels = torch.cat([t.labels for t in targets])
        boxes = torch.cat([t.boxes for t in targets])
        image = torch.cat([torch.full((n,), i, device=device) for i, n in enumerate(counts)])
        target = torch.cat([torch.arange(n, device=device) for n in counts])
        kinds = 2 if self.contrastive else 1
        copies = groups * kinds
        # copy c of an object is query (c * most + target): group by group, positives before negatives
        copy = torch.arange(copies, device=device).repeat_interleave(len(labels))
        image_of, labels_of, target_of = (t.repeat(copies) for t in (image, labels, target))
        query = copy * most + target_of
        negative = (copy % kinds) == 1
        noisy_labels = self._noise_labels(labels_of, targets, image_of, len(table))
        noisy_boxes = self._noise_boxes(boxes.repeat(copies, 1), negative)
        content = self.embed(noisy_labels, table)
        shape = (len(targets), copies * most)
        padded = content.new_zeros(*shape, content.shape[-1])
        references = boxes.new_full((*shape, 4), 0.5)
        padded = padded.index_put((image_of, query), content) if len(labels) else _attach(padded, content)
        references[image_of, query] = noisy_boxes
        weight = None
        if not self.contrastive:
            weight = boxes.new_zeros(*shape, 1)
            weight[image_of, query] = 1.0
        # by place rather than by `negative`: a mask of bools would make the GPU wait
        positives = [t.view(copies, len(labels))[::kinds].flatten() for t in (image_of, query, target_of)]
        divisor = self._divisor(sum(counts), groups, device)
        return DenoisingQueries(
            padded, references, kinds * most, positives[0], positives[1], positives[2], weight, divisor
        )

    def _divisor(self, objects: int, groups: int, device: torch.device) -> Tensor:
        if self.normalizer == "objects":
            return mean_over_processes(float(objects), device=device) * groups
        pairs = float(objects * groups)
        if self.normalizer == "pairs":
            return mean_over_processes(pairs, device=device)
        return torch.full((), max(pairs, 1.0), device=device)

    def _groups(self, most: int) -> int:
        if not self.contrastive:
            return self.num_groups
        return max(1, self.num_queries // max(most, 1))

    def _noise_labels(self, labels: Tensor, targets: Sequence[Targets], image: Tensor, num_classes: int) -> Tensor:
        if self.label_noise <= 0:
            return labels
        flipped = torch.rand(labels.shape, device=labels.device) < self.label_noise
        return torch.where(flipped, self.flip(labels, targets, image, num_classes), labels)

    def _noise_boxes(self, boxes: Tensor, negative: Tensor) -> Tensor:
        """cxcywh to noised cxcywh inside the image."""
        if self.box_noise <= 0:
            return boxes
        half = boxes[:, 2:].repeat(1, 2) * 0.5
        if self.contrastive:
            sign = torch.randint_like(boxes, 2) * 2 - 1
            size = torch.rand_like(boxes) + negative[:, None].to(boxes.dtype)
            corners = cxcywh_to_xyxy(boxes) + sign * size * half * self.box_noise
            return inverse_sigmoid(xyxy_to_cxcywh(corners.clamp(0, 1)), EPS).sigmoid()
        noise = (torch.rand_like(boxes) * 2 - 1) * self.box_noise
        reach = torch.cat((half[:, :2], boxes[:, 2:]), dim=-1)
        return inverse_sigmoid(boxes + noise * reach, EPS).sigmoid()


def _attach(padded: Tensor, content: Tensor) -> Tensor:
    return padded + content.sum()
