"""METR (Hao et al., 2023): a DINO whose queries are told by language which category to look for."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from polydet.detr import DETR, Assignment, Branch, Memory, Predictions, Targets
from polydet.detr.decoder import per_layer
from polydet.detr.meta_arch import image_name
from polydet.detr.postprocess import to_instances
from polydet.detr.queries import with_denoising
from polydet.layers import mean_over_processes
from polydet.text import LabelSpace, TextEncoder, Vocabulary, VocabularyState

from .category_extraction import CategoryExtraction, category_loss
from .denoising import DatasetTargets, LanguageDenoising, true_classes
from .language import DotProduct, LanguageEmbeddings, check_distinct
from .matching import GroupMatcher
from .queries import Categories, CategoryQueries, CategoryQuerySource, choose_categories


@dataclass(eq=False)
class CategoryPredictions(Predictions):
    """Predictions with one logit a query; `classes` ``[B, Q]`` and, where categories were extracted, `presence`
    ``[B, Q]``, the probability that the query's category is in the image, and `class_scores` ``[B, n]``."""

    classes: Tensor | None = None
    presence: Tensor | None = None
    class_scores: Tensor | None = None


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
        self, logits: Tensor, boxes: Tensor, classes: Tensor, presence: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``[Q]`` logits, ``[Q, 4]`` boxes to scores ``[n]``, classes ``[n]``, boxes ``[n, 4]`` (as given)."""
        scores = logits.float().sigmoid()
        if self.category_power and presence is not None:
            scores = scores * presence.float().pow(self.category_power)
        scores, best = scores.topk(min(self.num, len(scores)))
        return scores, classes[best], boxes[best]


@META_ARCH_REGISTRY.register()
class METR(VocabularyState, DETR):
    """DINO with category-assigned queries.

    The category extraction module says which categories are in an image; the best `top_k` of them share the queries,
    and each query answers only for its own. Objects meet queries of their category (`GroupMatcher`).

    Args:
        queries, criterion, postprocess, denoising: the parts of this paper; the criterion's matcher is a
            `GroupMatcher`.
        label_space: the joint labels of the training datasets (``merge="name"``).
        text_encoder: makes the language embeddings, and those of words given to `set_vocabulary`.
        templates: prompts of the language embeddings.
        cem: category extraction module; None (table 4): training takes the true categories and random others,
            inference looks for all categories.
        top_k: categories of an image.
        learnable_text, text_scale: see `LanguageEmbeddings`.
        asl_weight: mu of the asymmetric loss; `asl` its further arguments.
        mask_foreign: in training, only labels of the image's own dataset count; otherwise those of other datasets are
            background (the paper's reading of COCO's loss in table 1).
        federated: "none", or "verified": of an image with verified labels, only those with a box and those that are
            verified to be absent count (not those of which there are only groups, or that were cropped away).
        on_vocabulary_mismatch: see `VocabularyState`.
        base: further arguments of `DETR`.

    Raises:
        ValueError: two joint labels that mean the same, or a criterion without group matching.
    """

    def __init__(
        self,
        *,
        label_space: LabelSpace,
        text_encoder: TextEncoder,
        queries: CategoryQuerySource,
        cem: CategoryExtraction | None,
        denoising: LanguageDenoising | None = None,
        templates: str | Sequence[str] = "photo",
        top_k: int = 20,
        learnable_text: bool = True,
        text_scale: float = 1.0,
        asl_weight: float = 1.0,
        asl: dict[str, Any] | None = None,
        mask_foreign: bool = False,
        federated: Literal["none", "verified"] = "none",
        on_vocabulary_mismatch: Literal["error", "transfer"] = "error",
        dim: int = 256,
        **base: Any,
    ) -> None:
        check_distinct(label_space.names)
        vocabulary = Vocabulary.build(label_space.names, text_encoder, templates)
        super().__init__(queries=queries, denoising=denoising, num_classes=len(vocabulary), dim=dim, **base)
        if not isinstance(self.criterion.matcher, GroupMatcher):
            raise ValueError("METR needs a criterion with a GroupMatcher: its queries have one category each")
        if federated not in ("none", "verified"):
            raise ValueError(f"federated must be 'none' or 'verified', not {federated!r}")
        self.train_vocabulary = self.vocabulary = vocabulary
        self.label_space = label_space
        self.on_vocabulary_mismatch = on_vocabulary_mismatch
        self.keep_encoder(text_encoder)
        heads = ("decoder", "encoder") if cem is None else ("decoder", "encoder", "cem")
        self.language = LanguageEmbeddings(vocabulary, dim, heads, learnable_text, text_scale)
        self.cem = cem
        self.top_k = top_k
        self.asl_weight, self.asl = asl_weight, dict(asl or {})
        self.mask_foreign, self.federated = mask_foreign, federated

    def make_class_head(self, dim: int, num_logits: int) -> nn.Module:
        """The dot-product layer of algorithm 1."""
        return DotProduct(dim)

    def set_vocabulary(self, names_or_vocabulary: Sequence[str] | Vocabulary | None) -> None:
        """Detect these categories from now on; None goes back to those of the training.

        Args:
            names_or_vocabulary: words or a vocabulary. Words that were trained keep what was learned about them and
                need no encoder; others are encoded with the training templates.

        Raises:
            ValueError: no words, an empty one, one given twice, or a vocabulary of another encoder.
        """
        if names_or_vocabulary is None:
            self.vocabulary = self.train_vocabulary
            self.language.use(None)
            return
        vocabulary = self.resolve_vocabulary(names_or_vocabulary)
        self.language.use(vocabulary)
        self.vocabulary = vocabulary

    def resolve_vocabulary(self, names_or_vocabulary: Sequence[str] | Vocabulary | None) -> Vocabulary:
        """See `VocabularyState`; words that were all trained are looked up instead of encoded."""
        words = names_or_vocabulary
        if words is not None and not isinstance(words, str | Vocabulary) and len(words):
            check_distinct(words)
            rows = self.language.rows_of(words)
            if min(rows) >= 0:
                return self.train_vocabulary.select(rows)
        return super().resolve_vocabulary(names_or_vocabulary)

    def forward(self, batched_inputs: Sequence[dict[str, Any]]) -> Any:
        """Detectron2's contract, see `DETR.forward`.

        Training also reads ``dataset_name`` and the verified labels of each image. In inference each output also has
        ``class_scores`` ``[n]``, the probabilities that the categories are in the image (with a `cem`).

        Raises:
            ValueError, RuntimeError: also for training under another vocabulary than that of the training.
        """
        if not self.training:
            return super().forward(batched_inputs)
        if self.language.restricted:
            raise RuntimeError("set_vocabulary() restricts this model; go back with set_vocabulary(None) to train it")
        targets = self.prepare_targets(batched_inputs)
        memory = self.encode(self.preprocess(batched_inputs))
        queries = self.build_queries(memory, targets)
        losses: dict[str, Tensor] = {}
        for branch in self.branches(self.decode(queries, memory), queries, targets):
            losses.update(self.criterion(branch))
        if queries.category_logits is not None:
            known = stack_known(targets, self.num_classes)
            loss = category_loss(queries.category_logits, self._present(targets), known, **self.asl)
            losses["loss_cem"] = self.asl_weight * loss
        return losses

    def prepare_targets(self, batched_inputs: Sequence[dict[str, Any]]) -> list[Targets]:
        """Objects of the batch, and which labels may be said of each image."""
        plain = super().prepare_targets(batched_inputs)
        return [
            DatasetTargets(t.labels, t.boxes, t.name, *self._label_masks(x, t)) for x, t in zip(batched_inputs, plain)
        ]

    def _label_masks(self, x: dict[str, Any], target: Targets) -> tuple[Tensor | None, Tensor | None]:
        """Labels of the image's dataset, and labels known to be present or absent; ``[K]`` bool or None for all."""
        dataset = x.get("dataset_name")
        own = None
        if dataset in self.label_space.datasets:
            own = self._mask(self.label_space.mapping(dataset))
            own[target.labels] = True  # objects that were pasted from an image of another dataset
        elif self.mask_foreign:
            raise ValueError(
                f"image {image_name(x)} is of dataset {dataset!r}, which is not in the label space of "
                f"{list(self.label_space.datasets)}: mask_foreign needs dataset_name"
            )
        known = own if self.mask_foreign else None
        if self.federated == "verified" and x.get("neg_category_ids") is not None:
            verified = self._mask(x["neg_category_ids"])
            verified[target.labels] = True  # a positive one without a box left, a group say, may still be in sight
            known = verified if self.mask_foreign or own is None else verified | ~own
        return own, known

    def _mask(self, labels: Any) -> Tensor:
        mask = torch.zeros(self.num_classes, dtype=torch.bool)
        mask[torch.as_tensor(labels, dtype=torch.int64)] = True
        return mask.to(self.device)

    def _present(self, targets: Sequence[Targets]) -> Tensor:
        """``[B, K]`` bool."""
        present = torch.zeros(len(targets), self.num_classes, dtype=torch.bool, device=self.device)
        for row, target in zip(present, targets):
            row[target.labels] = True
        return present

    def build_queries(self, memory: Memory, targets: Sequence[Targets] | None) -> CategoryQueries:
        """Choose the categories, then queries for them; with `targets`, the denoising queries come first."""
        language = self.language()
        logits, content = None, language[None].expand(len(memory.tokens), -1, -1)
        if self.cem is not None:
            logits, content = self.cem(language, self.language.bias("cem"), memory)
        chosen, counts = self._choose(logits, memory, targets)
        rows = torch.arange(len(chosen), device=chosen.device)[:, None]
        bias = self.language.bias("encoder")[chosen]
        categories = Categories(chosen, counts, content[rows, chosen], language[chosen], bias)
        queries = self.queries(memory, targets, categories, self._num_queries(chosen.shape[1]))
        queries.language, queries.category_logits = language, logits
        if self.denoising is None or targets is None:
            return queries
        queries.denoising = self.denoising(targets, language)
        classes = torch.cat((true_classes(queries.denoising, targets)[0], queries.classes), dim=1)
        noised = with_denoising(queries, self.denoising.see_matching)
        assert isinstance(noised, CategoryQueries)
        return replace(noised, classes=classes)

    def _choose(
        self, logits: Tensor | None, memory: Memory, targets: Sequence[Targets] | None
    ) -> tuple[Tensor, Tensor]:
        batch, n = len(memory.tokens), len(self.language)
        if targets is None:
            if logits is None:
                every = torch.arange(n, device=self.device).expand(batch, -1)
                return every, torch.full((batch,), n, device=self.device)
            return choose_categories(logits.detach().float().sigmoid(), self.top_k)
        scores = torch.rand(batch, n, device=self.device) if logits is None else logits.detach().float().sigmoid()
        allowed = stack_known(targets, n)
        if allowed is not None:  # an image of which nothing is known still needs queries; they get no weight
            allowed = allowed | ~allowed.any(1, keepdim=True)
        return choose_categories(scores, self.top_k, self._present(targets), allowed)

    def _num_queries(self, places: int) -> int:
        """As many as in training, or as many a category where inference looks for all categories."""
        total = self.queries.num_queries
        if self.cem is not None or self.training:
            return total
        return max(1, total // min(self.top_k, places)) * places

    def decode(self, queries: Any, memory: Memory, last_only: bool = False) -> CategoryPredictions:
        """See `DETR.decode`."""
        plain = super().decode(queries, memory, last_only)
        predictions = CategoryPredictions(plain.logits, plain.boxes, plain.hidden, queries.classes)
        if queries.category_logits is not None:
            predictions.class_scores = queries.category_logits.detach().float().sigmoid()
            predictions.presence = predictions.class_scores.gather(1, queries.classes)
        return predictions

    def classify(self, hidden: Tensor, first_layer: int, queries: Any) -> Tensor:
        """Matchability ``[L, B, Q, 1]`` of each query for its category."""
        e = queries.language[queries.classes]
        bias = self.language.bias("decoder")[queries.classes]
        heads = [per_layer(self.class_heads, first_layer + i) for i in range(len(hidden))]
        return torch.stack([head(h, e, bias) for head, h in zip(heads, hidden)])[..., None]

    def branches(self, predictions: Predictions, queries: Any, targets: Sequence[Targets]) -> list[Branch]:
        """Matched queries, the encoder's proposals under the same kind of matching, and denoising."""
        noised, proposals = queries.denoising, queries.proposals
        count = 0 if noised is None else noised.num_queries
        layers = len(predictions.boxes)
        matched, classes = predictions.select(slice(count, None)), queries.classes[:, count:]
        every = Predictions(
            torch.cat((matched.logits, proposals.logits.to(matched.logits.dtype))),
            torch.cat((matched.boxes, proposals.boxes.to(matched.boxes.dtype))),
        )
        assignment = self.criterion.matcher(every, targets, classes)
        self._log_surplus(assignment.surplus)
        # a query has one logit, so every object is of class 0 to the criterion
        binary = [replace(t, labels=torch.zeros_like(t.labels)) for t in targets]
        objects = mean_over_processes(float(sum(len(t) for t in targets)), device=self.device)
        known = stack_known(targets, self.num_classes)
        weight = None if known is None else known.gather(1, classes)[..., None].float()
        rows = {"": range(layers), "enc": range(layers, layers + 1)}
        branches = [
            Branch(p, binary, name, assignment.of_layers(rows[name]), weight, objects)
            for name, p in (("", matched), ("enc", proposals))
        ]
        if noised is not None:
            pairs = Assignment.same_for_layers(layers, noised.image, noised.query, noised.target)
            real = true_classes(noised, targets)[1][..., None].float()
            own = predictions.select(slice(0, count))
            branches.append(Branch(own, binary, "dn", pairs, real, noised.normalizer))
        return branches

    def _log_surplus(self, count: int) -> None:
        """Objects without a query, as ``metr/surplus_objects`` of the run's metrics."""
        with contextlib.suppress(AssertionError):  # outside a trainer there is no storage
            get_event_storage().put_scalar("metr/surplus_objects", count)

    def detections(self, predictions: Predictions, batched_inputs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Detections in the pixels of each original image, and ``class_scores``."""
        assert isinstance(predictions, CategoryPredictions)
        assert predictions.classes is not None
        results: list[dict[str, Any]] = []
        for i, x in enumerate(batched_inputs):
            height = int(x.get("height", x["image"].shape[-2]))
            width = int(x.get("width", x["image"].shape[-1]))
            presence = None if predictions.presence is None else predictions.presence[i]
            scores, classes, boxes = self.postprocess(
                predictions.logits[-1, i, :, 0], predictions.boxes[-1, i], predictions.classes[i], presence
            )
            results.append({"instances": to_instances(scores, classes, boxes, height, width)})
            if predictions.class_scores is not None:
                results[-1]["class_scores"] = predictions.class_scores[i]
        return results


def stack_known(targets: Sequence[Targets], num_classes: int) -> Tensor | None:
    """Labels that count for each image, ``[B, K]`` bool; None: all of them everywhere."""
    masks = [t.known if isinstance(t, DatasetTargets) else None for t in targets]
    if all(mask is None for mask in masks):
        return None
    every = torch.ones(num_classes, dtype=torch.bool, device=targets[0].labels.device)
    return torch.stack([every if mask is None else mask for mask in masks])
