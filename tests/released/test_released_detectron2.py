"""Detectron2's model zoo: its detectors and the backbones that they start from, pickles that are read and never run."""

import pickle

import numpy as np
import pytest
import torch
from detectron2.config import instantiate
from detectron2.modeling import ResNet
from detectron2.modeling.backbone import BasicStem
from released_names import shapes_of
from torch import nn

from polydet import model_zoo
from polydet.backbones import TimmBackbone
from polydet.engine import CheckpointError, load_file
from polydet.engine.layouts import coco_by_id

DETECTORS = {
    "detectron2_faster_rcnn_r50_fpn": [],
    "detectron2_mask_rcnn_r50_fpn": [],
    "detectron2_retinanet_r50_fpn": [],
    "detectron2_retinanet_r101_fpn": ["model.backbone.bottom_up.stages.depth=101"],
}


def arrays(names):
    """One number all over in each array, and those numbers."""
    shapes = shapes_of(names)
    numbers = {key: 1000.0 + i / 8 for i, key in enumerate(sorted(shapes))}
    return {key: np.broadcast_to(np.float32(numbers[key]), shape) for key, shape in shapes.items()}, numbers


def write_zoo(path, state):
    path.write_bytes(pickle.dumps({"model": state, "__author__": "Detectron2 Model Zoo"}))


@pytest.mark.parametrize("name", DETECTORS)
def test_every_tensor_of_a_zoo_detector_has_its_place(name):
    config = f"released/{name.replace('r101', 'r50')}"
    cfg = model_zoo.get_config(config, DETECTORS[name])
    with torch.device("meta"):
        model = instantiate(cfg.model)
    assert {k: tuple(v.shape) for k, v in model.state_dict().items()} == shapes_of(name)
    assert model.input_format == cfg.dataloader.test.mapper.image_format == "BGR"
    assert model.backbone.bottom_up.res3[0].conv1.stride == (2, 2)  # MSRA's


class Part(nn.Module):
    """The heads of a detector whose class rows matter, with three classes."""

    def __init__(self):
        super().__init__()
        self.roi_heads, self.head = nn.Module(), nn.Module()
        self.roi_heads.box_predictor, self.roi_heads.mask_head = nn.Module(), nn.Module()
        self.roi_heads.box_predictor.cls_score = nn.Linear(4, 4)
        self.roi_heads.box_predictor.bbox_pred = nn.Linear(4, 12)
        self.roi_heads.mask_head.predictor = nn.Conv2d(4, 3, 1)
        self.head.cls_score = nn.Conv2d(4, 9 * 3, 3)


def test_fine_tuning_takes_the_rows_of_its_classes_by_name(tmp_path):
    names = [name for name in coco_by_id() if name]
    rows = np.arange(80, dtype=np.float32)
    cls = np.append(rows, 80)
    state = {
        "roi_heads.box_predictor.cls_score": cls,
        "roi_heads.box_predictor.bbox_pred": (10 * rows[:, None] + np.arange(4)).ravel(),
        "roi_heads.mask_head.predictor": rows,
        "head.cls_score": (100 * np.arange(9)[:, None] + rows).ravel(),  # all classes of the first anchor first
    }
    shapes = {key: value.shape for key, value in Part().state_dict().items()}
    state = {
        f"{k}.{kind}": np.broadcast_to(
            v.reshape(-1, *[1] * (len(shapes[f"{k}.{kind}"]) - 1)), (len(v), *shapes[f"{k}.{kind}"][1:])
        )
        for k, v in state.items()
        for kind in ("weight", "bias")
    }
    write_zoo(tmp_path / "zoo.pkl", state)
    model = Part()
    load_file(model, tmp_path / "zoo.pkl", complete=False, names=["dog", "axolotl", "person"])
    dog, person = names.index("dog"), names.index("person")
    heads = model.roi_heads
    assert heads.box_predictor.cls_score.bias[[0, 2, 3]].tolist() == [dog, person, 80]
    assert heads.box_predictor.bbox_pred.bias[[0, 1, 8, 11]].tolist() == [10 * dog, 10 * dog + 1, 0, 3]
    assert heads.mask_head.predictor.weight[[0, 2], 0, 0, 0].tolist() == [dog, person]
    assert model.head.cls_score.bias.view(9, 3)[:, [0, 2]].tolist() == [[100 * a + dog, 100 * a] for a in range(9)]


