"""DetCLIPv2 (Yao et al., 2023): ATSS that compares regions with words, trained on boxes, phrases and captions."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
from detectron2.modeling import META_ARCH_REGISTRY, Backbone
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, ImageList
from torch import Tensor
from torchvision.ops import box_area, clip_boxes_to_image

from detclipv2.alignment import alignment_loss, concept_targets, select_columns, unique_concepts
from detclipv2.contrastive import WordRegionLoss, classification_loss, word_region_loss
from detclipv2.definitions import Definitions, enrich
from detclipv2.head import AlignmentHead
from detclipv2.regions import RegionSelection, objectness, select_regions
from detclipv2.words import BatchWords, encode_batch
from polydet.dense import DensePredictions, OneStageDetector, inside_image
from polydet.text import OpenVocabulary, TextTower, Vocabulary, VocabularyMismatch, clean_name, pack_text, unpack_text

logger = logging.getLogger(__name__)

TASKS = ("detection", "grounding", "pairs", "classification")


@META_ARCH_REGISTRY.register()
class DetCLIPv2(OpenVocabulary, OneStageDetector):
    """Open-vocabulary ATSS.

    Detectron2's contract: in training a dict of weighted losses, otherwise ``[{"instances": Instances}]`` with
    ``pred_boxes`` (xyxy, pixels of the original image), ``scores`` and ``pred_classes`` (index into ``vocabulary``).
    A training batch holds one ``task`` and is made by the mappers of ``detclipv2.concepts``.

    Args:
        backbone: maps at the head's strides.
        head: embeds anchors.
        text_tower: texts to unit rows of the head's width.
        in_features: see ``OneStageDetector``.
        vocabulary: names to detect until ``set_vocabulary`` is called.
        definitions: what follows a class name, in training and testing; None for names alone.
        template: of a name with its definition.
        max_gathered: most concepts an anchor is compared with; those of this process's images are always among them.
        selection, classification_selection: regions that stand for an image without boxes.
        pairs: settings of the contrastive loss.
        pairs_weight: lambda, of the contrastive loss and of the classification loss.
        classification_temperature: of the cross entropy over class names.
        checkpointing: compute the similarities of anchors again in the backward pass.
        pixel_mean, pixel_std: RGB.

    Raises:
        ValueError: head and text tower of different widths.
    """

    # earlier checkpoints name in the head what its text classifier holds now
    renamed: Mapping[str, str] = {"head.bias": "head.words.bias", "head.log_scale": "head.words.log_scale"}

    def __init__(
        self,
        backbone: Backbone,
        head: AlignmentHead,
        text_tower: TextTower,
        in_features: Sequence[str] | None = None,
        *,
        vocabulary: Sequence[str] = (),
        definitions: Definitions | None = None,
        template: str = "{name}, {definition}",
        max_gathered: int | None = 1000,
        selection: RegionSelection | None = None,
        classification_selection: RegionSelection | None = None,
        pairs: WordRegionLoss | None = None,
        pairs_weight: float = 0.1,
        classification_temperature: float = 0.5,
        checkpointing: bool = False,
        pixel_mean: Sequence[float] = (123.675, 116.28, 103.53),
        pixel_std: Sequence[float] = (58.395, 57.12, 57.375),
    ) -> None:
        super().__init__(backbone, head, in_features, pixel_mean=pixel_mean, pixel_std=pixel_std)
        if text_tower.dim != head.num_classes:
            raise ValueError(f"the head embeds in {head.num_classes} dimensions, the text tower in {text_tower.dim}")
        self.text_tower = text_tower
        self.definitions, self.template = definitions, template
        self.max_gathered, self.checkpointing = max_gathered, checkpointing
        self.selection = selection or RegionSelection()
        self.classification_selection = classification_selection or RegionSelection(k=1)
        self.pairs, self.pairs_weight = pairs or WordRegionLoss(), pairs_weight
        self.classification_temperature = classification_temperature
        self.counts: Counter[str] = Counter()  # images per task, captions without nouns
        self.default_vocabulary = tuple(vocabulary)
        self.vocabulary: tuple[str, ...] = self.default_vocabulary
        self._given: Tensor | None = None
        self._cached: tuple[Any, Tensor] | None = None

    # words

    @property
    def words_space(self) -> str:
        """See ``OpenVocabulary``."""
        return self.text_tower.id

    def use_words(self, words: Vocabulary | tuple[str, ...] | None) -> None:
        """See ``OpenVocabulary``; words are encoded when they are looked for, with their definitions as in training."""
        if isinstance(words, Vocabulary):
            self.vocabulary, self._given = words.names, words.embeddings
            return
        if words is not None:
            _warn_of_repeats(words)
        self.vocabulary, self._given = self.default_vocabulary if words is None else words, None

    @contextmanager
    def looking_for(self, names_or_vocabulary: Sequence[str] | Vocabulary) -> Iterator[None]:
        """Inside the block the model detects other words; afterwards what it detected before."""
        before = self.vocabulary, self._given
        self.set_vocabulary(names_or_vocabulary)
        try:
            yield
        finally:
            self.vocabulary, self._given = before

    def vocabulary_rows(self) -> Tensor:
        """Embeddings of the current vocabulary, `[n, D]`; encoded again only when words or weights have changed.

        Raises:
            ValueError: there is no vocabulary.
        """
        if not self.vocabulary:
            raise ValueError("the model has no words to look for: call set_vocabulary([...]) first")
        if self._given is not None:
            return self._given.to(self.device)
        return self.encode_words([self.sentence(name) for name in self.vocabulary])

    def export_words(self, names: Sequence[str]) -> tuple[Vocabulary, dict[str, Any]]:
        """Words for a model file: their embeddings, the sentences that were encoded, and the definitions in them."""
        sentences = [self.sentence(name) for name in names]
        found = {} if self.definitions is None else {name: self.definitions(name) for name in names}
        vocabulary = Vocabulary(tuple(names), (self.template,), self.text_tower.id, self.encode_words(sentences).cpu())
        return vocabulary, {"sentences": sentences, "definitions": found}

    def portable(self, node: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
        """The config of this model in a model file, where it detects `names` until it is told others."""
        return {**node, "vocabulary": list(names)}

    def encode_words(self, sentences: Sequence[str]) -> Tensor:
        """Unit rows `[n, D]` without gradient; in eval mode the last call's are kept while the weights stay the same.

        Weights that are loaded or averaged show in their version; fused optimisers do not raise it, see `train`.
        """
        weights = tuple((id(p), p._version) for p in self.text_tower.parameters())
        key = (tuple(sentences), weights)
        if self._cached is None or self._cached[0] != key:
            rows = self.text_tower.encode(sentences).to(self.device)
            if self.training:
                return rows
            self._cached = (key, rows)
        return self._cached[1].to(self.device)

    def train(self, mode: bool = True) -> Self:
        """See `nn.Module.train`; before training the kept embeddings of words are forgotten."""
        if mode:
            self._cached = None
        return super().train(mode)

    def sentence(self, name: str) -> str:
        """What is encoded for a class name."""
        return enrich(name, self.definitions, self.template)

    # Detectron2's contract

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """See the class."""
        images = self.preprocess_image(batched_inputs)
        maps = self.backbone(images.tensor)
        features = [maps[name] for name in self.head_in_features]
        predictions = self.head(features)
        anchors = self.head.anchors(features)
        if self.training:
            task = task_of(batched_inputs)
            self.counts[task] += len(batched_inputs)
            if task in ("detection", "grounding"):
                return self.box_losses(task, batched_inputs, images, predictions, anchors)
            return self.caption_losses(task, batched_inputs, images, predictions, anchors)
        scored = self.head.similarity(predictions, self.vocabulary_rows())
        results = self.head.inference(scored, anchors, images.image_sizes)
        return [
            {"instances": detector_postprocess(found, item.get("height", size[0]), item.get("width", size[1]))}
            for found, item, size in zip(results, batched_inputs, images.image_sizes)
        ]

    def box_losses(
        self,
        task: str,
        items: list[dict[str, Any]],
        images: ImageList,
        predictions: DensePredictions,
        anchors: list[Tensor],
    ) -> dict[str, Tensor]:
        """Alignment loss, and for detection data GIoU and centerness: boxes of grounding data are too inaccurate."""
        instances = [item["instances"].to(self.device) for item in items]
        concepts = [item["concepts"] for item in items]
        words = encode_batch(concepts, self.text_tower, self.sentence if task == "detection" else str)
        names = select_columns(unique_concepts(concepts), words.names, self.max_gathered)
        column = {name: i for i, name in enumerate(names)}
        gt = [concept_targets(x.gt_concepts, c, column, len(names)) for x, c in zip(instances, concepts)]
        targets = self.head.assign(predictions, anchors, instances, images.image_sizes)
        loss = alignment_loss(
            torch.cat(predictions.logits, dim=1),
            words.select(names),
            self.head.words.scale,
            self.head.words.bias,
            targets,
            gt,
            self.head.focal_alpha,
            self.head.focal_gamma,
            self.checkpointing,
        )
        loss = self.head.class_weight * loss
        if task == "grounding":
            return {"loss_align_grounding": loss}
        return {"loss_align": loss, **self.head.localisation_losses(predictions, anchors, targets)}

    def caption_losses(
        self,
        task: str,
        items: list[dict[str, Any]],
        images: ImageList,
        predictions: DensePredictions,
        anchors: list[Tensor],
    ) -> dict[str, Tensor]:
        """Contrastive loss of image-text pairs, or cross entropy over class names."""
        concepts = [item["concepts"] for item in items]
        words = encode_batch(concepts, self.text_tower)
        settings = self.selection if task == "pairs" else self.classification_selection
        regions, mask = self.select(concepts, words, images, predictions, anchors, settings)
        if task == "classification":
            target = torch.tensor([words.index[names[0]] for names in concepts], device=self.device)
            loss = classification_loss(regions[:, 0], words.rows, target, self.classification_temperature)
            return {"loss_class": self.pairs_weight * loss}
        self._count_bare([names[0] for names in concepts if len(names) == 1])
        loss = word_region_loss(regions, mask, words.rows, words.members(), words.first, self.pairs)
        return {"loss_words": self.pairs_weight * loss}

    def _count_bare(self, captions: Sequence[str]) -> None:
        if captions and not self.counts["without_nouns"]:
            logger.warning("captions without noun phrases stand for themselves, the first one: %r", captions[0])
        self.counts["without_nouns"] += len(captions)

    # regions

    def select(
        self,
        concepts: Sequence[Sequence[str]],
        words: BatchWords,
        images: ImageList,
        predictions: DensePredictions,
        anchors: list[Tensor],
        settings: RegionSelection,
    ) -> tuple[Tensor, Tensor]:
        """Embeddings of each image's regions, `[B, k, D]` with gradient, and which of them exist, `[B, k]` bool.

        For the matching `largest_box` the largest region comes first.
        """
        own = unique_concepts(concepts)
        column = {name: i for i, name in enumerate(own)}
        rows = words.select(own).detach()
        flat = torch.cat(anchors)
        inside = {size: inside_image(flat, size).nonzero()[:, 0] for size in set(images.image_sizes)}
        embeddings, quality = torch.cat(predictions.logits, dim=1), predictions.flat_quality()
        deltas = predictions.flat_deltas()
        index = torch.zeros(len(concepts), settings.k, dtype=torch.int64, device=self.device)
        mask = torch.zeros_like(index, dtype=torch.bool)
        with torch.no_grad():
            for i, (names, size) in enumerate(zip(concepts, images.image_sizes)):
                valid = inside[size]
                similarity = (embeddings[i, valid].to(rows.dtype) @ rows.T).float() * self.head.words.scale
                mine = [column[name] for name in names]
                centre = None if quality is None else quality[i, valid]
                score = objectness(settings.score, similarity, mine, centre, self.head.words.bias)
                # Boxes.clip would wait for the device, and stop the run where the engine can replay the step
                boxes = clip_boxes_to_image(self.head.decode(deltas[i, valid], flat[valid]), size)
                chosen = select_regions(boxes, score, settings.k, settings.nms_threshold, settings.candidates)
                if self.pairs.matching == "largest_box":
                    chosen = chosen[box_area(boxes[chosen]).argsort(descending=True, stable=True)]
                index[i, : len(chosen)] = valid[chosen]
                mask[i, : len(chosen)] = True
        # one look-up for the batch: one an image would each have a gradient as large as all embeddings
        regions = embeddings[torch.arange(len(index), device=self.device)[:, None], index]
        return regions.masked_fill(~mask[..., None], 0.0), mask

    @torch.no_grad()
    def best_regions(self, item: dict[str, Any], sentences: Sequence[str]) -> tuple[Tensor, Tensor]:
        """The region that fits each sentence best (appendix D).

        Args:
            item: model input of one image.
            sentences: n texts, encoded as they are.

        Returns:
            boxes `[n, 4]` xyxy in pixels of the original image and probabilities `[n]`.
        """
        images = self.preprocess_image([item])
        maps = self.backbone(images.tensor)
        features = [maps[name] for name in self.head_in_features]
        predictions, anchors = self.head(features), torch.cat(self.head.anchors(features))
        valid = inside_image(anchors, images.image_sizes[0])
        logits = self.head.similarity(predictions, self.encode_words(sentences)).flat_logits()[0, valid]
        value, best = logits.max(dim=0)
        boxes = Boxes(self.head.decode(predictions.flat_deltas()[0, valid][best], anchors[valid][best]))
        height, width = images.image_sizes[0]
        boxes.clip((height, width))
        boxes.scale(item.get("width", width) / width, item.get("height", height) / height)
        return boxes.tensor, value.sigmoid()

    # checkpoints

    def get_extra_state(self) -> Tensor:
        """The text tower's id, see ``pack_text``."""
        return pack_text(self.text_tower.id)

    def set_extra_state(self, state: Any) -> None:
        """Compare the text tower's id.

        Raises:
            VocabularyMismatch: the checkpoint was trained with another text encoder.
        """
        if isinstance(state, Tensor) and not torch.equal(state.cpu(), self.get_extra_state()):
            raise VocabularyMismatch(
                f"the checkpoint was trained with the text encoder {unpack_text(state)!r}, the model has "
                f"{self.text_tower.id!r}: regions and texts would not meet. Build the model with the checkpoint's."
            )


def task_of(items: Sequence[dict[str, Any]]) -> str:
    """The task of a batch.

    Raises:
        ValueError: images without a task (made by another mapper), of an unknown one or of several.
    """
    tasks = {item.get("task") for item in items}
    if len(tasks) != 1 or not tasks <= set(TASKS):
        raise ValueError(
            f"a batch of DetCLIPv2 holds one task of {', '.join(TASKS)}, this one holds {sorted(map(str, tasks))}: "
            "wrap the mapper of dataloader.train in one of detclipv2.concepts"
        )
    return tasks.pop()  # type: ignore[return-value]


def _warn_of_repeats(names: Sequence[str]) -> None:
    twice = [name for name, count in Counter(map(clean_name, names)).items() if count > 1]
    if twice:
        logger.warning("%d names are in the vocabulary more than once: %s", len(twice), ", ".join(twice[:5]))
