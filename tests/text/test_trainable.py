"""Text towers inside a model: 16 tokens of an open_clip transformer, or a frozen encoder."""

import json
import logging

import open_clip
import pytest
import torch
from open_clip.model import _build_text_tower

from polydet.text import FrozenTextTower, OpenClipTextTower, TextEncoder

SMALL = {"layers": 2, "width": 64, "heads": 2, "vocab_size": 49408}
TEXTS = ["a red disc", "two blue boxes on a very long table", "ring"]


def _tower(**kw):
    torch.manual_seed(0)
    return OpenClipTextTower("ViT-B-32-quickgelu", pretrained=None, text_cfg=SMALL, **kw)


def _full_length(tower):
    """The same weights with 77 positions: what open_clip's own model computes."""
    config = open_clip.get_model_config("ViT-B-32-quickgelu")
    full = _build_text_tower(512, {**config["text_cfg"], **SMALL}, True)
    state = tower.tower.state_dict()
    state["positional_embedding"] = torch.cat([state["positional_embedding"], torch.randn(61, 64)])
    full.load_state_dict(state)
    return full


def test_sixteen_positions_give_what_seventy_seven_give():
    tower = _tower()
    expected = _full_length(tower)(open_clip.get_tokenizer("ViT-B-32-quickgelu")(TEXTS))
    rows = tower(TEXTS)
    assert rows.shape == (3, tower.dim) and rows.dtype == torch.float32
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(rows, torch.nn.functional.normalize(expected, dim=1), rtol=1e-4, atol=1e-5)


def test_every_weight_of_the_tower_learns():
    tower = _tower(checkpointing=True)
    (tower(TEXTS) * torch.randn(3, tower.dim)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in tower.parameters())


def test_checkpointing_changes_no_gradient():
    gradients = []
    for checkpointing in (False, True):
        tower = _tower(checkpointing=checkpointing)
        tower(TEXTS)[:, 0].sum().backward()
        gradients.append(tower.tower.token_embedding.weight.grad)
    torch.testing.assert_close(*gradients)


def test_mean_pooling_ignores_the_padding():
    tower = _tower(pooling="mean")
    pooled, tokens = tower.tower(tower.tokenize(["ring"]))
    wanted = tokens[0, :3].mean(0) @ tower.tower.text_projection  # start, ring, end
    torch.testing.assert_close(tower(["ring"])[0], torch.nn.functional.normalize(wanted, dim=0))
    assert not torch.allclose(tower(["ring"])[0], torch.nn.functional.normalize(pooled[0], dim=0), atol=1e-3)


def test_long_texts_are_cut_counted_and_named(caplog):
    tower = _tower()
    long = "a dog and a cat and a bird and a fish and a horse and a cow and a pig"
    with caplog.at_level(logging.WARNING):
        rows = tower([long, "ring", long])
    assert tower.truncated == 1 and "a dog and a cat" in caplog.text and "16 tokens" in caplog.text
    assert tower.tokenize([long])[0, -1] == tower.tokenize(["ring"]).max()  # ends with the end token
    torch.testing.assert_close(rows[0], rows[2])


def test_encode_is_the_encoder_protocol():
    tower = _tower()
    tower.train()
    assert isinstance(tower, TextEncoder)
    rows = tower.encode(TEXTS, batch_size=2)
    assert not rows.requires_grad and tower.training
    torch.testing.assert_close(rows, tower(TEXTS).detach())
    assert tower.encode([]).shape == (0, tower.dim) and tower([]).shape == (0, tower.dim)


def test_published_weights_load_into_the_short_tower(tmp_path):
    config = open_clip.get_model_config("ViT-B-32-quickgelu")
    config["vision_cfg"].update(layers=1, width=64, patch_size=32)
    config["text_cfg"].update(SMALL)
    (tmp_path / "tiny-for-tests.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "tiny-for-tests.json")
    model = open_clip.create_model("tiny-for-tests")
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    tower = OpenClipTextTower("tiny-for-tests", pretrained=str(tmp_path / "weights.pt"))
    expected = model.encode_text(open_clip.get_tokenizer("tiny-for-tests")(TEXTS), normalize=True)
    torch.testing.assert_close(tower(TEXTS), expected, rtol=1e-4, atol=1e-5)


def test_missing_weights_and_wrong_names_say_so():
    with pytest.raises(ValueError, match="knows no model 'ViT-X'"):
        OpenClipTextTower("ViT-X", pretrained=None)
    with pytest.raises(ValueError, match="eot or mean"):
        _tower(pooling="max")
    with pytest.raises(RuntimeError, match="give its path as `pretrained`"):
        OpenClipTextTower("ViT-B-32-quickgelu", pretrained="/nowhere/weights.pt", text_cfg=SMALL)


class Counting:
    id, dim = "test:lengths", 2

    def __init__(self):
        self.calls = []

    def encode(self, texts):
        self.calls.append(list(texts))
        return torch.nn.functional.normalize(torch.tensor([[1.0, len(text)] for text in texts]), dim=1)


def test_a_frozen_tower_encodes_each_text_once_and_has_no_state():
    encoder = Counting()
    tower = FrozenTextTower(encoder)
    first = tower(["a", "bb", "a"])
    second = tower(["bb", "ccc"])
    assert encoder.calls == [["a", "bb"], ["ccc"]]
    assert torch.equal(first[0], first[2]) and torch.equal(first[1], second[0])
    assert not list(tower.parameters()) and not tower.state_dict() and tower.id == encoder.id
    assert tower([]).shape == (0, 2)


def test_a_full_cache_of_a_frozen_tower_starts_anew(monkeypatch):
    monkeypatch.setattr("polydet.text.trainable._CACHED_TEXTS", 2)
    encoder = Counting()
    tower = FrozenTextTower(encoder)
    tower(["a", "b"])
    assert tower(["a", "c"]).shape == (2, 2)
    assert encoder.calls == [["a", "b"], ["a", "c"]]
