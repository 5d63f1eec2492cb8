"""Images of several sizes answered as each would be alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

__all__ = ["SameSize", "answer_by_size"]

Answers = list[dict[str, Any]]


def answer_by_size(
    model: Callable[[list[dict[str, Any]]], Answers], batched_inputs: Sequence[dict[str, Any]]
) -> Answers:
    """Detectron2's inference contract, one call of the model for each size among the images.

    A batch of several sizes is padded to the largest, and padding changes answers: group norm takes its statistics
    over it, a convolution behind the first layer no longer sees zeros beyond the border, windows of a Swin reach into
    it. So the papers' models train; their papers test image by image.

    Args:
        model: answers a list of as many dicts.
        batched_inputs: dicts with ``image`` ``[C, H, W]``; those without one are answered together.

    Returns:
        one dict an image, in the order of ``batched_inputs``.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for place, item in enumerate(batched_inputs):
        image = item.get("image")
        groups.setdefault(() if image is None else tuple(image.shape[-2:]), []).append(place)
    if len(groups) <= 1:
        return model(list(batched_inputs))
    answers: list[Any] = [None] * len(batched_inputs)
    for places in groups.values():
        for place, answer in zip(places, model([batched_inputs[i] for i in places]), strict=True):
            answers[place] = answer
    return answers


class SameSize(nn.Module):
    """A model that answers a batch as `answer_by_size` does; for inference only."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.training = model, model.training

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Answers:
        """See `answer_by_size`."""
        return answer_by_size(self.model, batched_inputs)
