"""Table 6: Co-DINO++ Swin-L on LVIS boxes: FedLoss, 1280 pixel canvas, 36 epochs (the released schedule)."""

from detectron2.config import LazyCall as L

from polydet.data import class_image_counts

from .table4_co_dino_pp_swin_l_36ep import dataloader, lr_multiplier, model, optimizer, train

dataloader.train.datasets = ["lvis_v1_train"]
dataloader.test_datasets = ["lvis_v1_val", "lvis_v1_minival"]
model.class_counts = L(class_image_counts)(name="lvis_v1_train")
