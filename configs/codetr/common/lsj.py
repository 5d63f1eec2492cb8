"""Co-DINO++ of tables 4 and 6: large-scale jitter on a canvas with copy-paste, test on the same canvas."""

from detectron2.config import LazyCall as L
from omegaconf import DictConfig

from polydet.data.copy_paste import CanvasMapper, CopyPasteMapper, canvas_resize


def lsj(dataloader: DictConfig, size: int) -> DictConfig:
    """Change a loader's mappers; no image is padded beyond the canvas, so there is no padding mask."""
    dataloader.train.mapper = L(CopyPasteMapper)(
        datasets="${dataloader.train.datasets}", merge="${dataloader.train.merge}", size=size
    )
    dataloader.test.mapper = L(CanvasMapper)(is_train=False, augmentations=L(canvas_resize)(size=size))
    return dataloader
