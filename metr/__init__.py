"""METR: language-aware queries over many datasets (Hao et al., "Language-aware Multiple Datasets Detection Pretraining
for DETRs", 2023)."""

from .category_extraction import CategoryExtraction, CategoryLoss, ClassDecoderLayer, category_loss
from .denoising import LanguageDenoising
from .language import CategoryLabels, DotProduct, LanguageEmbeddings
from .matching import GroupAssignment, GroupMatcher
from .meta_arch import METR
from .queries import Categories, CategoryQuerySource
from .scores import CategoryScores

__all__ = [
    "METR",
    "Categories",
    "CategoryExtraction",
    "CategoryLabels",
    "CategoryLoss",
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
