"""A row of a table at toy size, by overrides alone: family -> (row, what its parts need beyond COMMON)."""

COMMON = [
    "dataloader.train.total_batch_size=2",
    "dataloader.train.num_workers=0",
    "dataloader.test.num_workers=0",
    "dataloader.test_datasets=[coco_2017_val]",
    "dataloader.test.mapper.augmentations.short=64",
    "dataloader.test.mapper.augmentations.max_size=96",
    "train.max_iter=1",
    "train.max_epochs=0",
    "train.log_period=1",
    "train.pictures=0",
    "train.device=cpu",
    "train.amp.dtype=float32",
]
RESNET18 = ["model.backbone.bottom_up.name=resnet18", "model.backbone.bottom_up.weights=null"]
RESIZE = ["dataloader.train.mapper.augmentations.short=[64]", "dataloader.train.mapper.augmentations.max_size=96"]
CROP = ["dataloader.train.mapper.augmentations.crop_short=[64]", "dataloader.train.mapper.augmentations.crop=[48,64]"]
DETR = [*RESNET18, *RESIZE, *CROP, "model.encoder.num_layers=1", "model.decoder.num_layers=2"]
ONE_STEP = ["lr_multiplier.milestones=[]"]  # fractions of the run: a single step has none
FCOS = [*RESNET18, *RESIZE, *ONE_STEP]
RCNN = [
    *FCOS,
    "model.backbone.bottom_up.norm=train",  # random weights without statistics grow too large for a box
    "model.roi_heads.batch_size_per_image=16",
    "model.roi_heads.box_predictor.test_score_thresh=0.0",
    "model.proposal_generator.post_nms_topk=[50,20]",
]

FAMILIES = {
    "ScaleDet": (
        "scaledet/table1_scaledet_r50_l_c",
        [
            *RESNET18,
            "dataloader.train.mapper.augmentations.size=64",
            "model.roi_heads.fc_dims=[32]",
            "model.roi_heads.test_score_thresh=0.3",
            "model.templates=a",
        ],
    ),
    "METR": ("metr/table2_metr_r50_12ep", DETR),
    "Query2Label": (
        "metr/supp_table1_query2label_r50_res448",
        [
            "dataloader.train.mapper.augmentations.height=64",
            "dataloader.train.mapper.augmentations.width=64",
            "model.backbone.name=resnet18",
            "model.backbone.weights=null",
            *(f"model.{part}.dim=512" for part in ("position", "encoder.layer", "decoder_layer")),
            *(f"model.{part}.ffn_dim=64" for part in ("encoder.layer", "decoder_layer")),
        ],
    ),
    "Co-Deformable-DETR": ("codetr/table3_deformable_detr_pp_r50_12ep_k2", DETR),
    "Co-DINO": ("codetr/table4_co_dino_5scale_r50_12ep", [*DETR, "model.encoder.checkpoint_layers=0"]),
    "Deformable-DETR": ("codetr/table2_deformable_detr_r50_12ep_k0", DETR),
    "Conditional-DETR": ("codetr/table2_conditional_detr_c5_r50_36ep_k0", DETR),
    "DAB-DETR": ("codetr/table2_dab_detr_c5_r50_36ep_k0", DETR),
    "DINO": ("metr/table2_dino_r50_12ep", DETR),
    "DN-DAB-Deformable-DETR": ("metr/table3_dn_dab_deformable_detr_r50_50ep", DETR),
    "FCOS": ("aligndet/table2_fcos_r50_12k_base", FCOS),
    "RetinaNet": (
        "aligndet/table2_retinanet_r50_12k_base",
        [*FCOS, "model.backbone.top_block.in_channels=512", "model.test_score_thresh=0.0"],
    ),
    "Faster R-CNN": ("aligndet/table2_faster_rcnn_r50_12k_base", RCNN),
    "Mask R-CNN": ("aligndet/table2_mask_rcnn_r50_12k_base", RCNN),
    "DETR": ("aligndet/table2_detr_r50_50ep_base", [*DETR, *ONE_STEP]),
    "DetCLIPv2": (
        "detclipv2/supp_table5_detclipv2_swin_t_o365",
        [
            "model.backbone.bottom_up.weights=null",
            "model.text_tower.model_name=ViT-S-32-alt",
            "model.text_tower.pretrained=null",
            "model.head.dim=256",
            "model.definitions=null",
            "model.template='{name}'",
            "dataloader.train.sources.detection.mapper.mapper.augmentations.short=[64]",
            "dataloader.train.sources.detection.mapper.mapper.augmentations.max_size=96",
            "dataloader.train.sources.detection.mapper.num_concepts=10",
            "dataloader.train.sources.detection.sampler=null",
            "dataloader.train.sources.detection.total_batch_size=2",
            "+dataloader.train.sources.detection.num_workers=0",
        ],
    ),
}
PRETRAIN = (
    "aligndet/pretrain_fcos_r50_1x",
    [
        *ONE_STEP,
        "dataloader.train.mapper.short_edge_lengths=[64]",
        "dataloader.train.mapper.max_size=96",
        "dataloader.train.mapper.max_proposals=8",
        *(f"model.adapter.detector.{override.removeprefix('model.')}" for override in RESNET18),
    ],
)
