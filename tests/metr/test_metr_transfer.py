"""METR's weights in the other members of the family, and METR's own fine-tuning."""

import re

import pytest
import torch
from metr_parts import DIM, TinyBackbone, make_batch, tiny_metr

from metr import transfer
from polydet.detr import (
    DETR,
    AnchorPosition,
    AnchorQueries,
    Criterion,
    Decoder,
    DeformableDecoderLayer,
    DeformableEncoderLayer,
    Encoder,
    FocalLoss,
    HungarianMatcher,
    LearnedQueries,
    TopK,
    TwoStageQueries,
)
from polydet.engine import load_weights
from polydet.engine.optim import param_groups
from polydet.layers import SinePositionEncoding
from polydet.text import VocabularyMismatch


def tiny_detr(kind):
    """Deformable, DAB-, DN-DAB-Deformable-DETR or DINO with the widths of `tiny_metr`."""
    sampling = {"num_levels": 2, "num_points": 2}
    queries = {
        "deformable": lambda: LearnedQueries(6, DIM, "learned", "linear"),
        "dab": lambda: AnchorQueries(6, DIM, "learned"),
        "dn_dab": lambda: AnchorQueries(6, DIM, "learned", indicator=True),
        "dino": lambda: TwoStageQueries(5, 6, DIM),
    }[kind]()
    position = None if kind == "deformable" else AnchorPosition(DIM, scale_by_content=kind != "dino")
    return DETR(
        backbone=TinyBackbone(),
        position=SinePositionEncoding(DIM),
        encoder=Encoder(DeformableEncoderLayer(DIM, 4, 64, 0.0, **sampling), 1),
        queries=queries,
        decoder=Decoder(
            DeformableDecoderLayer(DIM, 4, 64, 0.0, **sampling),
            2,
            position,
            refine=kind != "deformable",
            norm=kind == "dino",
        ),
        criterion=Criterion(HungarianMatcher(), FocalLoss()),
        postprocess=TopK(10),
        num_classes=5,
        dim=DIM,
    )


MAPS = {
    "deformable": transfer.to_deformable_detr,
    "dab": transfer.to_dab_deformable_detr,
    "dn_dab": transfer.to_dn_dab_deformable_detr,
    "dino": transfer.to_dino,
}


@pytest.mark.parametrize("kind", MAPS)
def test_backbone_encoder_and_decoder_are_loaded(kind):
    torch.manual_seed(1)
    source = tiny_metr()
    torch.manual_seed(2)
    model = tiny_detr(kind)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    ledger = load_weights(model, source.state_dict(), 0.1, MAPS[kind])
    for module in ("backbone", "encoder", "level_embed"):
        loaded, total = ledger.modules[module]
        assert loaded == total > 0
    new = {key for key in ledger.missing if key.startswith("decoder.")}
    assert all(key.startswith("decoder.query_position.query_scale.") for key in new)
    assert bool(new) == (kind in ("dab", "dn_dab"))
    assert not ledger.conflicts
    assert not ledger.unexpected
    state, own = model.state_dict(), source.state_dict()
    for key in ledger.loaded:
        assert torch.equal(state[key], own[key])
    for key in ledger.missing:
        assert torch.equal(state[key], before[key])
    assert {k.split(".")[0] for k in ledger.missing} - {"decoder"} <= {"queries", "class_heads", "box_heads"}
    assert any(k.startswith("queries.token_proj.") for k in ledger.loaded) == (kind == "dino")
    assert all(torch.isfinite(v) for v in model.train()(make_batch()).values())


def test_a_checkpoint_of_another_model_is_refused():
    with pytest.raises(ValueError, match="not one of METR"):
        transfer.to_dino({"roi_heads.weight": torch.zeros(1)})


def test_fine_tuning_carries_shared_words_over():
    old, new = ["cup", "fox", "plane"], ["plane", "zebra", "Cup", "tree"]
    torch.manual_seed(1)
    source = tiny_metr({"big": old})
    torch.nn.init.normal_(source.language.weight)
    torch.nn.init.normal_(source.language.biases["cem"])
    torch.manual_seed(2)
    model = tiny_metr({"small": new}, on_vocabulary_mismatch="transfer")
    ledger = load_weights(model, source.state_dict(), 0.9, class_names=(old, new))
    assert ledger.transferred["class_heads.language.weight"] == (2, 4)
    assert torch.equal(model.language.weight[[0, 2]], source.language.weight[[2, 0]])
    assert torch.equal(model.language.weight[1], model.train_vocabulary.embeddings[1])
    assert torch.equal(model.language.biases["cem"][[0, 2]], source.language.biases["cem"][[2, 0]])
    assert ledger.modules["queries"][0] == ledger.modules["queries"][1]
    with pytest.raises(VocabularyMismatch, match="transfer"):
        load_weights(tiny_metr({"small": new}), source.state_dict(), 0.9, class_names=(old, new))


def test_a_checkpoint_of_before_opens():
    """Label head and query source used to lie beside the detector, as `language` and `cem`."""
    torch.manual_seed(1)
    source = tiny_metr()
    state = {
        re.sub(r"^(class_heads\.(?=language)|queries\.(?=cem))", "", key): value
        for key, value in source.state_dict().items()
    }
    assert "language.weight" in state and "cem.head.linear.weight" in state
    model = tiny_metr()
    assert load_weights(model, state, complete=True).coverage == 1
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in source.state_dict().items())


@pytest.mark.parametrize(
    ("strategy", "rates"),
    [
        ("default", (1e-5, 1e-4, 1e-4)),
        ("S1", (1e-5, 2e-5, 2e-5)),
        ("S2", (1e-5, 2e-5, 4e-5)),
        ("S3", (1e-5, 4e-5, 2e-5)),
    ],
)
def test_learning_rates_of_supplementary_table_2(strategy, rates):
    class Wrapped(TinyBackbone):
        def __init__(self):
            super().__init__()
            self.bottom_up = torch.nn.Linear(2, 2)

    model = tiny_metr(backbone=Wrapped())
    names = {id(p): name for name, p in model.named_parameters()}
    expected = {"backbone.bottom_up": rates[0], "encoder": rates[1], "decoder": rates[2]}
    for group in param_groups(model, 1e-4, 1e-4, transfer.LR_STRATEGIES[strategy]):
        for parameter in group["params"]:
            name = names[id(parameter)]
            rate = next((r for prefix, r in expected.items() if name.startswith(prefix + ".")), 1e-4)
            assert group["lr"] == pytest.approx(rate), name
