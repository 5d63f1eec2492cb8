"""Co-DETR: DETRs with collaborative hybrid assignments training (arXiv:2211.12860)."""

from .adapter import MultiScaleAdapter
from .meta_arch import CoDETR, Collaborators
from .positive_queries import PositiveQueries, QueryGroup, sample_group

__all__ = ["CoDETR", "Collaborators", "MultiScaleAdapter", "PositiveQueries", "QueryGroup", "sample_group"]
