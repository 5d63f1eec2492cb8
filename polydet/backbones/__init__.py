"""Backbones and necks on Detectron2's ``Backbone`` interface."""

from polydet.backbones.necks import ChannelMapper, fpn, fpn_p3_p7
from polydet.backbones.timm_backbone import TimmBackbone

__all__ = ["ChannelMapper", "TimmBackbone", "fpn", "fpn_p3_p7"]
