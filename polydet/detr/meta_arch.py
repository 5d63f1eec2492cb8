"""The DETR meta-architecture: the family's members and the papers' detectors are compositions of its parts."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from typing import Any

import torch
from detectron2.modeling import META_ARCH_REGISTRY, Backbone
from detectron2.structures import ImageList
from torch import Tensor, nn

from polydet.layers import MLP, SinePositionEncoding, xyxy_to_cxcywh

from .auxiliary import Auxiliary, TrainingStep
from .criterion import Criterion
from .decoder import Decoder
from .denoising import Denoising
from .encoder import Encoder
from .label_heads import ClosedLabels, LabelHead
from .label_scope import LabelScope
from .postprocess import to_instances
from .queries import QuerySource, TwoStageQueries, with_denoising
from .structures import Assignment, Branch, Memory, Predictions, Queries, Targets, count_classes, token_layout


@META_ARCH_REGISTRY.register()
class DETR(nn.Module):
    """A detection transformer from its parts.

    The steps of `forward` are methods that parts call again: `encode` (images to memory), `build_queries`, `decode`
    (queries to predictions; any number of times with any queries), `branches` (what the criterion is called with),
    `losses` and `detections`. A subclass is needed only where that flow itself changes.

    Args:
        backbone: gives maps of `dim` channels, from high to low resolution (a `ChannelMapper` around a backbone).
        position: encoding of image positions.
        queries: where queries come from. denoising: noised objects in training, or None.
        num_classes: a number or a label space (`len` of it).
        labels: how queries are classified; None: by `ClosedLabels` of `num_classes` and `background_class`, one more
            logit for background (softmax losses).
        label_scope: which labels count in the losses of an image; None: all.
        auxiliary: parts of training, kept as ``self.<name>`` of each.
        share_heads: one class and one box head for all decoder layers (DETR, DAB, DINO) or one each.
        box_prior: box heads start with a zero last layer (all but DETR); its size biases start at this value
            (-2 in Deformable-DETR, DAB and DN without two stages); None: plain initialisation (DETR).
        level_embed: a learned vector per level is added to the positions (deformable members).
        pixel_mean, pixel_std: of RGB in 0..255, ``[3]``.

    Raises:
        ValueError: parts that do not go together; names them.
    """

    def __init__(
        self,
        backbone: Backbone,
        position: SinePositionEncoding,
        encoder: Encoder,
        queries: QuerySource,
        decoder: Decoder,
        criterion: Criterion,
        postprocess: nn.Module,
        num_classes: int | Sized,
        denoising: Denoising | None = None,
        dim: int = 256,
        background_class: bool = False,
        share_heads: bool = True,
        box_prior: float | None = 0.0,
        level_embed: bool = True,
        labels: LabelHead | None = None,
        label_scope: LabelScope | None = None,
        auxiliary: Sequence[Auxiliary] = (),
        pixel_mean: Sequence[float] = (123.675, 116.28, 103.53),
        pixel_std: Sequence[float] = (58.395, 57.12, 57.375),
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.position = position
        self.encoder = encoder
        self.queries = queries
        self.denoising = denoising
        self.decoder = decoder
        self.criterion = criterion
        self.postprocess = postprocess
        self.num_classes = count_classes(num_classes)
        num_levels = len(backbone.output_shape())
        self.level_embed = nn.Parameter(torch.randn(num_levels, dim)) if level_embed else None
        num_heads = 1 if share_heads else decoder.num_layers
        self.class_heads = ClosedLabels(self.num_classes, background_class) if labels is None else labels
        self.class_heads.add_heads(dim, num_heads)
        if self.criterion.extra and type(self.class_heads).embeddings is LabelHead.embeddings:
            raise ValueError(
                f"criterion.extra ({', '.join(self.criterion.extra)}) compares queries with texts, which "
                f"{type(self.class_heads).__name__} does not embed: use a label head of words (TextLabels)"
            )
        if isinstance(queries, TwoStageQueries) and queries.class_head is None:
            queries.class_head = self.class_heads.new_head(dim)
        self.box_heads = nn.ModuleList(MLP(dim, dim, 4, 3) for _ in range(num_heads))
        self._reset_boxes(box_prior)
        self.label_scope = LabelScope() if label_scope is None else label_scope
        self.auxiliary: tuple[str, ...] = ()
        for part in auxiliary:
            self.add_auxiliary(part)
        self.pixel_mean: Tensor
        self.pixel_std: Tensor
        self.register_buffer("pixel_mean", torch.tensor(list(pixel_mean)).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(list(pixel_std)).view(3, 1, 1), persistent=False)

    def add_auxiliary(self, part: Auxiliary) -> None:
        """Keep a part of training as ``self.<its name>``. Raises ValueError for a name that is taken."""
        if hasattr(self, part.name):
            raise ValueError(f"a DETR has something called {part.name!r} already: it takes one such auxiliary part")
        self.add_module(part.name, part)
        self.auxiliary += (part.name,)

    def drop_auxiliary(self) -> None:
        """Forget everything that only training needs."""
        for name in self.auxiliary:
            delattr(self, name)
        self.auxiliary = ()

    def _reset_boxes(self, box_prior: float | None) -> None:
        if box_prior is None:
            return
        box_heads: Any = self.box_heads
        for index, head in enumerate(box_heads):
            head.zero_last()
            if index == 0 or not self.decoder.refine:
                nn.init.constant_(head.layers[-1].bias[2:], box_prior)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.pixel_mean.device

    def forward(self, batched_inputs: Sequence[dict[str, Any]]) -> Any:
        """Detectron2's contract.

        Args:
            batched_inputs: dicts with `image` ``[3, H, W]`` RGB 0..255, `height`, `width` of the original, and in
                training `instances` with `gt_boxes` (xyxy pixels of `image`) and `gt_classes`.

        Returns:
            training: dict of weighted scalar losses; inference: list of ``{"instances": Instances}`` with boxes in
            the original image's pixels.

        Raises:
            ValueError: an image without pixels or with values that are not finite, a box without area, a label
                outside the label space, or a matching cost that is not finite; names the image.
        """
        images = self.preprocess(batched_inputs)
        targets = self.prepare_targets(batched_inputs) if self.training else None
        memory = self.encode(images)
        queries = self.build_queries(memory, targets)
        predictions = self.decode(queries, memory, last_only=targets is None)
        if targets is None:
            return self.detections(predictions, batched_inputs)
        return self.losses(TrainingStep(batched_inputs, images, targets, memory, queries, predictions))

    def losses(self, step: TrainingStep) -> dict[str, Tensor]:
        """Weighted scalar losses of a step, those of the auxiliary parts among them."""
        branches = self.branches(step.predictions, step.queries, step.targets)
        losses: dict[str, Tensor] = {}
        for name in self.auxiliary:
            own, further = getattr(self, name)(self, step)
            losses.update(own)
            branches += further
        for branch in self.label_scope.restrict(branches, step.targets):
            losses.update(self.criterion(branch))
        return losses

    def preprocess(self, batched_inputs: Sequence[dict[str, Any]]) -> ImageList:
        """Normalise and pad to one size. Raises ValueError for an image that is empty or not finite."""
        images = []
        for x in batched_inputs:
            image = x["image"]
            if image.numel() == 0:
                raise ValueError(f"image {image_name(x)} has no pixels: shape {tuple(image.shape)}")
            # integers are always finite; mappers that return real numbers pay for one look on the host
            if image.is_floating_point() and not torch.isfinite(image).all():
                raise ValueError(f"image {image_name(x)} has pixels that are NaN or infinite: check its file or mapper")
            image = image.to(self.device, non_blocking=True)
            images.append((image - self.pixel_mean) / self.pixel_std)
        return ImageList.from_tensors(images, self.backbone.size_divisibility)

    def prepare_targets(self, batched_inputs: Sequence[dict[str, Any]]) -> list[Targets]:
        """Labels and normalised boxes of the batch. Raises ValueError for a box without area or a foreign label."""
        targets = []
        for x in batched_inputs:
            instances = x["instances"]
            height, width = instances.image_size
            boxes, labels = instances.gt_boxes.tensor, instances.gt_classes
            self._check_targets(boxes, labels, image_name(x))
            boxes = boxes.to(self.pixel_mean.dtype)
            boxes = xyxy_to_cxcywh(boxes / boxes.new_tensor([width, height, width, height]))
            labels, boxes = (t.to(self.device, non_blocking=True) for t in (labels, boxes))
            targets.append(self.label_scope.mark(Targets(labels, boxes, image_name(x)), x))
        return targets

    def _check_targets(self, boxes: Tensor, labels: Tensor, name: str) -> None:
        if boxes.is_cuda or len(labels) == 0:  # the loader's tensors are on the host, where looking is free
            return
        if not bool(((boxes[:, 2:] > boxes[:, :2]).all(-1) & torch.isfinite(boxes).all(-1)).all()):
            raise ValueError(f"image {name} has a box without area or with NaN: filter its annotations")
        if int(labels.min()) < 0 or int(labels.max()) >= self.num_classes:
            foreign = int(labels.max()) if int(labels.min()) >= 0 else int(labels.min())
            raise ValueError(
                f"image {name} has label {foreign}, but the model has {self.num_classes} classes: "
                "build both from the same dataset cards"
            )

    def encode(self, images: ImageList) -> Memory:
        """Padded images to encoded tokens; `memory.maps()` gives them level by level."""
        return self.encoder(self.tokens(images))

    def tokens(self, images: ImageList) -> Memory:
        """The encoder's input: flattened backbone maps with positions."""
        maps = list(self.backbone(images.tensor).values())
        shapes = [(m.shape[-2], m.shape[-1]) for m in maps]
        layout, masks = token_layout(shapes, self.padding_mask(images), images.tensor)
        positions = []
        for level, (feature, mask) in enumerate(zip(maps, masks)):
            encoded = self.position(feature, mask).flatten(2).transpose(1, 2)
            if self.level_embed is not None:
                encoded = encoded + self.level_embed[level]
            positions.append(encoded)
        tokens = torch.cat([m.flatten(2).transpose(1, 2) for m in maps], dim=1)
        return Memory(tokens, torch.cat(positions, dim=1), layout)

    def padding_mask(self, images: ImageList) -> Tensor | None:
        """``[B, H, W]`` True on padding; None where nothing is padded."""
        height, width = images.tensor.shape[-2:]
        sizes = [(int(h), int(w)) for h, w in images.image_sizes]
        if all(size == (height, width) for size in sizes):
            return None
        valid = torch.tensor(sizes).to(images.tensor.device, non_blocking=True)
        rows = torch.arange(height, device=valid.device) >= valid[:, :1]
        columns = torch.arange(width, device=valid.device) >= valid[:, 1:]
        return rows[:, :, None] | columns[:, None, :]

    def build_queries(self, memory: Memory, targets: Sequence[Targets] | None) -> Queries:
        """Queries of the batch; with `targets`, the denoising queries come first."""
        queries = self.queries(memory, targets, self.class_heads)
        if self.denoising is not None and targets is not None:
            queries.denoising = self.denoising(targets, self.class_heads.contents())
            queries = with_denoising(queries, self.denoising.see_matching)
        return queries

    def decode(self, queries: Queries, memory: Memory, last_only: bool = False) -> Predictions:
        """Run the decoder and read logits and boxes from every layer, or from the last."""
        out = self.decoder(queries, memory, self.box_heads)
        start = out.hidden.shape[0] - 1 if last_only else 0
        hidden, boxes = out.hidden[start:], out.boxes[start:]
        predictions = Predictions(self.class_heads(hidden, start, queries), boxes, hidden, queries.classes)
        if self.training and self.criterion.extra:
            predictions.embeddings = self.class_heads.embeddings(hidden, start)
        if queries.category_logits is not None:
            predictions.class_scores = queries.category_logits.detach().float().sigmoid()
        return predictions

    def branches(self, predictions: Predictions, queries: Queries, targets: Sequence[Targets]) -> list[Branch]:
        """What the criterion is called with: matched queries, the query source's own branches, denoising."""
        noised = queries.denoising
        count = 0 if noised is None else noised.num_queries
        branches = [Branch(predictions.select(slice(count, None)), targets), *queries.branches]
        if noised is not None:
            assignment = Assignment.same_for_layers(len(predictions.boxes), noised.image, noised.query, noised.target)
            own = predictions.select(slice(0, count))
            branches.append(Branch(own, targets, "dn", assignment, noised.class_weight, noised.normalizer))
        return branches

    def detections(self, predictions: Predictions, batched_inputs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Detections of the last layer in the pixels of each original image, and where the query source asks which
        categories are in it, ``class_scores`` ``[n]``."""
        results: list[dict[str, Any]] = []
        for i, x in enumerate(batched_inputs):
            height = int(x.get("height", x["image"].shape[-2]))
            width = int(x.get("width", x["image"].shape[-1]))
            scores, classes, chosen = self.postprocess(**predictions.answers(i))
            results.append({"instances": to_instances(scores, classes, chosen, height, width)})
            if predictions.class_scores is not None:
                results[-1]["class_scores"] = predictions.class_scores[i]
        return results


def image_name(x: dict[str, Any]) -> str:
    """How errors call an image: its id and file, as far as the dataset dict has them."""
    named = [f"{key}={x[key]}" for key in ("image_id", "file_name", "dataset_name") if key in x]
    return "(" + ", ".join(named) + ")" if named else "(without image_id and file_name)"
