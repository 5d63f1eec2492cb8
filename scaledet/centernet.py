"""First stage: CenterNet2's class-agnostic heatmap and boxes on P3 to P7 as a proposal generator."""

import math
from collections.abc import Sequence

import torch
from detectron2.layers import batched_nms, get_norm
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from scaledet.centernet_targets import Cells, centernet_targets
from scaledet.label_loss import count_normaliser


def heatmap_focal_loss(
    logits: Tensor,
    heatmap: Tensor,
    positives: Tensor,
    alpha: float = 0.25,
    gamma: float = 2.0,
    beta: float = 4.0,
    clamp: float = 1e-4,
    ignore_above: float = 0.85,
) -> tuple[Tensor, Tensor]:
    """Focal loss of CenterNet's heatmap.

    Args:
        logits: ``[M]``.
        heatmap: ``[M]`` targets in [0, 1]; a negative counts by ``(1 - target) ** beta``.
        positives: int64 ``[P]`` indices into M, may repeat.
        clamp: probabilities are kept this far from 0 and 1.
        ignore_above: negatives at least this probable do not count: they may be objects nobody labelled.

    Returns:
        sums of the positive part (times alpha) and of the negative part (times 1 - alpha).
    """
    p = logits.sigmoid().clamp(clamp, 1 - clamp)
    at = p[positives]
    positive = -(at.log() * (1 - at).pow(gamma)).sum()
    negative = -((1 - p).log() * p.pow(gamma) * (1 - heatmap).pow(beta) * (p < ignore_above)).sum()
    return alpha * positive, (1 - alpha) * negative


def ltrb_giou_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """``1 - GIoU`` of boxes that share a point, given as (left, top, right, bottom) distances ``[Q, 4]`` from it.

    The IoU inside is ``(intersection + 1) / (union + 1)``, as in CenterNet2.  Returns ``[Q]``.
    """
    inner = torch.minimum(predicted, target)
    outer = torch.maximum(predicted, target)

    def area(box: Tensor) -> Tensor:
        return (box[:, 0] + box[:, 2]) * (box[:, 1] + box[:, 3])

    intersection, hull = area(inner), area(outer)
    union = area(predicted) + area(target) - intersection
    return 1 - (intersection + 1) / (union + 1) + (hull - union) / hull


