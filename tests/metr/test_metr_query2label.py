"""Query2Label: shapes, learning, and images of one size."""

import pytest
import torch
from metr_parts import DIM, TinyBackbone, make_input

from metr.query2label import LabelDecoderLayer, Query2Label
from polydet.detr import Encoder, EncoderLayer
from polydet.layers import SinePositionEncoding
from polydet.text import LabelSpace


def tiny_query2label(dim=DIM):
    return Query2Label(
        TinyBackbone(),
        SinePositionEncoding(dim),
        Encoder(EncoderLayer(dim, 4, 64, 0.0), 1),
        LabelDecoderLayer(dim, 4, 64, 0.0),
        LabelSpace({"a": ["red", "green", "blue"]}),
        asl={"gamma_neg": 2.0, "clip": 0.0},
    )


def coloured(channels, seed):
    x = make_input([[0, 0, 10, 10]] * len(channels), channels, (32, 32), seed=seed)
    x["image"] = x["image"] // 4
    for channel in channels:
        x["image"][channel] += 150
    return x


def test_it_learns_colours():
    torch.manual_seed(0)
    model = tiny_query2label().train()
    batch = [coloured(c, i) for i, c in enumerate([[0], [1], [2], [0, 1], [1, 2], [0, 2], [0, 1, 2], []])]
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for _ in range(60):
        optimizer.zero_grad()
        model(batch)["loss_asl"].backward()
        optimizer.step()
    with torch.no_grad():
        outputs = model.eval()(batch)
    for x, output in zip(batch, outputs):
        assert output["class_scores"].shape == (3,)
        assert set((output["class_scores"] > 0.5).nonzero()[:, 0].tolist()) == set(x["instances"].gt_classes.tolist())


def test_the_first_layer_has_no_self_attention():
    model = tiny_query2label()
    assert model.layers[0].self_attn is None
    assert model.layers[1].self_attn is not None
    model([coloured([0], 0)])["loss_asl"].backward()
    assert all(p.grad is not None for p in model.parameters())


def test_maps_of_another_width_are_projected():
    model = tiny_query2label(16).eval()
    with torch.no_grad():
        assert model([coloured([0], 0)])[0]["class_scores"].shape == (3,)


def test_images_of_different_sizes_are_refused():
    with pytest.raises(ValueError, match="takes one size"):
        tiny_query2label()([coloured([0], 0), make_input([], [], (32, 48), seed=7)])
