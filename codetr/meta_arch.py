"""Co-DETR: any DETR of the family with collaborative one-to-many heads and their positive queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.modeling import META_ARCH_REGISTRY

from polydet.detr import DETR, ConditionalPosition, LearnedQueries, SampledLabels
from polydet.detr.structures import count_classes

from .collaborators import Collaborators
from .tta import BoxVotingTTA


@META_ARCH_REGISTRY.register()
class CoDETR(DETR):
    """Collaborative hybrid assignments training (arXiv:2211.12860): a `DETR` with `Collaborators`.

    Without heads this is the base detector itself, as it is at inference. What this class adds to the composition are
    strides and positions that follow the base, and other ways to predict.

    Args:
        heads: see `Collaborators`; kept as ``self.collaborators``.
        lambda_1, lambda_2: see `Collaborators`.
        class_counts: training images of each class: classification losses of the decoder count `federated_classes`
            classes a step, see `SampledLabels`. None: all classes.
        collaboration: further arguments of `Collaborators`.
        eval_branch: None, or the head whose detections inference returns (table 11).
        tta: test-time augmentation around inference, or None.
        base: arguments of `DETR`.

    Raises:
        ValueError: a base whose queries have no reference (plain DETR), an unknown head.
    """

    collaborators: Collaborators | None

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
        if class_counts is not None:
            base["label_scope"] = SampledLabels(class_counts, count_classes(base["num_classes"]), federated_classes)
        super().__init__(dim=dim, **base)
        self.eval_branch, self.tta = eval_branch, tta
        if eval_branch is not None and not 0 <= eval_branch < len(heads):
            raise ValueError(f"eval_branch is {eval_branch}, but the model has {len(heads)} auxiliary heads")
        if not len(heads):
            self.collaborators = None
            return
        if isinstance(self.queries, LearnedQueries) and self.queries.reference is None:
            raise ValueError("positive queries need a base whose queries have reference points; plain DETR has none")
        strides = [shape.stride for shape in self.backbone.output_shape().values()]
        derived = self.decoder.query_position
        needs_position = derived is None or isinstance(derived, ConditionalPosition)
        options = {"lambda_1": lambda_1, "lambda_2": lambda_2, "query_position": needs_position}
        options.update(collaboration or {})
        self.add_auxiliary(Collaborators(heads, strides, self.num_classes, dim, **options))

    def without_auxiliary(self) -> CoDETR:
        """Drop everything that only training needs; returns the same model."""
        self.drop_auxiliary()
        self.collaborators, self.eval_branch = None, None
        return self

    def forward(self, batched_inputs: Sequence[dict[str, Any]]) -> Any:
        """Detectron2's contract, see `DETR.forward`; `gt_masks` of the instances feed a Mask R-CNN head."""
        if self.training:
            return super().forward(batched_inputs)
        return self.detect(batched_inputs) if self.tta is None else self.tta(self.detect, batched_inputs)

    def detect(self, batched_inputs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Inference without test-time augmentation."""
        if self.eval_branch is None:
            found: list[dict[str, Any]] = super().forward(batched_inputs)
            return found
        assert self.collaborators is not None
        images = self.preprocess(batched_inputs)
        return self.collaborators.detections(self.eval_branch, images, self.encode(images), batched_inputs)
