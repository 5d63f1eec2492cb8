"""Parts of several papers in one detector, by configs alone (`configs/combined`)."""

import pytest
import torch
from made_up_text import random_embeddings

from codetr import Collaborators
from metr import METR
from polydet.data.shapeworld import generate
from polydet.detr import DETR, OpenDETR
from polydet.engine import load_config
from polydet.engine.build import build_loader, build_model
from polydet.model_zoo import config_path
from polydet.text import MiniLMEncoder, label_similarity

SMALL = [
    "dataloader.train.num_workers=0",
    "dataloader.train.total_batch_size=4",
    "dataloader.train.mapper.augmentations.short=96",
    "model.backbone.bottom_up.model_kwargs.channels=[16,32,64,128]",
    "model.encoder.num_layers=1",
    "model.decoder.num_layers=2",
]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A small ShapeWorld, and an encoder without weights."""
    root = tmp_path_factory.mktemp("world")
    patch = pytest.MonkeyPatch()
    patch.setenv("DETECTRON2_DATASETS", str(root))
    patch.setenv("POLYDET_CACHE", str(root / "cache"))
    patch.setattr(MiniLMEncoder, "encode", random_embeddings)
    patch.setattr(generate, "PARTS", {p: (w, dict.fromkeys(c, 24)) for p, (w, c) in generate.PARTS.items()})
    yield root
    patch.undo()


def train(name):
    """Ten steps of a config: the model, the total loss of each step, the names of its losses, the batch."""
    cfg = load_config(config_path(name), SMALL)
    torch.manual_seed(0)
    model = build_model(cfg).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    batch = next(iter(build_loader(cfg)))  # one batch by heart: losses must fall in few steps
    totals = []
    for _ in range(10):
        losses = model(batch)
        total = sum(losses.values())
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        totals.append(total.item())
    return model, totals, set(losses), batch


@pytest.fixture(scope="module")
def co_metr(world):
    return train("combined/co_metr")


@pytest.fixture(scope="module")
def open_dino(world):
    return train("combined/open_dino")


def falls(totals):
    assert all(map(torch.isfinite, torch.tensor(totals)))
    assert sum(totals[-3:]) < 0.9 * sum(totals[:3]), totals


def test_metr_with_a_collaborator(co_metr):
    model, totals, names, batch = co_metr
    assert type(model) is METR and isinstance(model.collaborators, Collaborators)
    falls(totals)
    assert {"loss_cem", "loss_aux0_atss_cls", "loss_class_co0", "loss_giou_co0_0", "loss_class_dn"} <= names
    model.eval()
    with torch.no_grad():
        model.set_vocabulary(["circle", "a new word"])
        assert set(model(batch[:1])[0]["instances"].pred_classes.tolist()) <= {0, 1}
        model.set_vocabulary(None)


def test_positive_queries_of_a_collaborator_answer_for_their_object(co_metr, monkeypatch):
    model, _, _, batch = co_metr
    seen = []
    decode = model.decode

    def watched(queries, memory, last_only=False):
        seen.append(queries)
        return decode(queries, memory, last_only)

    monkeypatch.setattr(model, "decode", watched)
    model.train()(batch)
    positive = seen[1]
    targets = [x["instances"].gt_classes for x in batch]
    for row, labels in zip(positive.classes, targets):
        assert set(row.tolist()) <= ({int(x) for x in labels} or {0})
    assert positive.classes.shape == positive.content.shape[:2]


def test_dino_of_words_with_soft_labels(open_dino):
    model, totals, names, batch = open_dino
    assert type(model) is OpenDETR and isinstance(model, DETR)
    falls(totals)
    assert {"loss_soft", "loss_soft_0", "loss_soft_dn", "loss_class_enc"} <= names and "loss_soft_enc" not in names
    model.eval()
    with torch.no_grad():
        before = model(batch[:1])[0]["instances"]
        model.set_vocabulary(["a new word"])
        assert set(model(batch[:1])[0]["instances"].pred_classes.tolist()) == {0}
        model.set_vocabulary(None)
        assert torch.equal(model(batch[:1])[0]["instances"].scores, before.scores)
        model.keep_encoder(None)
        model.set_vocabulary(model.train_vocabulary.names[:2])  # words that were trained need no encoder
        with pytest.raises(ValueError, match="text_encoder"):
            model.set_vocabulary(["a new word"])
    model.train()
    with pytest.raises(RuntimeError, match="set_vocabulary"):
        model(batch)


def test_the_soft_loss_is_scaledets(open_dino):
    """Against the mean squared error over a matrix of similarities, written out."""
    model = open_dino[0]
    soft, text = model.criterion.extra["soft"], model.train_vocabulary.embeddings
    similarity = label_similarity(text.double())
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.nn.functional.normalize(torch.randn(2, 1, 5, text.shape[1], generator=generator), dim=-1)
    labels = torch.tensor([[[0, 3, -1, 1, -1]], [[-1, -1, 2, -1, 2]]])
    expected = []
    for layer in range(2):
        cosines = embeddings[layer, 0].double() @ text.double().T
        own = [(q, label) for q, label in enumerate(labels[layer, 0]) if label >= 0]
        rows = [(cosines[q] - similarity[label]).square().mean() for q, label in own]
        expected.append(soft.weight * sum(rows) / 4.0)
    found = soft(embeddings, labels, torch.tensor(4.0)).double()
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-6)
