"""Published weights of parts (backbones, text towers), which a whole checkpoint makes needless."""

from typing import Any

from detectron2.utils.registry import locate
from omegaconf import DictConfig, ListConfig

from polydet.backbones import TimmBackbone
from polydet.backbones.eva_vit import EvaViT
from polydet.text import OpenClipTextTower


def skip_published_weights(node: Any) -> None:
    """Do not look for published weights of parts where a whole checkpoint is loaded afterwards."""
    if isinstance(node, DictConfig):
        target = node.get("_target_")
        target = locate(target) if isinstance(target, str) else target  # a saved config has the shortest name
        for owner, key in ((TimmBackbone, "weights"), (EvaViT, "weights"), (OpenClipTextTower, "pretrained")):
            if target is owner:
                node[key] = None
        children: Any = node.values()
    elif isinstance(node, ListConfig):
        children = node
    else:
        return
    for child in children:
        skip_published_weights(child)
