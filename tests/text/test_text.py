"""Vocabularies, label spaces and the similarity of ScaleDet eq. 3."""

import hashlib
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F

from polydet.text import (
    TEMPLATES,
    LabelSpace,
    MiniLMEncoder,
    OpenClipEncoder,
    TextEncoder,
    Vocabulary,
    label_similarity,
    resolve_templates,
)


class CountingEncoder:
    """Embeds a text by its characters and counts the texts it was asked for."""

    id, dim = "test:characters", 16

    def __init__(self):
        self.texts = []

    def encode(self, texts):
        self.texts += texts
        rows = torch.zeros(len(texts), self.dim)
        for row, text in zip(rows, texts):
            for position, character in enumerate(text):
                row[ord(character) % self.dim] += 1 + position / 100
        return F.normalize(rows, dim=-1)


def test_templates_are_normalised_before_and_after_their_mean(tmp_path):
    encoder = CountingEncoder()
    vocabulary = Vocabulary.build(["traffic_light", "cat"], encoder, ["a {}", "photo: {}"], cache_dir=tmp_path)
    first, second = encoder.encode(["a traffic light"]), encoder.encode(["photo: traffic light"])
    torch.testing.assert_close(vocabulary.embeddings[0], F.normalize((first + second) / 2, dim=-1)[0])
    assert vocabulary.names == ("traffic_light", "cat")


def test_cache_is_keyed_by_everything_that_changes_the_embeddings(tmp_path):
    encoder = CountingEncoder()
    first = Vocabulary.build(["cat", "dog"], encoder, "a", cache_dir=tmp_path)
    asked = len(encoder.texts)
    again = Vocabulary.build(["cat", "dog"], encoder, "a", cache_dir=tmp_path)
    assert len(encoder.texts) == asked and torch.equal(first.embeddings, again.embeddings)
    fingerprints = {
        first.fingerprint,
        Vocabulary.build(["dog", "cat"], encoder, "a", cache_dir=tmp_path).fingerprint,
        Vocabulary.build(["cat", "dog"], encoder, "photo", cache_dir=tmp_path).fingerprint,
    }
    assert len(fingerprints) == 3 and len(list(tmp_path.glob("*.safetensors"))) == 3


def test_processes_encode_once_and_the_others_wait(tmp_path):
    class Slow(CountingEncoder):
        def encode(self, texts):
            time.sleep(0.2)
            return super().encode(texts)

    encoders = [Slow() for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:  # a lock of a file holds between its handles, whosever they are
        built = list(pool.map(lambda e: Vocabulary.build(["cat", "dog"], e, cache_dir=tmp_path), encoders))
    assert sum(bool(encoder.texts) for encoder in encoders) == 1
    assert all(torch.equal(vocabulary.embeddings, built[0].embeddings) for vocabulary in built)
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]


def test_known_names_are_not_encoded_again(tmp_path):
    encoder = CountingEncoder()
    known = Vocabulary.build(["traffic_light", "cat", "dog"], encoder, "a", cache_dir=tmp_path)
    asked = len(encoder.texts)
    vocabulary = Vocabulary.build(["zebra", "traffic light", "dog"], encoder, "a", tmp_path, known=known)
    assert encoder.texts[asked:] == ["a zebra"]
    anew = Vocabulary.build(["zebra", "traffic light", "dog"], encoder, "a", tmp_path / "other")
    torch.testing.assert_close(vocabulary.embeddings, anew.embeddings)
    asked = len(encoder.texts)
    Vocabulary.build(["cat"], encoder, "photo", cache_dir=tmp_path, known=known)
    assert len(encoder.texts) == asked + 1, "other templates, other embeddings"


def test_a_damaged_cache_file_is_encoded_again(tmp_path):
    first = Vocabulary.build(["cat"], CountingEncoder(), "a", cache_dir=tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:20])
    assert torch.equal(
        Vocabulary.build(["cat"], CountingEncoder(), "a", cache_dir=tmp_path).embeddings, first.embeddings
    )
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]


def test_an_unwritable_cache_costs_a_warning_only(tmp_path, caplog):
    (tmp_path / "file").write_text("not a folder")
    vocabulary = Vocabulary.build(["cat"], CountingEncoder(), "a", cache_dir=tmp_path / "file" / "sub")
    assert len(vocabulary) == 1 and "not cached" in caplog.text


