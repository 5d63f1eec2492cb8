"""Co-DETR: DETRs with collaborative hybrid assignments training (arXiv:2211.12860)."""

from . import checkpoint  # noqa: F401  registers the layout of the release
from .adapter import MultiScaleAdapter
from .collaborators import Collaborators
from .encoder_detector import EncoderDetector
from .meta_arch import CoDETR
from .positive_queries import PositiveQueries, QueryGroup, sample_group
from .query_groups import GroupedDETR
from .tta import BoxVotingTTA

__all__ = [
    "BoxVotingTTA",
    "CoDETR",
    "Collaborators",
    "EncoderDetector",
    "GroupedDETR",
    "MultiScaleAdapter",
    "PositiveQueries",
    "QueryGroup",
    "sample_group",
]
