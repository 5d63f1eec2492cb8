"""Concepts: noun phrases, definitions, dictionary, triplets."""

import logging
import re

import numpy as np
import pytest
import torch
from detclipv2_wordnet import write_wordnet
from detectron2.config import instantiate
from detectron2.structures import Boxes, Instances
from hypothesis import given
from hypothesis import strategies as st

from detclipv2 import (
    CaptionConcepts,
    ConceptDictionary,
    DetectionConcepts,
    FileDefinitions,
    GroundingConcepts,
    NounPhrases,
    WordNetDefinitions,
)
from detclipv2.definitions import enrich, read_concepts, write_concepts
from detclipv2.phrases import clean_phrase, light_noun_phrases
from polydet.data import DatasetError
from polydet.engine import load_config
from polydet.model_zoo.zoo import config_path


@pytest.mark.parametrize(
    ("caption", "phrases"),
    [
        ("a red disc above two blue boxes", ["red disc", "blue boxes"]),
        ("Two triangles right of an orange heart and a star", ["triangles", "orange heart", "star"]),
        ("Ginger kitten inspecting a toad, white background", ["ginger kitten", "toad", "white background"]),
        ("Couple walking on the streets of Paris", ["couple", "streets", "paris"]),
        ("a building in the city", ["building", "city"]),
        ("the left of the page", ["left", "page"]),
        ("here and there", []),
        ("123 !!", []),
        ("", []),
    ],
)
def test_light_noun_phrases(caption, phrases):
    assert light_noun_phrases(caption) == phrases


@given(st.text(max_size=80))
def test_any_caption_survives(caption):
    phrases = NounPhrases("light")(caption)
    assert len(set(phrases)) == len(phrases) and all(clean_phrase(p) == p and p for p in phrases)


def test_a_phrase_occurs_once_and_long_ones_keep_their_end():
    assert NounPhrases("light")("a cat and the cat and a Cat") == ["cat"]
    assert NounPhrases("light", max_words=2)("a very big old red barn door") == ["barn door"]


def test_absent_spacy_is_named(monkeypatch):
    with pytest.raises(ValueError, match="auto, spacy or light"):
        NounPhrases("nltk")
    with pytest.raises(RuntimeError, match="spacy download no_such_model"):
        NounPhrases("spacy", model="no_such_model")("a cat")
    assert NounPhrases("auto", model="no_such_model")("a cat") == ["cat"]


def test_clean_phrase():
    assert clean_phrase('  The two  "Big_Dogs". ') == "big dogs"
    assert clean_phrase("an") == ""


def test_glosses_of_the_first_sense(tmp_path, monkeypatch):
    from nltk.corpus import WordNetCorpusReader
    from nltk.corpus.util import LazyCorpusLoader

    write_wordnet(tmp_path)
    monkeypatch.setattr("nltk.data.path", [str(tmp_path)])
    monkeypatch.setattr("nltk.corpus.wordnet", LazyCorpusLoader("wordnet", WordNetCorpusReader, None))
    definitions = WordNetDefinitions()
    assert definitions("dog") == "a member of the genus Canis"
    assert definitions("Street_Lights") == "a lamp supported on a lamppost"
    assert definitions("flux capacitor") is None
    assert enrich("street_light", definitions) == "street light, a lamp supported on a lamppost"
    assert enrich("flux_capacitor", definitions) == "flux capacitor"


def test_an_absent_wordnet_says_how_to_get_it(tmp_path, monkeypatch):
    from nltk.corpus import WordNetCorpusReader
    from nltk.corpus.util import LazyCorpusLoader

    monkeypatch.setattr("nltk.data.path", [str(tmp_path)])
    monkeypatch.setattr("nltk.corpus.wordnet", LazyCorpusLoader("wordnet", WordNetCorpusReader, None))
    with pytest.raises(RuntimeError, match="nltk.downloader wordnet") as caught:
        WordNetDefinitions()("dog")
    override = re.findall("'(model.*?)'", str(caught.value))[0].replace("FILE", str(tmp_path / "concepts.tsv"))
    write_concepts(tmp_path / "concepts.tsv", [("dog", 0, "a pet")])
    config = load_config(config_path("detclipv2_swint"), [override])
    assert instantiate(config.model.definitions)("dog") == "a pet"


