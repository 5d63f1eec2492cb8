"""Dense heads: one-stage detectors, ATSS, region proposals, assignments as pure functions."""

from .assignment import BACKGROUND, IGNORED, atss_assign, inside_image
from .atss import ATSSHead, centerness
from .detector import OneStageDetector
from .head import DenseHead
from .rpn import FlooredMatcher, PaddingRPN
from .structures import DensePredictions, DenseTargets, dense_targets

__all__ = [
    "BACKGROUND",
    "IGNORED",
    "ATSSHead",
    "DenseHead",
    "DensePredictions",
    "DenseTargets",
    "FlooredMatcher",
    "OneStageDetector",
    "PaddingRPN",
    "atss_assign",
    "centerness",
    "dense_targets",
    "inside_image",
]
