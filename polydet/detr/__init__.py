"""The DETR family as parts that compose; see docs/detr.md for which parts make which member."""

from .auxiliary import Auxiliary, TrainingStep
from .criterion import ClassLoss, Criterion, EmbeddingLoss, FocalLoss, QualityFocalLoss, SoftmaxLoss
from .decoder import AnchorPosition, ConditionalPosition, Decoder, ModulatedAnchorPosition
from .decoder_layers import ConditionalDecoderLayer, DecoderLayer, DeformableDecoderLayer
from .denoising import Denoising
from .encoder import DeformableEncoderLayer, Encoder, EncoderLayer
from .label_heads import ClosedLabels, LabelHead, TextLabels, WordLabels
from .label_scope import DatasetLabels, LabelScope, SampledLabels
from .matcher import HungarianMatcher
from .meta_arch import DETR
from .open_vocabulary import OpenDETR
from .postprocess import BestClass, TopK
from .queries import AnchorQueries, LearnedQueries, QuerySource, TwoStageQueries
from .structures import Assignment, Branch, DenoisingQueries, Memory, Predictions, Queries, Targets, TokenLayout

__all__ = [
    "DETR",
    "AnchorPosition",
    "AnchorQueries",
    "Assignment",
    "Auxiliary",
    "BestClass",
    "Branch",
    "ClassLoss",
    "ClosedLabels",
    "ConditionalDecoderLayer",
    "ConditionalPosition",
    "Criterion",
    "DatasetLabels",
    "Decoder",
    "DecoderLayer",
    "DeformableDecoderLayer",
    "DeformableEncoderLayer",
    "Denoising",
    "DenoisingQueries",
    "EmbeddingLoss",
    "Encoder",
    "EncoderLayer",
    "FocalLoss",
    "HungarianMatcher",
    "LabelHead",
    "LabelScope",
    "LearnedQueries",
    "Memory",
    "ModulatedAnchorPosition",
    "OpenDETR",
    "Predictions",
    "Queries",
    "QualityFocalLoss",
    "QuerySource",
    "SampledLabels",
    "SoftmaxLoss",
    "Targets",
    "TextLabels",
    "TokenLayout",
    "TopK",
    "TrainingStep",
    "TwoStageQueries",
    "WordLabels",
]