@pytest.mark.parametrize(("names", "message"), [([], "at least one"), (["a", " "], "empty"), (["a", "a"], "twice")])
def test_bad_names_are_refused(names, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        Vocabulary.build(names, CountingEncoder(), cache_dir=tmp_path)


def test_joint_labels_may_share_a_name(tmp_path):
    vocabulary = Vocabulary.build(["cat", "dog", "cat"], CountingEncoder(), cache_dir=tmp_path, unique=False)
    assert torch.equal(vocabulary.embeddings[0], vocabulary.embeddings[2])
    assert vocabulary.select([2, 1]).names == ("cat", "dog")


@pytest.mark.parametrize("templates", ["no braces", ["{} and {}"], []])
def test_bad_templates_are_refused(templates):
    with pytest.raises(ValueError):
        resolve_templates(templates)


def test_clip_ensemble_is_open_clips():
    assert len(resolve_templates("clip80")) == 80
    assert resolve_templates("clip7")[0].format("cat") == open_clip.SIMPLE_IMAGENET_TEMPLATES[0]("cat")
    assert "clip80" in TEMPLATES and "clip81" not in TEMPLATES
    assert list(TEMPLATES) == [name for name in TEMPLATES if resolve_templates(name) == TEMPLATES[name]]
    with pytest.raises(ValueError, match="clip80"):
        resolve_templates("clip81")


def test_offline_encoder_has_real_semantics(tmp_path):
    encoder = MiniLMEncoder()
    assert isinstance(encoder, TextEncoder)
    embeddings = Vocabulary.build(["dog", "puppy", "airplane"], encoder, cache_dir=tmp_path).embeddings
    assert embeddings.shape == (3, 384)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(3))
    cosine = embeddings @ embeddings.T
    assert cosine[0, 1] > cosine[0, 2] + 0.2


def test_open_clip_tower_from_a_file_equals_open_clip_itself(tmp_path):
    torch.manual_seed(0)
    model = open_clip.create_model("ViT-S-32-alt", pretrained=None)
    path = tmp_path / "weights.pt"
    torch.save(model.state_dict(), path)
    encoder = OpenClipEncoder("ViT-S-32-alt", str(path), batch_size=2)
    texts = ["a cat", "a photo of a dog", "x"]
    tokens = open_clip.get_tokenizer("ViT-S-32-alt")(texts)
    with torch.no_grad():
        expected = model.eval().encode_text(tokens, normalize=True)
    torch.testing.assert_close(encoder.encode(texts), expected, atol=1e-6, rtol=1e-5)
    assert encoder.dim == expected.shape[1] and "sha256-" in encoder.id
    assert encoder.encode([]).shape == (0, encoder.dim)


def test_missing_weights_say_what_to_do(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(RuntimeError, match="pretrained"):
        OpenClipEncoder("ViT-B-32-quickgelu", "no_such_tag").encode(["a"])


def test_disjoint_union_keeps_equal_names_apart():
    space = LabelSpace({"coco": ["person", "cat"], "lvis": ["cat", "person", "zebra"]})
    assert len(space) == 5 and space.names == ("person", "cat", "cat", "person", "zebra")
    np.testing.assert_array_equal(space.mapping("lvis"), [2, 3, 4])
    np.testing.assert_array_equal(space.owner, [0, 0, 1, 1, 1])


def test_merging_by_name_shares_labels():
    space = LabelSpace({"coco": ["person", "hot dog"], "voc": ["Hot_Dog", "sofa", "Person"]}, merge="name")
    assert space.names == ("person", "hot dog", "sofa")
    np.testing.assert_array_equal(space.mapping("voc"), [1, 2, 0])
    assert space.names_of("voc") == ("hot dog", "sofa", "person")


@pytest.mark.parametrize("names", [{}, {"a": []}, {"a": ["x", "x"]}])
def test_bad_label_spaces_are_refused(names):
    with pytest.raises(ValueError):
        LabelSpace(names)


def test_same_name_after_cleaning_is_refused_when_merging_and_kept_otherwise():
    assert len(LabelSpace({"a": ["hot dog", "hot_dog"]})) == 2
    with pytest.raises(ValueError, match="hot_dog"):
        LabelSpace({"a": ["hot dog", "hot_dog"]}, merge="name")
    with pytest.raises(KeyError, match="other"):
        LabelSpace({"a": ["x"]}).mapping("other")


def test_similarity_equals_a_literal_equation_3():
    torch.manual_seed(0)
    embeddings = torch.randn(7, 5, dtype=torch.float64)
    similarity = label_similarity(embeddings)
    for i in range(7):
        cosine = [
            float(embeddings[i] @ embeddings[j] / (embeddings[i].norm() * embeddings[j].norm())) for j in range(7)
        ]
        low, high = min(cosine), max(cosine)
        for j in range(7):
            assert abs(similarity[i, j].item() - (cosine[j] - low) / (high - low)) < 1e-12
    assert label_similarity(embeddings[:1]).tolist() == [[1.0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_labels_of_one_name_are_all_alike(dtype):
    row = torch.randn(1, 384, dtype=dtype, generator=torch.Generator().manual_seed(0))
    rows = torch.cat([row * scale for scale in (1.0, 0.3, 7.1, 1 / 3)])  # equal but for rounding
    assert label_similarity(rows).tolist() == [[1.0] * 4] * 4
    near = rows + 1e-2 * torch.eye(4, 384, dtype=dtype)
    assert label_similarity(near).min() == 0  # still told apart


def test_a_checkpoint_is_read_once_for_its_id(tmp_path, monkeypatch):
    path = tmp_path / "clip.pt"
    path.write_bytes(b"one")
    encoder, reads, real = OpenClipEncoder("ViT-B-32", str(path)), [], hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *given: reads.append(1) or real(*given))
    first = encoder.id
    assert encoder.id == first and len(reads) == 1
    path.write_bytes(b"another")
    assert encoder.id != first and len(reads) == 2
