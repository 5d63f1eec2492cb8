"""Table 4, ScaleDet L,C with the federated hard loss of the row that it is compared with, Detic L,C."""

from detectron2.config import LazyCall as L

from scaledet import joint_image_counts

from .table1_scaledet_r50_l_c import dataloader, lr_multiplier, model, optimizer, train

model.roi_heads.label_loss.federated = "sampled"
model.image_counts = L(joint_image_counts)(label_space="${model.label_space}")
train.output_dir = "./output/scaledet/r50_l_c_fed"
