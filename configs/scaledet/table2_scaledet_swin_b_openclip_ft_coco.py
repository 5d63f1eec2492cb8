"""Table 2 row 6, ScaleDet-B* fine-tuned on COCO (also Table 6, supplement Table A): a quarter of Table C's length."""

from .table2_scaledet_swin_b_openclip import dataloader, lr_multiplier, model, optimizer, train

dataloader.train.update(datasets=["coco_2017_train"], total_batch_size=64)
dataloader.test_datasets = ["coco_2017_val"]
model.on_vocabulary_mismatch = "transfer"  # the labels of one dataset only
model.backbone.bottom_up.weights = None
optimizer.lr = 2e-5
train.update(max_iter=22500, reference_batch_size=64, output_dir="./output/scaledet/swin_b_openclip_ft_coco")
train.init_checkpoint = "./output/scaledet/swin_b_openclip/model_final.pth"
