"""Text: prompt templates, encoders, vocabularies and label spaces."""

from polydet.text.classifier import TextClassifier, TextSimilarity
from polydet.text.encoders import MiniLMEncoder, OpenClipEncoder, TextEncoder
from polydet.text.label_space import LabelSpace, label_similarity
from polydet.text.state import OpenVocabulary, VocabularyMismatch, VocabularyState, pack_text, unpack_text
from polydet.text.stored import StoredEncoder, stored_label_space
from polydet.text.templates import TEMPLATES, clean_name, resolve_templates
from polydet.text.trainable import FrozenTextTower, OpenClipTextTower, TextTower
from polydet.text.vocabulary import Vocabulary, vocabulary_fingerprint

__all__ = [
    "TEMPLATES",
    "FrozenTextTower",
    "LabelSpace",
    "MiniLMEncoder",
    "OpenClipEncoder",
    "OpenClipTextTower",
    "OpenVocabulary",
    "StoredEncoder",
    "TextClassifier",
    "TextEncoder",
    "TextSimilarity",
    "TextTower",
    "Vocabulary",
    "VocabularyMismatch",
    "VocabularyState",
    "clean_name",
    "label_similarity",
    "pack_text",
    "resolve_templates",
    "stored_label_space",
    "unpack_text",
    "vocabulary_fingerprint",
]