class CenterNetHead(nn.Module):
    """One tower for all levels: convs + GroupNorm + ReLU, then a heatmap conv and a box conv.

    Args:
        in_channels: of the pyramid and of the tower.
        num_levels: pyramid levels; each has a learnable scale on its boxes.
        num_convs: depth of the tower.
        norm: Detectron2 norm name, empty for none.
        prior: initial probability of a cell.
        box_bias: distance from a cell to the sides of its box at the start, in strides (CenterNet2: 8); it should
            follow ``sizes_of_interest``.
    """

    def __init__(
        self,
        in_channels: int = 256,
        num_levels: int = 5,
        num_convs: int = 4,
        norm: str = "GN",
        prior: float = 0.01,
        box_bias: float = 8.0,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(num_convs):
            layers.append(nn.Conv2d(in_channels, in_channels, 3, padding=1))
            layers += [get_norm(norm, in_channels), nn.ReLU()] if norm else [nn.ReLU()]
        self.tower = nn.Sequential(*layers)
        self.heatmap = nn.Conv2d(in_channels, 1, 3, padding=1)
        self.box = nn.Conv2d(in_channels, 4, 3, padding=1)
        self.scales = nn.Parameter(torch.ones(num_levels))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        nn.init.constant_(self.heatmap.bias, -math.log((1 - prior) / prior))  # type: ignore[arg-type]
        nn.init.constant_(self.box.bias, box_bias)  # type: ignore[arg-type]

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Maps ``[B, C, H_l, W_l]`` -> heatmap logits ``[B, M]`` and boxes ``[B, M, 4]`` in strides, M over levels."""
        logits, boxes = [], []
        for feature, scale in zip(features, self.scales):
            shared = self.tower(feature)
            logits.append(self.heatmap(shared).flatten(1))
            boxes.append((scale * self.box(shared)).relu().flatten(2).transpose(1, 2))
        return torch.cat(logits, 1), torch.cat(boxes, 1)


class CenterNetProposals(nn.Module):
    """CenterNet2's first stage on Detectron2's proposal generator interface.

    Runs in float32 whatever autocast the caller is in.

    Args:
        head: the network.
        in_features, strides: pyramid levels.
        sizes_of_interest: range of half the box diagonal (pixels) for which a level is positive.
        min_overlap, min_radius: of the Gaussian on the heatmap.
        alpha, gamma, beta, clamp, ignore_above: see ``heatmap_focal_loss``.
        positive_weight, negative_weight, box_weight: loss weights.
        score_thresh: least heatmap probability of a proposal.
        pre_nms_topk, post_nms_topk: proposals per level before and per image after NMS, (training, inference).
        nms_thresh: over all levels together.
    """

    def __init__(
        self,
        head: CenterNetHead,
        in_features: Sequence[str] = ("p3", "p4", "p5", "p6", "p7"),
        strides: Sequence[int] = (8, 16, 32, 64, 128),
        sizes_of_interest: Sequence[tuple[float, float]] = (
            (0, 80),
            (64, 160),
            (128, 320),
            (256, 640),
            (512, math.inf),
        ),
        min_overlap: float = 0.8,
        min_radius: float = 4.0,
        alpha: float = 0.25,
        gamma: float = 2.0,
        beta: float = 4.0,
        clamp: float = 1e-4,
        ignore_above: float = 0.85,
        positive_weight: float = 0.5,
        negative_weight: float = 0.5,
        box_weight: float = 1.0,
        score_thresh: float = 1e-4,
        pre_nms_topk: tuple[int, int] = (4000, 1000),
        post_nms_topk: tuple[int, int] = (2000, 256),
        nms_thresh: float = 0.9,
    ) -> None:
        super().__init__()
        if not len(in_features) == len(strides) == len(sizes_of_interest):
            raise ValueError(
                f"in_features, strides and sizes_of_interest name {len(in_features)}, {len(strides)} and "
                f"{len(sizes_of_interest)} levels"
            )
        self.head = head
        self.in_features, self.strides = list(in_features), list(strides)
        self.sizes_of_interest = [tuple(size) for size in sizes_of_interest]
        self.min_overlap, self.min_radius = min_overlap, min_radius
        self.focal = {"alpha": alpha, "gamma": gamma, "beta": beta, "clamp": clamp, "ignore_above": ignore_above}
        self.positive_weight, self.negative_weight, self.box_weight = positive_weight, negative_weight, box_weight
        self.score_thresh = score_thresh
        self.pre_nms_topk, self.post_nms_topk, self.nms_thresh = tuple(pre_nms_topk), tuple(post_nms_topk), nms_thresh

    def forward(
        self, images: ImageList, features: dict[str, Tensor], gt_instances: list[Instances] | None = None
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """Proposals and, in training, losses.

        Args:
            images: only ``image_sizes`` is read.
            features: the pyramid.
            gt_instances: ``gt_boxes`` (xyxy, pixels of the network's input); training only.

        Returns:
            Per image ``proposal_boxes`` (not clipped to the image) and ``objectness_logits``, which holds
            ``sqrt(probability)``; weighted losses ``loss_centernet_{pos,neg,box}``.
        """
        maps = [features[name].float() for name in self.in_features]
        with torch.autocast(maps[0].device.type, enabled=False):
            logits, boxes = self.head(maps)
            cells = Cells.build([(m.shape[-2], m.shape[-1]) for m in maps], self.strides, logits.device)
            losses = {}
            if self.training:
                if gt_instances is None:
                    raise ValueError("training needs gt_instances")
                losses = self.losses(logits, boxes, cells, [x.gt_boxes.tensor for x in gt_instances])
            return self.proposals(logits, boxes, cells, images.image_sizes), losses

    def losses(self, logits: Tensor, boxes: Tensor, cells: Cells, gt_boxes: Sequence[Tensor]) -> dict[str, Tensor]:
        """Weighted losses from logits ``[B, M]``, boxes ``[B, M, 4]`` (strides) and each image's gt ``[N, 4]``."""
        sizes = torch.tensor(self.sizes_of_interest, dtype=torch.float32, device=logits.device)
        targets = [centernet_targets(gt, cells, sizes, self.min_overlap, self.min_radius) for gt in gt_boxes]
        m = logits.shape[1]
        positives = torch.cat([t.positives + i * m for i, t in enumerate(targets)])
        heatmap = torch.cat([t.heatmap for t in targets])
        predicted = torch.cat([b[t.box_cells] for b, t in zip(boxes, targets)])
        box_loss = ltrb_giou_loss(predicted, torch.cat([t.boxes for t in targets])).sum()
        positive, negative = heatmap_focal_loss(logits.flatten(), heatmap, positives, **self.focal)
        num_positives, num_boxes = count_normaliser([len(positives), len(predicted)], logits.device)
        return {
            "loss_centernet_pos": self.positive_weight * positive / num_positives,
            "loss_centernet_neg": self.negative_weight * negative / num_positives,
            "loss_centernet_box": self.box_weight * box_loss / num_boxes,
        }

    @torch.no_grad()
    def proposals(
        self, logits: Tensor, boxes: Tensor, cells: Cells, image_sizes: Sequence[tuple[int, int]]
    ) -> list[Instances]:
        """Best boxes of each image after NMS over all levels; boxes are at least 0.01 pixel wide and high."""
        mode = 0 if self.training else 1
        bounds = [*cells.starts.tolist(), len(cells.level)]
        strides = cells.strides[cells.level, None]
        results = []
        for image_logits, ltrb, image_size in zip(logits, boxes, image_sizes):
            probability = image_logits.sigmoid()
            usable = (probability > self.score_thresh) & torch.isfinite(ltrb).all(1)
            best = []
            for start, end in zip(bounds, bounds[1:]):
                candidates = usable[start:end].nonzero().squeeze(1) + start
                if len(candidates) > self.pre_nms_topk[mode]:
                    candidates = candidates[probability[candidates].topk(self.pre_nms_topk[mode]).indices]
                best.append(candidates)
            keep = torch.cat(best)
            distances = ltrb[keep] * strides[keep]
            low = cells.centres[keep] - distances[:, :2]
            high = torch.maximum(cells.centres[keep] + distances[:, 2:], low + 0.01)
            xyxy, score = torch.cat([low, high], 1), probability[keep].sqrt()
            order = batched_nms(xyxy, score, torch.zeros_like(keep), self.nms_thresh)[: self.post_nms_topk[mode]]
            results.append(Instances(image_size, proposal_boxes=Boxes(xyxy[order]), objectness_logits=score[order]))
        return results
