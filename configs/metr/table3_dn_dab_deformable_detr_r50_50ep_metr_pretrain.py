"""Table 3: DN-DAB-Deformable-DETR that starts from METR's backbone, encoder and decoder."""

from .pretrain_metr_r50_o365_oimg_4ep import train as pretrained
from .table3_dn_dab_deformable_detr_r50_50ep import dataloader, lr_multiplier, model, optimizer, train

train.init_checkpoint = f"{pretrained.output_dir}/model_final.pth"
train.init.key_map = "metr.transfer:to_dn_dab_deformable_detr"
