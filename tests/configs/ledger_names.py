"""How the ledger's words are written in configs, where the two name a thing differently."""

# dataset of the ledger -> cards that are it
DATASETS = {
    "objects365_train": [["objects365_v2_train"], ["objects365_v1_train"]],  # v1: UniDet's, table 3 of ScaleDet
    "objects365_val": [["objects365_v2_val"], ["objects365_v1_val"]],
    "pascal_voc_train": [["voc_0712_trainval"]],
    "pascal_voc_test": [["voc_2007_test"]],
    "imagenet_subset": [["imagenet_subset_proposals"]],
    "O365": [["objects365_v2_train"]],
    "GoldG": [["goldg_flickr_train", "goldg_gqa_train"]],
    "CC3M": [["cc3m_train"]],
    "CC15M": [["cc3m_train", "cc12m_train"]],
    "IN1k": [["imagenet1k_pairs_train"]],
}
# two datasets of the ledger -> the one card that holds both
UNIONS = {("voc_2007_trainval", "voc_2012_trainval"): "voc_0712_trainval"}
ODINW = {
    "AerialDrone": "AerialMaritimeDrone",
    "Rabbits": "CottontailRabbits",
    "Mushrooms": "NorthAmericaMushrooms",
    "Shellfish": "ShellfishOpenImages",
    "Thermal": "thermalDogsAndPeople",
    "Vehicles": "VehiclesOpenImages",
    "Pistols": "pistols",
    "Pothole": "pothole",
}
# start of a timm name -> backbone of the ledger
BACKBONES = {
    "resnet18": "R18",
    "resnet50": "R50",
    "resnet101": "R101",
    "mobilenetv2_100": "MobileNetV2",
    "swin_tiny": "Swin-T",
    "swin_small": "Swin-S",
    "swin_base": "Swin-B",
    "swin_large": "Swin-L",
    "eva02_large": "ViT-L",
}
# tag of published weights, or the name of their file -> what they were trained on
WEIGHTS = {
    "in1k": ("tv_in1k", "ms_in1k", "ra_in1k"),
    "in21k": ("ms_in22k", "resnet50_miil_21k"),
    "eva02": ("mim_m38m", "mim_m38m_ft_in22k_in1k"),
    "mocov2": ("resnet50_mocov2",),
    "pixpro": ("resnet50_pixpro",),
    "swav": ("resnet50_swav",),
    "simmim": ("swin_base_simmim",),
}
WEIGHTS_EPOCHS = {"mocov2": 800, "pixpro": 400, "swav": 800}  # docs/aligndet.md names the files of these lengths
# `pretrain` of the ledger -> weights, and the datasets of the detector it starts from
PRETRAIN = {
    "IN1K": ["in1k"],
    "IN1k": ["in1k"],
    "IN1K (not stated)": ["in1k"],
    "IN1K supervised": ["in1k"],
    "IN21k": ["in21k"],
    "IN-22K": ["in21k"],
    "MoCo v2 (ImageNet)": ["mocov2"],
    "PixPro (ImageNet)": ["pixpro"],
    "SwAV (ImageNet)": ["swav"],
    "SwAV": ["swav"],
    "SimMIM": ["simmim"],
    "EVA-02": ["eva02"],
    "EVA-02 then O365": ["eva02, objects365_v2_train"],
    "O365": ["in1k, objects365_v2_train"],
    "OImg": ["in1k, openimages_v4_train"],
    "O365+OImg": ["in1k, objects365_v2_train, openimages_v4_train"],
    "METR O365+OImg": ["in1k, objects365_v2_train, openimages_v4_train"],
    "ScaleDet multi-dataset model": ["lvis_v1_train, coco_2017_train, objects365_v2_train, openimages_v6_train"],
    "DetCLIPv2 O365+GoldG+CC15M": [
        f"{weights}, objects365_v2_train, goldg_flickr_train, goldg_gqa_train, cc3m_train, cc12m_train"
        for weights in ("in1k", "in21k")  # Swin-T, Swin-L
    ],
}
TEXT_ENCODERS = {
    ("ViT-B-32-quickgelu", "openai"): "CLIP ViT-B/32",
    ("ViT-B-16-quickgelu", "openai"): "CLIP-B/16",
    ("ViT-H-14", "laion2b_s32b_b79k"): "OpenCLIP ViT-H/14",
    ("ViT-L-14-quickgelu", "openai"): "CLIP ViT-L/14",
}
HEADS = {
    "atss": "ATSS",
    "faster_rcnn": "Faster-RCNN",
    "mask_rcnn": "Mask-RCNN",
    "retinanet": "RetinaNet",
    "fcos": "FCOS",
    "paa": "PAA",
    "gfl": "GFL",
}
# words of the ledger that say less than a config does -> what the config says
SAME = {
    ("detector", "not restated (UniDet setting)"): "CenterNet2",
    ("optimizer", "AdamW"): "AdamW",
    ("schedule", "as UniDet [51]"): "step",
}
IMAGES = {"coco_2017_train": 118_287, "imagenet_subset_proposals": 118_287}  # the subset is chosen as large (table 8)
