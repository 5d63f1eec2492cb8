"""One small file per kind of detector: predicted boxes, their features and the proposal each is assigned to."""

from aligndet.adapters.base import BoxSamples, DetectorAdapter, ViewOutput
from aligndet.adapters.cascade import CascadeAdapter
from aligndet.adapters.detr import DETRAdapter
from aligndet.adapters.fcos import FCOSAdapter
from aligndet.adapters.rcnn import RCNNAdapter
from aligndet.adapters.retinanet import RetinaNetAdapter

ADAPTERS: dict[str, type[DetectorAdapter]] = {
    "fcos": FCOSAdapter,
    "retinanet": RetinaNetAdapter,
    "faster_rcnn": RCNNAdapter,
    "mask_rcnn": RCNNAdapter,
    "cascade": CascadeAdapter,
    "cbnet": CascadeAdapter,
    "detr": DETRAdapter,
}

__all__ = [
    "ADAPTERS",
    "BoxSamples",
    "CascadeAdapter",
    "DETRAdapter",
    "DetectorAdapter",
    "FCOSAdapter",
    "RCNNAdapter",
    "RetinaNetAdapter",
    "ViewOutput",
]
