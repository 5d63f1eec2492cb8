"""METR: language-aware queries over many datasets (Hao et al., "Language-aware Multiple Datasets Detection Pretraining
for DETRs", 2023)."""

from .category_extraction import CategoryExtraction, ClassDecoderLayer, category_loss
from .denoising import LanguageDenoising
from .language import DotProduct, LanguageEmbeddings
from .matching import GroupAssignment, GroupMatcher
from .meta_arch import METR, CategoryScores
from .queries import CategoryQueries, CategoryQuerySource

__all__ = [
    "METR",
    "CategoryExtraction",
    "CategoryQueries",
    "CategoryQuerySource",
    "CategoryScores",
    "ClassDecoderLayer",
    "DotProduct",
    "GroupAssignment",
    "GroupMatcher",
    "LanguageDenoising",
    "LanguageEmbeddings",
    "category_loss",
]
