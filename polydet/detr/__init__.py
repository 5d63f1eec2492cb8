"""The DETR family as parts that compose; see docs/detr.md for which parts make which member."""

from .criterion import ClassLoss, Criterion, FocalLoss, QualityFocalLoss, SoftmaxLoss
from .decoder import AnchorPosition, ConditionalPosition, Decoder, ModulatedAnchorPosition
from .decoder_layers import ConditionalDecoderLayer, DecoderLayer, DeformableDecoderLayer
from .denoising import Denoising
from .encoder import DeformableEncoderLayer, Encoder, EncoderLayer
from .matcher import HungarianMatcher
from .meta_arch import DETR
from .postprocess import BestClass, TopK
from .queries import AnchorQueries, LearnedQueries, QuerySource, TwoStageQueries
from .structures import Assignment, Branch, DenoisingQueries, Memory, Predictions, Queries, Targets, TokenLayout

__all__ = [
    "DETR",
    "AnchorPosition",
    "AnchorQueries",
    "Assignment",
    "BestClass",
    "Branch",
    "ClassLoss",
    "ConditionalDecoderLayer",
    "ConditionalPosition",
    "Criterion",
    "Decoder",
    "DecoderLayer",
    "DeformableDecoderLayer",
    "DeformableEncoderLayer",
    "Denoising",
    "DenoisingQueries",
    "Encoder",
    "EncoderLayer",
    "FocalLoss",
    "HungarianMatcher",
    "LearnedQueries",
    "Memory",
    "ModulatedAnchorPosition",
    "Predictions",
    "Queries",
    "QualityFocalLoss",
    "QuerySource",
    "SoftmaxLoss",
    "Targets",
    "TokenLayout",
    "TopK",
    "TwoStageQueries",
]
