"""DetCLIPv2 on ShapeWorld: boxes, phrases and captions, two CPU cores, no download.

A backbone from object crops of another dataset (it stands for ImageNet), then pre-training; its run is the folder
``train`` below ``train.output_dir``.
"""

from ..common.crop_backbone import after_crops
from ..common.detclipv2_quickstart import dataloader as _dataloader
from ..common.detclipv2_quickstart import lr_multiplier as _lr_multiplier
from ..common.detclipv2_quickstart import model as _model
from ..common.detclipv2_quickstart import optimizer as _optimizer
from ..common.detclipv2_quickstart import train

train.output_dir = "./output/quickstart_detclipv2"
stages = after_crops(_model, dataloader=_dataloader, optimizer=_optimizer, lr_multiplier=_lr_multiplier, train=train)
