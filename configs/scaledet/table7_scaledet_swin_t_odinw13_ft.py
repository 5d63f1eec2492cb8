"""Table 7 and supplement Table D, ScaleDet-T fine-tuned: one run a set, e.g. odinw.set=Aquarium."""

from .table2_scaledet_swin_t_openclip import model
from .table7_scaledet_r50_odinw13_ft import dataloader, lr_multiplier, odinw, optimizer, train

model.on_vocabulary_mismatch = "transfer"
model.backbone.bottom_up.weights = None
model.roi_heads.label_loss.soft_weight = 0.0
dataloader.train.mapper.augmentations.size = 896
train.output_dir = "./output/scaledet/swin_t_odinw13_ft/${odinw.set}"
train.init_checkpoint = "./output/scaledet/swin_t_openclip/model_final.pth"
