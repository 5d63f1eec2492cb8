"""DetCLIPv2: open-vocabulary pre-training from boxes, phrases and captions."""

from detclipv2.concepts import CaptionConcepts, DetectionConcepts, GroundingConcepts
from detclipv2.contrastive import WordRegionLoss
from detclipv2.definitions import FileDefinitions, StoredDefinitions, WordNetDefinitions
from detclipv2.dictionary import ConceptDictionary, build_dictionary
from detclipv2.head import AlignmentHead
from detclipv2.meta_arch import DetCLIPv2
from detclipv2.phrases import NounPhrases
from detclipv2.regions import RegionSelection

__all__ = [
    "AlignmentHead",
    "CaptionConcepts",
    "ConceptDictionary",
    "DetCLIPv2",
    "DetectionConcepts",
    "FileDefinitions",
    "GroundingConcepts",
    "NounPhrases",
    "RegionSelection",
    "StoredDefinitions",
    "WordNetDefinitions",
    "WordRegionLoss",
    "build_dictionary",
]
