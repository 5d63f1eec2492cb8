"""ScaleDet: A Scalable Multi-Dataset Object Detector (Chen et al., 2023)."""

from scaledet.cascade import TextCascadeROIHeads
from scaledet.centernet import CenterNetHead, CenterNetProposals
from scaledet.label_loss import LabelLoss
from scaledet.meta_arch import ScaleDet
from scaledet.vocabulary_state import VocabularyMismatch

__all__ = [
    "CenterNetHead",
    "CenterNetProposals",
    "LabelLoss",
    "ScaleDet",
    "TextCascadeROIHeads",
    "VocabularyMismatch",
]
