"""Thresholds of inference of any model under Detectron2's three names, and operating points per class."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from typing import Any

import torch
from detectron2.layers import batched_nms
from detectron2.structures import Instances
from detectron2.utils.registry import locate
from torch import Tensor, nn

_NAMES = {
    "score": ("test_score_thresh", "score_threshold"),
    "nms": ("test_nms_thresh", "nms_threshold"),
    "detections": ("test_topk_per_image", "max_detections_per_image", "max_detections"),
}


@dataclass(frozen=True)
class Thresholds:
    """What becomes a detection.

    Attributes:
        score: least score.
        nms: IoU from which on the weaker of two boxes of a class goes; 1 for a model without suppression.
        detections: most detections an image, the best; -1 for all that the model gives.
    """

    score: float = 0.0
    nms: float = 1.0
    detections: int = -1


def thresholds_in(model: Any) -> Thresholds:
    """Thresholds of a model's config; of a DETR the number of its answers.

    Args:
        model: the config's ``model``, as a mapping.
    """
    post = model.get("postprocess")
    if isinstance(post, Mapping) or hasattr(post, "get"):
        number = post.get("max_detections") or post.get("num")
        return Thresholds(detections=int(number) if isinstance(number, int) else -1)
    found: dict[str, Any] = {}
    for name, value in _arguments(model):
        for kind, names in _NAMES.items():
            if name in names and isinstance(value, int | float):
                found.setdefault(kind, value)
    return Thresholds(**found)


def _arguments(node: Any) -> Iterator[tuple[str, Any]]:
    """Arguments of every call, those that a config leaves at their default included."""
    if hasattr(node, "items"):
        target = node.get("_target_")
        target = locate(target) if isinstance(target, str) else target
        defaults = inspect.signature(target).parameters if inspect.isclass(target) or inspect.isroutine(target) else {}
        yield from ((name, p.default) for name, p in defaults.items() if name not in node)
        for name, value in node.items():
            yield str(name), value
            yield from _arguments(value)
    elif isinstance(node, Sequence) and not isinstance(node, str):
        for item in node:
            yield from _arguments(item)


def apply_thresholds(model: nn.Module, wanted: Thresholds, own: Thresholds) -> None:
    """Let ``model`` answer under ``wanted`` where that differs from its ``own``.

    Its parts are set, so that lower thresholds bring more; what no part of a model looks at is done to its answers.
    """
    changed = {kind: getattr(wanted, kind) for kind in _NAMES if getattr(wanted, kind) != getattr(own, kind)}
    if not changed:
        return
    for module in model.modules():
        settings = getattr(module, "settings", None)
        if is_dataclass(settings) and not isinstance(settings, type):
            module.settings = replace(settings, **_of_part(settings, changed))  # type: ignore[assignment]
        for name, value in _of_part(module, changed).items():
            setattr(module, name, value)
    post = getattr(model, "postprocess", None)  # of a DETR: its best answers
    if wanted.detections > getattr(post, "num", wanted.detections):
        post.num = wanted.detections  # type: ignore[union-attr]
    suppressed = "nms" in changed and wanted.nms < 1
    limits = Thresholds(wanted.score, wanted.nms if suppressed else 1.0, wanted.detections)
    model.register_forward_hook(lambda _model, _inputs, outputs: _filter(_model, outputs, limits))


def _of_part(part: Any, changed: Mapping[str, Any]) -> dict[str, Any]:
    present = vars(part)
    found = {name: changed[kind] for kind, names in _NAMES.items() if kind in changed for name in names}
    return {name: value for name, value in found.items() if isinstance(present.get(name), int | float)}


def _filter(model: nn.Module, outputs: Any, limits: Thresholds) -> Any:
    if model.training:
        return None
    for output in outputs:
        found = output["instances"]
        found = found[found.scores >= limits.score]
        if limits.nms < 1:
            found = found[batched_nms(found.pred_boxes.tensor, found.scores, found.pred_classes, limits.nms)]
        if 0 <= limits.detections < len(found):
            found = found[found.scores.argsort(descending=True, stable=True)[: limits.detections]]
        output["instances"] = found
    return outputs


def apply_operating_points(model: nn.Module, points: Mapping[str, float], classes: Sequence[str]) -> None:
    """Keep of each class only detections from its own score on.

    Args:
        points: class name -> least score; a class without one keeps all its detections.
        classes: names of a model with a closed set of them; one that is asked for words has its ``vocabulary``.
    """

    def keep(module: nn.Module, _inputs: Any, outputs: Any) -> Any:
        if module.training:
            return None
        names = current_names(module, classes)
        least = torch.tensor([float(points.get(name, 0.0)) for name in names], dtype=torch.float32)
        for output in outputs:
            output["instances"] = _from_score_on(output["instances"], least)
        return outputs

    model.register_forward_hook(keep)


def _from_score_on(found: Instances, least: Tensor) -> Instances:
    return found[found.scores >= least.to(found.scores.device)[found.pred_classes]]


def current_names(model: nn.Module, classes: Sequence[str]) -> tuple[str, ...]:
    """What ``pred_classes`` index now: the words that a model was asked for, else ``classes``."""
    vocabulary = getattr(model, "vocabulary", None)
    return tuple(getattr(vocabulary, "names", None) or vocabulary or classes)
