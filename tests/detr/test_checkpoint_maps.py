"""Published checkpoints' layouts load with nothing missing and nothing left over."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from polydet.detr import DETR
from polydet.detr.checkpoint_maps import convert, scheme_of

from . import layouts
from .builders import CLASSES, DECODERS, ONE_LEVEL, backbone_of, batch, build

OFFICIAL = {
    "detr": layouts.official_dense,
    "conditional": layouts.official_dense,
    "dab": layouts.official_dense,
    "deformable": lambda s: layouts.official_deformable(s, DECODERS),
    "deformable_refine": lambda s: layouts.official_deformable(s, DECODERS),
    "deformable_two_stage": lambda s: layouts.official_deformable(s, DECODERS),
    "dino": lambda s: layouts.official_dino(s, DECODERS),
}
DETREX = ("detr", "conditional", "dab", "deformable_two_stage", "deformable_pp", "dino")


def member(name: str, seed: int) -> DETR:
    """With a backbone of torchvision's layout (ResNet-18)."""
    torch.manual_seed(seed)
    return build(name, backbone_of(name in ONE_LEVEL, "resnet18", "frozen"), seed)


def weights(model: DETR) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(9)
    state = {k: v for k, v in model.state_dict().items() if "num_batches_tracked" not in k}
    return {k: torch.rand(v.shape, generator=g) if v.is_floating_point() else v for k, v in state.items()}


def check(model: DETR, theirs: dict[str, Tensor], ours: dict[str, Tensor]) -> None:
    found = convert(theirs)
    assert set(found) == set(ours)
    for key, value in ours.items():
        assert torch.equal(found[key], value), key
    missing, unexpected = model.load_state_dict(found, strict=False)
    assert not unexpected
    assert all("num_batches_tracked" in key for key in missing)


@pytest.mark.parametrize("name", list(OFFICIAL))
def test_official_layout(name: str) -> None:
    model = member(name, 0)
    ours = weights(model)
    theirs = OFFICIAL[name](ours)
    assert scheme_of(theirs) == "official"
    check(model, theirs, ours)


def test_a_training_scripts_dict_is_opened() -> None:
    model = member("detr", 0)
    ours = weights(model)
    theirs = {f"module.{k}": v for k, v in layouts.official_dense(ours).items()}
    check(model, {"model": theirs, "epoch": 50}, ours)  # type: ignore[dict-item]


@pytest.mark.parametrize("name", DETREX)
def test_detrex_layout(name: str) -> None:
    model = member(name, 0)
    ours = weights(model)
    if name == "dino":  # whose port has a head for every layer
        for layer in range(1, DECODERS):
            for key in [k for k in ours if k.startswith(("class_heads.0.", "box_heads.0."))]:
                ours[key.replace(".0.", f".{layer}.", 1)] = torch.rand(ours[key].shape)
        model = build("dino", model.backbone, share_heads=False)
    theirs = layouts.detrex(ours, DECODERS)
    assert scheme_of(theirs) == "detrex"
    check(model, theirs, ours)


def test_a_loaded_model_predicts_as_before() -> None:
    source, target = member("dino", 0).eval(), member("dino", 1).eval()
    target.load_state_dict(convert(layouts.official_dino(source.state_dict(), DECODERS)))
    with torch.no_grad():
        a, b = source(batch()), target(batch())
    assert torch.equal(a[0]["instances"].scores, b[0]["instances"].scores)


@pytest.mark.parametrize(("name", "background"), [("detr", True), ("conditional", False), ("dino", False)])
def test_class_rows(name: str, background: bool) -> None:
    """The authors' COCO heads have a row per category id; ours one per class."""
    ours = weights(member(name, 0))
    published = dict(ours)
    wide = 91
    rows = torch.randperm(wide)[:CLASSES].tolist()
    for key, value in ours.items():
        if key.startswith(("class_heads.0.", "queries.class_head.", "denoising.label_embedding.")):
            last = background and not key.startswith("denoising")
            published[key] = torch.rand(wide + int(last), *value.shape[1:])
    theirs = OFFICIAL[name](published)
    found = convert(theirs, class_rows=rows)
    for key, value in published.items():
        if found[key].shape != value.shape:
            assert torch.equal(found[key][:CLASSES], value[rows]), key
            assert found[key].shape == ours[key].shape
            if background:
                assert torch.equal(found[key][-1], value[-1])
    assert found["class_heads.0.weight"].shape == ours["class_heads.0.weight"].shape


def test_unknown_keys_keep_their_names() -> None:
    theirs = layouts.official_dense(weights(member("detr", 0)))
    theirs["mask_head.lay1.weight"] = torch.zeros(1)
    assert "mask_head.lay1.weight" in convert(theirs)


def test_refuses_what_is_no_foreign_detr() -> None:
    ours = weights(member("detr", 0))
    assert scheme_of(ours) is None
    with pytest.raises(ValueError, match="official, detrex, transformers or mmdetection"):
        convert(ours)
