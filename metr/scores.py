"""From queries with a category each to detections."""

from __future__ import annotations

from torch import Tensor, nn


class CategoryScores(nn.Module):
    """Every query with its own category.

    Args:
        num: detections kept, the best first.
        category_power: the score is multiplied by this power of the probability that the category is in the image;
            0: not at all (algorithm 1).
    """

    def __init__(self, num: int = 100, category_power: float = 0.0) -> None:
        super().__init__()
        self.num = num
        self.category_power = category_power

    def forward(
        self, logits: Tensor, boxes: Tensor, classes: Tensor, presence: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``[Q, 1]`` logits, ``[Q, 4]`` boxes to scores ``[n]``, classes ``[n]``, boxes ``[n, 4]`` (as given)."""
        scores = logits[:, 0].float().sigmoid()
        if self.category_power and presence is not None:
            scores = scores * presence.float().pow(self.category_power)
        scores, best = scores.topk(min(self.num, len(scores)))
        return scores, classes[best], boxes[best]
