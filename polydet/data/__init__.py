"""Datasets: cards, readers, loaders, samplers, augmentations and the generated ShapeWorld.

Importing this registers the built-in cards in Detectron2's catalogs and touches no dataset file.
"""

from polydet.data import builtin, card_files
from polydet.data.card import (
    DatasetCard,
    datasets_root,
    list_cards,
    missing_files,
    prepare_cards,
    register_card,
    register_generator,
)
from polydet.data.columns import AnnotationTable
from polydet.data.errors import DatasetError
from polydet.data.images import read_image, to_picture, to_uint8
from polydet.data.load import class_image_counts, get_card, label_names, load_card
from polydet.data.loader import build_test_loader, build_train_loader
from polydet.data.mapper import DetectionMapper
from polydet.data.mixed import MixedLoader, build_mixed_loader
from polydet.data.samplers import (
    ClassAwareSampler,
    FixedRatioSampler,
    RepeatFactorSampler,
    SubsetSampler,
    UniformSampler,
)
from polydet.data.statistics import DataStatistics, data_statistics
from polydet.data.union import Union, label_space_of

__all__ = [
    "AnnotationTable",
    "ClassAwareSampler",
    "DataStatistics",
    "DatasetCard",
    "DatasetError",
    "DetectionMapper",
    "FixedRatioSampler",
    "MixedLoader",
    "RepeatFactorSampler",
    "SubsetSampler",
    "UniformSampler",
    "Union",
    "build_mixed_loader",
    "build_test_loader",
    "build_train_loader",
    "builtin",
    "card_files",
    "class_image_counts",
    "data_statistics",
    "datasets_root",
    "get_card",
    "label_names",
    "label_space_of",
    "list_cards",
    "load_card",
    "missing_files",
    "prepare_cards",
    "read_image",
    "register_card",
    "register_generator",
    "to_picture",
    "to_uint8",
]
