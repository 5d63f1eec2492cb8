"""Supplementary table 1: Query2Label-R101, 448 x 448, 80 epochs."""

from .supp_table1_query2label_r50_res448 import dataloader, lr_multiplier, model, optimizer, train

model.backbone.name = "resnet101.tv_in1k"
