"""Table 1: METR on COCO, VOC, WIDER FACE and WIDER Pedestrian at once, plainly concatenated."""

from .table2_metr_r50_12ep import dataloader, lr_multiplier, model, optimizer, train

dataloader.train.datasets = ["coco_2017_train", "voc_0712_trainval", "wider_face_train", "wider_pedestrian_train"]
dataloader.test_datasets = ["coco_2017_val", "voc_2007_test", "wider_face_val", "wider_pedestrian_val"]