def test_concept_files(tmp_path):
    path = tmp_path / "concepts.tsv"
    write_concepts(path, [("cat", 7, "a\tfeline"), ("dog", 0, "")])
    assert read_concepts(path) == [("cat", 7, "a feline"), ("dog", 0, "")]
    definitions = FileDefinitions(str(path))
    assert definitions("Cat") == "a feline" and definitions("dog") is None and definitions("cow") is None
    assert ConceptDictionary(path=path).names == ("cat", "dog")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no concept"),
        ("# only a comment\n", "names no concept"),
        ("cat\tmany\tx\n", "line 1: the count 'many'"),
        ("cat\t1\tx\n\t2\ty\n", "line 2: expected"),
        ("cat\t1\tx\ty\n", "line 1: expected"),
    ],
)
def test_broken_concept_files_name_the_line(tmp_path, text, message):
    path = tmp_path / "broken.tsv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_concepts(path)


def test_missing_concept_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="build_concepts"):
        FileDefinitions(str(tmp_path / "none.tsv"))("cat")


def test_dictionary_counts_duplicates(caplog):
    with caplog.at_level(logging.INFO):
        dictionary = ConceptDictionary(["cat", "The Cat", "dog", "", "a dog"])
    assert dictionary.names == ("cat", "dog") and dictionary.duplicates == 3
    assert "3 of 5 names are duplicates or empty: 'cat', 'dog', ''" in caplog.text
    for names in ([], ["", "a"]):
        with pytest.raises(ValueError, match="names or a path|is empty"):
            ConceptDictionary(names)


def test_negatives_are_not_in_the_caption():
    dictionary = ConceptDictionary(["cat", "dog", "red ball", "ball", "tree", "car"])
    np.random.seed(0)
    for _ in range(20):
        drawn = dictionary.sample(3, exclude=["A Dog"], caption="A dog with a red ball, near cars")
        assert sorted(drawn) == ["car", "cat", "tree"]
    assert dictionary.sample(0) == [] and len(dictionary.sample(50)) == 6
    assert len({tuple(dictionary.sample(2)) for _ in range(40)}) > 10


def test_negatives_from_a_file_and_names_with_hyphens(tmp_path):
    path = tmp_path / "concepts.tsv"
    path.write_text("The Dog\t1\t\nT-shirt\ncat\nt-shirt\nice_cream\n")
    dictionary = ConceptDictionary(path=path)
    assert dictionary.names == ("dog", "t-shirt", "cat", "ice cream") and dictionary.duplicates == 1
    assert dictionary.sample(9, ["a dog"], "A man in a T-shirt eats ice-cream") == ["cat"]
    assert sorted(dictionary.sample(9, ["t shirt"])) == ["cat", "dog", "ice cream"]


def _mapper(**extra):
    """Stands for a mapper of polydet.data: boxes and labels of the record, as they are."""

    def call(record):
        instances = Instances((50, 60))
        instances.gt_boxes = Boxes(torch.tensor(record["boxes"], dtype=torch.float32).reshape(-1, 4))
        instances.gt_classes = torch.tensor(record.get("labels", [0] * len(record["boxes"])))
        output = {k: v for k, v in record.items() if k in ("file_name", "dataset_name", "caption", "phrases")}
        return {**output, "image": torch.zeros(3, 50, 60), "instances": instances, **extra}

    return call


BOX, OTHER = [1, 1, 9, 9], [5, 5, 30, 30]
CLASSES = ["circle", "ring", "square", "rectangle", "triangle", "star", "hexagon", "oval"]


def _detection(labels, boxes, **kw):
    record = {"file_name": "x.jpg", "dataset_name": "shapes_coco_train", "boxes": boxes, "labels": labels}
    return DetectionConcepts(_mapper(), ["shapes_coco_train"], **kw)(record)


def test_detection_takes_the_classes_of_the_image_and_random_others():
    np.random.seed(1)
    item = _detection([2, 0], [BOX, OTHER], num_concepts=5)
    assert item["task"] == "detection" and item["concepts"][:2] == ["square", "circle"]
    assert len(set(item["concepts"])) == 5 and set(item["concepts"]) <= set(CLASSES)
    assert item["instances"].gt_concepts.tolist() == [[True] + [False] * 4, [False, True] + [False] * 3]
    assert len({tuple(_detection([2, 0], [BOX, OTHER], num_concepts=5)["concepts"]) for _ in range(30)}) > 5


def test_all_classes_and_more_classes_than_concepts():
    assert sorted(_detection([2], [BOX], num_concepts=None)["concepts"]) == sorted(CLASSES)
    assert sorted(_detection([2], [BOX])["concepts"]) == sorted(CLASSES)  # 150 of 8
    assert _detection([2, 1], [BOX, OTHER], num_concepts=1)["concepts"] == ["square", "ring"]
    assert len(_detection([], [], num_concepts=3)["concepts"]) == 3


