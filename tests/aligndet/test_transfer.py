"""Pre-trained weights in the plain Detectron2 detector: what loads, what starts fresh, what the ledger says."""

import pytest
import torch
from aligndet_detectors import DETECTORS, build, two_view_batch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.events import EventStorage

from aligndet import transfer
from aligndet.adapters import ADAPTERS
from aligndet.modules import matches
from aligndet.pretrainer import AlignDet
from aligndet.transfer import PretrainedModules, export
from polydet.engine import load_weights


@pytest.fixture
def pretrained(kind, tmp_path):
    """A model after one step, and its checkpoint on disk."""
    model = AlignDet(build(kind), total_steps=10).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    with EventStorage(0):
        sum(model(two_view_batch(images=1)).values()).backward()
    torch.optim.SGD(trained, lr=1e-3).step()
    torch.save({"model": model.state_dict()}, tmp_path / "model_final.pth")
    return model, tmp_path / "model_final.pth"


def name_of(kind):
    return "detr" if kind == "dino" else kind


def adapter_of(kind):
    return ADAPTERS[name_of(kind)]


def fresh_patterns(kind):
    """What a fine-tuned detector does not take over."""
    return (*adapter_of(kind).predictors, *adapter_of(kind).unused)


def fine_tuned(kind, **kwargs):
    torch.manual_seed(9)
    return DETECTORS[kind][0](classes=7, **kwargs)


def test_exported_checkpoint_loads_into_the_plain_detector(kind, pretrained, tmp_path):
    model, checkpoint = pretrained
    weights = export(checkpoint, tmp_path / "aligned.pth", PretrainedModules(name_of(kind)))
    detector, fresh = fine_tuned(kind), fine_tuned(kind)
    result = DetectionCheckpointer(detector).load(str(tmp_path / "aligned.pth"))
    assert set(result) == {"__author__"} or "model" in torch.load(tmp_path / "aligned.pth", weights_only=True)
    online, initial = model.online.detector.state_dict(), fresh.state_dict()
    predictors = fresh_patterns(kind)
    for key, value in detector.state_dict().items():
        if matches(key, predictors):
            assert key not in weights and torch.equal(value, initial[key]), key
        else:
            assert torch.equal(value, online[key]), key


def test_ledger_is_full(kind, pretrained):
    _, checkpoint = pretrained
    state = torch.load(checkpoint, weights_only=True)["model"]
    detector = fine_tuned(kind)
    ledger = load_weights(detector, state, key_map=PretrainedModules(name_of(kind)))
    assert not ledger.conflicts and not ledger.unexpected
    assert ledger.missing and all(matches(key, fresh_patterns(kind)) for key in ledger.missing)
    expected = [k for k in detector.state_dict() if not matches(k, fresh_patterns(kind))]
    assert sorted(ledger.loaded) == sorted(expected)


@pytest.mark.parametrize("kind", ["faster_rcnn"])
@pytest.mark.parametrize(
    ("name", "loads"),
    [
        ("FASTER_RCNN_NECK", {"neck"}),
        ("FASTER_RCNN_NECK_RPN", {"neck", "rpn"}),
        ("FASTER_RCNN_NECK_HEAD", {"neck", "head"}),
        ("FASTER_RCNN", {"neck", "rpn", "head"}),
    ],
)
def test_module_switches_of_table_9(name, loads, pretrained):
    _, checkpoint = pretrained
    weights = getattr(transfer, name)(torch.load(checkpoint, weights_only=True)["model"])
    groups = ADAPTERS["faster_rcnn"].groups
    for group, patterns in groups.items():
        assert any(matches(key, patterns) for key in weights) == (group in loads), group
    assert any(key.startswith("backbone.bottom_up.") for key in weights)


@pytest.mark.parametrize("kind", ["fcos", "retinanet", "faster_rcnn"])
def test_norm_in_the_fpn_starts_fresh(kind, pretrained):
    _, checkpoint = pretrained
    state = torch.load(checkpoint, weights_only=True)["model"]
    detector = fine_tuned(kind, norm="BN")
    ledger = load_weights(detector, state, key_map=PretrainedModules(name_of(kind), fresh_fpn_norm=True))
    assert not ledger.unexpected and not ledger.conflicts
    fresh = [k for k in ledger.missing if not matches(k, fresh_patterns(kind))]
    assert fresh and all(k.startswith(("backbone.fpn_", "backbone.top_block.")) and ".norm." in k for k in fresh)


@pytest.mark.parametrize("kind", ["fcos"])
def test_kept_predictors_and_left_out_backbone(pretrained):
    _, checkpoint = pretrained
    state = torch.load(checkpoint, weights_only=True)["model"]
    kept = PretrainedModules("fcos", keep_predictors=True, backbone=False)(state)
    assert "head.bbox_pred.weight" in kept and not any(k.startswith("backbone.bottom_up") for k in kept)


def test_wrong_names_and_files_are_refused():
    with pytest.raises(ValueError, match="no adapter"):
        PretrainedModules("yolo")
    with pytest.raises(ValueError, match="no modules"):
        PretrainedModules("fcos", ["rpn"])
    with pytest.raises(KeyError, match="not from AlignDet"):
        PretrainedModules("fcos")({"head.weight": torch.zeros(1)})
