"""FCOS R50 with AlignDet's weights, 90k iterations of COCO: the headline run."""

from .aligndet.table2_fcos_r50_90k_align import data, dataloader, lr_multiplier, model, optimizer, train

train.output_dir = "./output/aligndet_fcos_r50"
