"""AlignDet's release: pre-trained detectors as starts, fine-tuned ones as detectors, all in mmdetection 2's names."""

import copy
from functools import cache

import pytest
import torch
from detectron2.config import instantiate
from released_names import shapes_of, write

from aligndet.adapters import ADAPTERS
from aligndet.modules import matches
from polydet import model_zoo
from polydet.engine import load_file
from polydet.engine.layouts import find_layout, row_names

DERIVED = ("num_batches_tracked",)
ROWS = {
    "faster_rcnn": "table2_faster_rcnn_r50_90k_align",
    "mask_rcnn": "table2_mask_rcnn_r50_90k_align",
    "retinanet": "table2_retinanet_r50_90k_align",
    "fcos": "table2_fcos_r50_90k_align",
    "detr": "table2_detr_r50_50ep_align",
}
PRETRAINING = {
    "faster_rcnn": "pretrain_faster_rcnn_r50_1x",
    "retinanet": "pretrain_retinanet_r50_1x",
    "fcos": "pretrain_fcos_r50_1x",
    "detr": "pretrain_detr_r50_50ep",
}


@cache
def config(name):
    return model_zoo.get_config(f"aligndet/{name}")


@cache
def built(name):
    """On no device; nobody changes it."""
    with torch.device("meta"):
        return instantiate(config(name).model)


def state_of(name):
    shapes = shapes_of(name)
    return {key: torch.tensor(float(i)).expand(shape) for i, (key, shape) in enumerate(sorted(shapes.items()))}


def shapes(state):
    return {key: tuple(value.shape) for key, value in state.items() if not key.endswith(DERIVED)}


@pytest.mark.parametrize("kind", ["faster_rcnn", "mask_rcnn", "retinanet", "detr"])
def test_every_tensor_of_a_fine_tuned_detector_has_its_place(kind):
    model, state = built(ROWS[kind]), state_of(f"aligndet_{kind}")
    layout = find_layout(state, model)
    assert layout.name.startswith("a DET" if kind == "detr" else "a detector in mmdetection's")
    converted = layout.convert(state, model)
    assert shapes(converted.state) == shapes(model.state_dict()) and not converted.left_out
    assert tuple(converted.row_names) == row_names(80)


def test_a_fine_tuned_retinanet_loads_whole_with_its_anchors_in_our_order(tmp_path):
    numbers = write("aligndet_retinanet", tmp_path / "file.pth")
    data = torch.load(tmp_path / "file.pth", weights_only=True)
    data["model"]["bbox_head.retina_cls.bias"] = torch.arange(720.0)
    torch.save(data, tmp_path / "file.pth")
    with torch.device("meta"):
        model = instantiate(config(ROWS["retinanet"]).model)
    model = model.to_empty(device="cpu")
    for value in model.state_dict().values():
        value.fill_(float("nan") if value.is_floating_point() else 0)
    ledger = load_file(model, tmp_path / "file.pth", names=row_names(80))
    assert not ledger.missing and "mmdetection" in ledger.source
    values = [value for key, value in model.state_dict().items() if not key.endswith(DERIVED)]
    assert all(bool(torch.isfinite(value).all()) for value in values)
    found = {value.flatten()[0].item() for value in values}
    assert {key for key, n in numbers.items() if n not in found and not key.endswith(DERIVED)} == {
        "bbox_head.retina_cls.bias"
    }
    bias = model.head.cls_score.bias.view(3, 3, 80)  # [size, ratio, class]
    torch.testing.assert_close(bias, torch.arange(720.0).view(3, 3, 80).transpose(0, 1))
    assert not model.backbone.top_block.relu


def test_what_would_compute_something_else_is_refused():
    model, state = built(ROWS["fcos"]), state_of("aligndet_fcos")
    with pytest.raises(ValueError, match="distances are exponentials"):
        find_layout(state, model).convert(state, model)
    model = copy.deepcopy(built(ROWS["retinanet"]))
    model.backbone.top_block.relu = True
    state = state_of("aligndet_retinanet")
    with pytest.raises(ValueError, match="P7 reads P6 without a ReLU"):
        find_layout(state, model).convert(state, model)
    model, state = built(ROWS["retinanet"]), state_of("aligndet_pretrain_fcos")
    with pytest.raises(ValueError, match="it pre-trained a fcos, the model is a retinanet"):
        find_layout(state, model).convert(state, model)


@pytest.mark.parametrize("kind", PRETRAINING)
def test_pre_training_goes_on_from_the_authors(kind):
    model, state = built(PRETRAINING[kind]), state_of(f"aligndet_pretrain_{kind}")
    converted = find_layout(state, model).convert(state, model)
    own, found = shapes(model.state_dict()), shapes(converted.state)
    assert not {key for key in found if own.get(key) != found[key]}
    predictors = [f"*.detector.{name}" for name in (*model.online.predictors, *model.online.unused)]
    assert all(matches(key, predictors) for key in own.keys() - found.keys())
    dropped = {key for keys in converted.left_out.values() for key in keys}
    assert all(matches(key, predictors) for key in dropped)
    used = {value.flatten()[0].item() for value in converted.state.values()}
    lost = {k for k, v in state.items() if v.flatten()[0].item() not in used and not k.startswith("backbone.")}
    lost = {key.split(".", 1)[1] for key in lost if not key.endswith(DERIVED)}
    assert all(key.startswith(("bbox_head.scales.", "roi_head.bbox_head.fc_reg.", "bbox_head.transf")) for key in lost)
    assert kind == "detr" or not any(key.startswith("bbox_head.transf") for key in lost)


@pytest.mark.parametrize("kind", PRETRAINING)
def test_fine_tuning_starts_from_the_authors_pre_training(kind):
    """By the row's own key map, and without it."""
    row = config(ROWS[kind])
    file = f"aligndet_pretrain_{kind}"
    state = {key: value.contiguous() for key, value in state_of(file).items() if ".backbone." not in key}
    model = built(ROWS[kind])
    converted = find_layout(state_of(file), model).convert(state_of(file), model)
    fresh = (*ADAPTERS[kind].predictors, *ADAPTERS[kind].unused, "backbone.fpn_*.norm", "backbone.top_block.*.norm")
    own, found = shapes(model.state_dict()), shapes(converted.state)
    assert all(own[key] == shape for key, shape in found.items())
    assert {key for key in own.keys() - found.keys() if not matches(key, fresh)} == set()
    module, name = row.train.init.key_map.split(":")
    key_map = getattr(__import__(module, fromlist=[name]), name)
    assert key_map(state).keys() == {k for k in found if not k.startswith("backbone.bottom_up.")}
