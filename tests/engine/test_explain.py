"""What a config builds, part by part."""

import pytest

from polydet import model_zoo
from polydet.engine.explain import build_without_weights, draw, parts_of, table


@pytest.fixture(scope="module")
def parts():
    return parts_of(build_without_weights(model_zoo.get_config("quickstart/codetr")))


def test_parts_are_named_with_their_source_and_size(parts):
    by_path = {part.path: part for part in parts}
    model = build_without_weights(model_zoo.get_config("quickstart/codetr"))
    whole = by_path[""]
    assert whole.parameters == sum(p.numel() for p in model.parameters())
    assert whole.trained == sum(p.numel() for p in model.parameters() if p.requires_grad) and whole.kind == "CoDETR"
    layers = by_path["encoder.layers"]
    assert (layers.kind, layers.repeats, layers.source) == ("DeformableEncoderLayer", 2, "Deformable DETR")
    assert layers.parameters == sum(p.numel() for p in model.encoder.layers.parameters())
    assert "2211.12860" in by_path["collaborators"].source and by_path["criterion"].state == "no weights"
    assert not any(part.kind == "Linear" for part in parts)


def test_frozen_parts_are_said(parts):
    cfg = model_zoo.get_config("quickstart/codetr", ["model.backbone.bottom_up.freeze_at=5"])
    frozen = {part.path: part.state for part in parts_of(build_without_weights(cfg))}
    assert frozen["backbone.bottom_up"] == "frozen" and frozen["backbone"] == "part frozen"
    assert frozen["encoder"] == "trained"


def test_the_table_and_the_picture(parts, tmp_path):
    rows = table(parts)
    assert len(rows) == len(parts) and all(len(row) == 6 for row in rows)
    draw(parts, "quickstart/codetr", tmp_path / "parts.png")
    assert (tmp_path / "parts.png").stat().st_size > 10_000
