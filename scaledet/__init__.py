"""ScaleDet: A Scalable Multi-Dataset Object Detector (Chen et al., 2023)."""

from polydet.text import VocabularyMismatch
from scaledet.cascade import TextCascadeROIHeads
from scaledet.centernet import CenterNetHead, CenterNetProposals
from scaledet.classifier import embedding_dim
from scaledet.label_loss import LabelLoss, joint_image_counts
from scaledet.meta_arch import ScaleDet
from scaledet.query_labels import HardLabels, SoftLabels

from . import checkpoint  # noqa: F401  registers the layout of Detic's files

__all__ = [
    "CenterNetHead",
    "CenterNetProposals",
    "HardLabels",
    "LabelLoss",
    "ScaleDet",
    "SoftLabels",
    "TextCascadeROIHeads",
    "VocabularyMismatch",
    "embedding_dim",
    "joint_image_counts",
]