def test_negatives_come_from_the_images_own_dataset():
    datasets = ["shapes_coco_train", "shapes_wild_val"]
    record = {"file_name": "x.jpg", "dataset_name": "shapes_wild_val", "boxes": [BOX], "labels": [9]}
    item = DetectionConcepts(_mapper(), datasets, num_concepts=None)(record)
    assert item["concepts"][0] == "wheel" and not set(item["concepts"]) & set(CLASSES)


def test_coinciding_boxes_become_one_with_several_concepts():
    item = _detection([2, 0, 2], [BOX, BOX, OTHER], num_concepts=2)
    assert item["instances"].gt_boxes.tensor.tolist() == [BOX, OTHER]
    assert item["instances"].gt_concepts.tolist() == [[True, True], [True, False]]


def _grounding(phrases, boxes, caption="a dog and the dog's ball", **kw):
    record = {"file_name": "x.jpg", "image_id": 7, "boxes": boxes, "phrases": phrases, "caption": caption}
    return GroundingConcepts(_mapper(), ConceptDictionary(["tree", "ball", "dog", "car", "sun"]), **kw)(record)


def test_grounding_takes_phrases_and_negatives_of_the_dictionary():
    item = _grounding(["a dog", "The ball", "A dog"], [BOX, OTHER, [0, 0, 50, 50]], num_concepts=4)
    assert item["task"] == "grounding" and item["concepts"][:2] == ["dog", "ball"]
    assert len(item["concepts"]) == 4 and set(item["concepts"][2:]) < {"tree", "car", "sun"}
    assert item["instances"].gt_concepts[:, :2].tolist() == [[True, False], [False, True], [True, False]]
    assert "phrases" not in item


def test_a_dictionary_may_be_made_later():
    made = []

    def make():
        made.append(1)
        return ConceptDictionary(["tree"])

    mapper = GroundingConcepts(_mapper(), make)
    record = {"file_name": "x.jpg", "boxes": [BOX], "phrases": ["dog"], "caption": ""}
    assert mapper(record)["concepts"] == ["dog", "tree"] == mapper(record)["concepts"] and made == [1]


def test_boxes_without_phrase_are_left_out_and_images_without_any_refused():
    item = _grounding(["a", "a dog"], [BOX, OTHER])
    assert item["instances"].gt_boxes.tensor.tolist() == [OTHER] and len(item["instances"].gt_concepts) == 1
    for phrases, boxes in ([["the"], [BOX]], [[], []], [["dog"], [BOX, OTHER]]):
        with pytest.raises(DatasetError, match="(?s)x.jpg.*image id 7") as caught:
            _grounding(phrases, boxes)
        assert "tokens_positive" in str(caught.value)


def _caption(caption, **kw):
    record = {"file_name": "x.jpg", "image_id": 3, "boxes": [], "caption": caption}
    return CaptionConcepts(_mapper(), NounPhrases("light"), **kw)(record)


def test_captions_with_their_phrases():
    item = _caption("A red  disc above two blue boxes")
    assert item["task"] == "pairs" and "instances" not in item
    assert item["concepts"] == ["A red disc above two blue boxes", "red disc", "blue boxes"]
    assert _caption("A red disc above two blue boxes", max_concepts=2)["concepts"][1:] == ["red disc"]
    assert _caption("dog")["concepts"] == ["dog"]
    assert _caption("over there")["concepts"] == ["over there"]


def test_class_names_as_captions():
    item = _caption("tench_fish", task="classification")
    assert item["task"] == "classification" and item["concepts"] == ["tench fish"]


@pytest.mark.parametrize("caption", ["", "  ", "?!", None])
def test_captions_without_a_word_name_the_file(caption):
    with pytest.raises(DatasetError, match="has no word") as caught:
        _caption(caption)
    assert "x.jpg" in str(caught.value) and "image id 3" in str(caught.value)


def test_a_mapper_that_gives_none():
    for wrapper in (
        DetectionConcepts(lambda record: None, ["shapes_coco_train"]),
        GroundingConcepts(lambda record: None, ConceptDictionary(["x"])),
        CaptionConcepts(lambda record: None),
    ):
        assert wrapper({"file_name": "x"}) is None
    with pytest.raises(ValueError, match="pairs or classification"):
        CaptionConcepts(_mapper(), task="caption")
