"""ScaleDet (Chen et al., 2023): one detector for the labels of many datasets, classified by text."""

from collections.abc import Sequence
from typing import Any, Literal

from detectron2.modeling import META_ARCH_REGISTRY, Backbone
from detectron2.modeling.meta_arch import GeneralizedRCNN
from detectron2.utils.events import get_event_storage

from polydet.text import LabelSpace, TextEncoder, Vocabulary, VocabularyState
from scaledet.cascade import TextCascadeROIHeads
from scaledet.centernet import CenterNetProposals


@META_ARCH_REGISTRY.register()
class ScaleDet(VocabularyState, GeneralizedRCNN):
    """CenterNet2 whose classifiers compare regions with the text embeddings of all datasets' labels.

    Detectron2's contract: in training a dict of weighted losses, otherwise ``[{"instances": Instances}]`` with
    ``pred_boxes`` (xyxy, pixels of the original image), ``scores`` and ``pred_classes`` (index into ``vocabulary``).
    Text embeddings are constants and are not part of a checkpoint; the fingerprint of the vocabulary is.

    Args:
        backbone: bottom-up network and pyramid.
        proposal_generator: first stage.
        roi_heads: second stage.
        label_space: which joint label belongs to which dataset.
        text_encoder: encodes the labels and the words given to ``set_vocabulary``; not part of a checkpoint.
        templates: prompts averaged for every label.
        vocabulary: the joint labels in the order of ``label_space``, encoded already; then ``templates`` is not read
            and ``text_encoder`` may be None.
        image_counts: images per joint label, for ``federated="sampled"`` only.
        on_vocabulary_mismatch: see ``VocabularyState``.
        pixel_mean, pixel_std, input_format: of the images, RGB by default.
        vis_period: iterations between pictures of ground truth and proposals; 0 for none.

    Raises:
        ValueError: vocabulary and label space that do not name the same labels, or neither vocabulary nor encoder.
    """

    def __init__(
        self,
        *,
        backbone: Backbone,
        proposal_generator: CenterNetProposals,
        roi_heads: TextCascadeROIHeads,
        label_space: LabelSpace,
        text_encoder: TextEncoder | None = None,
        templates: str | Sequence[str] = "clip80",
        vocabulary: Vocabulary | None = None,
        image_counts: Sequence[int] | None = None,
        on_vocabulary_mismatch: Literal["error", "transfer"] = "error",
        pixel_mean: Sequence[float] = (123.675, 116.28, 103.53),
        pixel_std: Sequence[float] = (58.395, 57.12, 57.375),
        input_format: str = "RGB",
        vis_period: int = 0,
    ) -> None:
        if vocabulary is None:
            if text_encoder is None:
                raise ValueError("ScaleDet needs a text_encoder or a vocabulary")
            vocabulary = Vocabulary.build(label_space.names, text_encoder, templates, unique=False)
        if tuple(vocabulary.names) != tuple(label_space.names):
            raise ValueError(
                f"the vocabulary has {len(vocabulary)} names and the label space {len(label_space)} labels; "
                "they must be the same names in the same order"
            )
        if on_vocabulary_mismatch not in ("error", "transfer"):
            raise ValueError(f"on_vocabulary_mismatch must be 'error' or 'transfer', not {on_vocabulary_mismatch!r}")
        super().__init__(
            backbone=backbone,
            proposal_generator=proposal_generator,
            roi_heads=roi_heads,
            pixel_mean=tuple(pixel_mean),
            pixel_std=tuple(pixel_std),
            input_format=input_format,
            vis_period=vis_period,
        )
        self.train_vocabulary = self.vocabulary = vocabulary
        self.label_space = label_space
        self.on_vocabulary_mismatch = on_vocabulary_mismatch
        self.keep_encoder(text_encoder)
        roi_heads.set_labels(vocabulary.embeddings, label_space=label_space, image_counts=image_counts)

    def classify_by(self, vocabulary: Vocabulary | None) -> None:
        """See ``VocabularyState``."""
        words = self.train_vocabulary if vocabulary is None else vocabulary
        self.roi_heads.set_vocabulary(words.embeddings.to(self.device))

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """See ``GeneralizedRCNN.forward``; training also reads each image's ``dataset_name`` and verified labels."""
        if not self.training:
            return self.inference(batched_inputs)
        images = self.preprocess_image(batched_inputs)
        targets = [x["instances"].to(self.device) for x in batched_inputs]
        features = self.backbone(images.tensor)
        proposals, losses = self.proposal_generator(images, features, targets)
        image_labels = self.roi_heads.label_loss.image_labels(batched_inputs)
        _, roi_losses = self.roi_heads(images, features, proposals, targets, image_labels)
        if self.vis_period > 0 and get_event_storage().iter % self.vis_period == 0:
            self.visualize_training(batched_inputs, proposals)
        return {**losses, **roi_losses}
