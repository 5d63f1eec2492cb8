"""AlignDet's released pre-training (mmdetection 2's names) as state dicts of this package.

Recognised wherever weights are loaded: the pre-training model takes both detectors, a detector that is to be fine-tuned
what its own :mod:`aligndet.transfer` takes. Their fine-tuned detectors are files of mmdetection like any other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from torch import Tensor, nn

from aligndet.modules import matches
from aligndet.pretrainer import AlignDet
from polydet.detr import DETR
from polydet.detr.checkpoint_maps import convert
from polydet.engine.layouts import Converted, Layout, register_layout
from polydet.engine.layouts.mmdet import fits as fits_detector
from polydet.engine.layouts.mmdet import leave_pyramid_biases, sizes_first, to_detectron2

StateDict = dict[str, Tensor]
SIDES = {"online_backbone.": "online.", "target_backbone.": "target."}
# kind of detector: a key that only it has, the projector in place of its classifier
_KINDS = {
    "faster_rcnn": ("roi_head.bbox_head.fc_cls.0.weight", "roi_head.bbox_head.fc_cls."),
    "retinanet": ("bbox_head.retina_cls.0.weight", "bbox_head.retina_cls."),
    "fcos": ("bbox_head.conv_cls.0.weight", "bbox_head.conv_cls."),
    "detr": ("bbox_head.projector.0.weight", "bbox_head.projector."),
}
_MODELS = {GeneralizedRCNN: "faster_rcnn", RetinaNet: "retinanet", FCOS: "fcos", DETR: "detr"}


def is_release(state: Mapping[str, Tensor]) -> bool:
    """Whether these are the keys of their pre-training."""
    return any(key.startswith("online_backbone.") for key in state)


def kind_of(state: Mapping[str, Tensor]) -> str:
    """Which detector was pre-trained, a key of :data:`aligndet.adapters.ADAPTERS`.

    Raises:
        ValueError: none that a map is written for.
    """
    for kind, (key, _) in _KINDS.items():
        if f"online_backbone.{key}" in state:
            return kind
    raise ValueError(
        "it pre-trained none of Faster R-CNN (Mask R-CNN), RetinaNet, FCOS and DETR: no map is written for cascades"
    )


def from_release(state: Mapping[str, Tensor]) -> StateDict:
    """Rename a pre-training checkpoint to :class:`AlignDet`'s modules.

    RetinaNet's anchors are reordered: there a location's nine run over ratios first, here over sizes. The third copy of
    the detector (``backbone.``, the online one again) is left out, as are FCOS's scales, which stand before an
    exponential there.

    Raises:
        ValueError: see :func:`kind_of`.
    """
    kind = kind_of(state)
    found: StateDict = {}
    for theirs, ours in SIDES.items():
        part = {k.removeprefix(theirs): v for k, v in state.items() if k.startswith(theirs)}
        found.update({ours + key: value for key, value in _adapter(part, kind).items()})
    return found


def _adapter(state: StateDict, kind: str) -> StateDict:
    """One detector and its projector."""
    start = _KINDS[kind][1]
    projector = {f"projector.{k.removeprefix(start)}": v for k, v in state.items() if k.startswith(start)}
    rest = {k: v for k, v in state.items() if not k.startswith(start) and not re.match(r"bbox_head\.scales\.", k)}
    detector = convert(rest) if kind == "detr" else to_detectron2(rest)
    if kind == "retinanet":
        for part, prefix in ((detector, "head.bbox_pred."), (projector, "projector.2.")):
            part.update({k: sizes_first(v) for k, v in part.items() if k.startswith(prefix)})
    for key in [k for k, v in projector.items() if v.dim() == 4 and v.shape[2:] == (1, 1)]:
        projector[key] = projector[key].flatten(1)
    return {**projector, **{f"detector.{key}": value for key, value in detector.items()}}


def _fits(model: nn.Module) -> bool:
    return isinstance(model, AlignDet | DETR) or fits_detector(model)


def _convert(state: StateDict, model: nn.Module) -> Converted:
    kind = kind_of(state)
    inner = model.online.detector if isinstance(model, AlignDet) else model
    wanted = next((name for cls, name in _MODELS.items() if isinstance(inner, cls)), type(inner).__name__)
    if kind != wanted:
        raise ValueError(f"it pre-trained a {kind}, the model is a {wanted}")
    found = from_release(state)
    if isinstance(model, AlignDet):
        return _for_pretraining(found, model)
    from aligndet.transfer import PretrainedModules

    taken = PretrainedModules(kind)(found)
    left_out = leave_pyramid_biases(taken, model)
    kept = {f"online.detector.{key}" for key in taken}
    left_out["what is for pre-training alone"] = [key for key in found if key not in kept]
    return Converted(taken, left_out, covers=[key for key in model.state_dict() if key in taken])


def _for_pretraining(found: StateDict, model: AlignDet) -> Converted:
    """All but predictors of another number of classes: theirs has 256 for boxes that are not told apart by class."""
    own = model.state_dict()
    predictors = [f"{side}detector.{name}" for side in SIDES.values() for name in model.online.predictors]
    other = [k for k, v in found.items() if matches(k, predictors) and (k not in own or own[k].shape != v.shape)]
    kept = {key: value for key, value in found.items() if key not in other}
    kept["updated_at"] = torch.tensor(-1)
    return Converted(kept, {"final predictors of another number of classes": other} if other else {})


register_layout(Layout("AlignDet's pre-training (mmdetection's names)", is_release, _fits, _convert))
