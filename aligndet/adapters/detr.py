"""DETR and its descendants: one-to-one matching with pseudo-classes, all decoder layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from aligndet.adapters.base import BoxSamples, DetectorAdapter, ViewOutput, projector
from aligndet.contrastive import BACKGROUND
from polydet.detr import DETR, Assignment, Predictions
from polydet.layers import cxcywh_to_xyxy, mean_over_processes


class DETRAdapter(DetectorAdapter):
    """Decoder output -> 256, ReLU, 256; all of the detector's losses, the classes being clusters of proposals.

    Matched queries of all layers are queries of the contrastive loss, unmatched ones background. The proposal that a
    query stands for comes from the matching of the detector's own loss. (The published code matches a second time
    with class costs read at instance labels from cluster logits, which has no meaning.)

    Args:
        detector: with as many classes as there are clusters.
        hidden, dim: channels of the projector.
    """

    groups = {
        "neck": ("backbone.lateral", "backbone.extra"),
        "transformer": ("encoder", "decoder", "queries", "level_embed"),
        "head": ("class_heads", "box_heads"),
    }
    # class layers, the last layers of the box networks, and embeddings of classes
    predictors = (
        "class_heads",
        "box_heads.*.layers.2",
        "queries.class_head",
        "queries.box_head.layers.2",
        "denoising",
    )
    only = {
        "classification": ("class_heads", "queries.class_head"),
        "regression": ("box_heads", "queries.box_head"),
    }
    classification_losses = ("loss_class",)
    copied = ("queries.position", "queries.content")

    def __init__(self, detector: DETR, hidden: int = 256, dim: int = 256) -> None:
        super().__init__(detector)
        self.projector = projector(detector.box_heads[0].layers[0].in_features, hidden, dim)

    def forward(self, views: list[dict[str, Any]], with_losses: bool) -> ViewOutput:
        """See :meth:`DetectorAdapter.forward`."""
        detector = self.detector
        targets = detector.prepare_targets(views)
        memory = detector.encode(detector.preprocess(views))
        queries = detector.build_queries(memory, targets)
        matched, *others = detector.branches(detector.decode(queries, memory), queries, targets)
        assignment = detector.criterion.matcher(matched.predictions, targets)
        samples = self.embed(matched.predictions, assignment, views)
        losses: dict[str, Tensor] = {}
        if with_losses:
            count = mean_over_processes(float(sum(len(t) for t in targets)), device=detector.device)
            for branch in (replace(matched, assignment=assignment, normalizer=count), *others):
                losses.update(detector.criterion(branch))
        return ViewOutput([samples], losses)

    @torch.no_grad()
    def ranked_boxes(self, views: list[dict[str, Any]], limit: int) -> list[Tensor]:
        """Queries that are least background: by softmax, or by the largest logit where every class has a sigmoid."""
        detector = self.detector
        memory = detector.encode(detector.preprocess(views))
        predictions = detector.decode(detector.build_queries(memory, None), memory, last_only=True)
        boxes = []
        for view, logits, normalised in zip(views, predictions.logits[-1], predictions.boxes[-1]):
            height, width = view["image"].shape[-2:]
            foreground = logits[:, : detector.num_classes]
            with_background = logits.shape[1] > detector.num_classes
            score = foreground.logsumexp(1) - logits.logsumexp(1) if with_background else foreground.amax(1)
            best = score.topk(min(limit, len(score))).indices
            boxes.append(cxcywh_to_xyxy(normalised[best]) * normalised.new_tensor([width, height, width, height]))
        return boxes

    def embed(self, predictions: Predictions, assignment: Assignment, views: list[dict[str, Any]]) -> BoxSamples:
        """Embeddings of all queries of all layers, ``[L * B * Q, D]``, and the proposal of each."""
        hidden = predictions.hidden
        assert hidden is not None  # the meta-architecture always hands it on
        ids = [view["instances"].gt_ids.to(hidden.device) for view in views]
        starts = torch.tensor([0] + [len(i) for i in ids[:-1]], device=hidden.device).cumsum(0)
        labels = torch.full(hidden.shape[:3], BACKGROUND, dtype=torch.int64, device=hidden.device)
        rows = torch.cat(ids)[starts[assignment.image] + assignment.target]
        labels[assignment.layer, assignment.image, assignment.query] = rows
        return BoxSamples(self.projector(hidden.flatten(0, 2)), labels.flatten())