@pytest.fixture(scope="module")
def msra(tmp_path_factory):
    state, numbers = arrays("detectron2_msra_r50")
    path = tmp_path_factory.mktemp("msra") / "R-50.pkl"
    path.write_bytes(pickle.dumps(state))
    return path, numbers


class Detector(nn.Module):
    """A detector as far as its backbone goes."""

    def __init__(self, backbone, input_format="BGR"):
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.bottom_up, self.input_format = backbone, input_format
        self.head = nn.Linear(2, 2)


def resnet(stride_in_1x1=True, input_format="BGR"):
    stages = ResNet.make_default_stages(50, stride_in_1x1=stride_in_1x1, norm="FrozenBN")
    return Detector(ResNet(BasicStem(norm="FrozenBN"), stages, out_features=["res5"]), input_format)


def test_msras_r50_fills_detectron2s_resnet(msra):
    path, numbers = msra
    model = resnet()
    ledger = load_file(model, path, complete=False)
    body = model.backbone.bottom_up.state_dict()
    assert {k for k in model.state_dict() if k not in ledger.loaded} == {"head.weight", "head.bias"}
    assert all(bool((value == value.flatten()[0]).all()) for value in body.values())
    dropped = {key for keys in ledger.left_out.values() for key in keys}
    assert dropped == {"stem.conv1.bias", "fc1000.weight", "fc1000.bias"}
    found = {value.flatten()[0].item() for value in body.values()}
    assert {key for key, n in numbers.items() if n not in found} == {"conv1_b", "fc1000_w", "fc1000_b"}
    block = model.backbone.bottom_up.res4[5]
    assert block.conv2.weight.unique().item() == numbers["res4_5_branch2b_w"]
    assert block.conv2.norm.running_var.unique().item() == numbers["res4_5_branch2b_bn_running_var"]
    assert block.conv2.norm.bias.unique().item() == numbers["res4_5_branch2b_bn_beta"]
    with pytest.raises(CheckpointError, match="2 weights are not in the file and would be random"):
        load_file(model, path)


def test_a_frozen_norm_of_scale_and_shift_alone_is_the_identity_before_them(tmp_path):
    state, _ = arrays("detectron2_msra_r50")
    old = {k.replace("_bn_beta", "_bn_b").replace("_bn_gamma", "_bn_s"): v for k, v in state.items()}
    old = {k: v for k, v in old.items() if "running" not in k}
    (tmp_path / "old.pkl").write_bytes(pickle.dumps({"blobs": old}))
    model = resnet()
    load_file(model, tmp_path / "old.pkl", complete=False)
    norm = model.backbone.bottom_up.res2[0].conv1.norm
    assert norm.weight[0] > 1000
    assert norm.running_mean.tolist() == [0] * 64
    torch.testing.assert_close(norm.running_var + norm.eps, torch.ones(64))


def test_where_msras_r50_would_compute_something_else_it_is_refused(msra):
    path, _ = msra
    with pytest.raises(CheckpointError, match=r"set model\.backbone\.bottom_up\.stages\.stride_in_1x1=True"):
        load_file(resnet(stride_in_1x1=False), path, complete=False)
    with pytest.raises(CheckpointError, match=r"set model\.input_format=BGR"):
        load_file(resnet(input_format="RGB"), path, complete=False)
    timm = Detector(TimmBackbone("resnet50", weights=None), "RGB")
    with pytest.raises(CheckpointError, match=r"R-50\.pkl: a ResNet in Caffe2's names does not fit.*in the 3x3 ones"):
        load_file(timm, path, complete=False)
    with pytest.raises(CheckpointError, match=r"R-50\.pkl is no file for timm's 'resnet50': .*weights=timm"):
        TimmBackbone("resnet50", weights=str(path))


def test_detectors_of_detectron_1_are_refused(tmp_path):
    state = {"res2_0_branch2a_w": np.ones((2, 2, 1, 1), np.float32), "fpn_inner_res2_2_sum_lateral_w": np.ones(3)}
    (tmp_path / "model_final.pkl").write_bytes(pickle.dumps({"blobs": state}))
    with pytest.raises(CheckpointError, match="a detector of Detectron 1, whose boxes and anchors end a pixel later"):
        load_file(resnet(), tmp_path / "model_final.pkl", complete=False)
