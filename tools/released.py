"""Released files: which config opens each, and the command that evaluates it.

python tools/released.py                     print docs/released.md
python tools/released.py --write             write it
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tabulate import tabulate

from polydet.files import write_text

PAGE = Path(__file__).resolve().parent.parent / "docs" / "released.md"
COLUMNS = ("file", "AP of its authors", "dataset", "config", "overrides")
OWN_HEADS = "model.share_heads=False"

# what the file is, AP, dataset, config, overrides
DETR = [
    ("DETR R50, 500 epochs", "42.0", "COCO val", "detr/detr_r50", ""),
    ("Conditional DETR R50, 50 epochs", "41.0", "COCO val", "detr/conditional_detr_r50", ""),
    ("DAB-DETR R50, 50 epochs", "42.2", "COCO val", "detr/dab_detr_r50", ""),
    ("Deformable-DETR R50, 50 epochs", "44.5", "COCO val", "detr/deformable_detr_r50", ""),
    ("+ iterative refinement", "46.2", "COCO val", "detr/deformable_detr_r50_refine", ""),
    ("+ two stages", "46.9", "COCO val", "detr/deformable_detr_r50_two_stage", ""),
    ("DAB-Deformable-DETR R50 (v2), 50 epochs", "48.7", "COCO val", "detr/dab_deformable_detr_r50", ""),
    ("DN-DAB-Deformable-DETR R50, 50 epochs", "49.5", "COCO val", "detr/dn_dab_deformable_detr_r50", ""),
    ("DINO R50 4 scales, 12 epochs", "49.0", "COCO val", "detr/dino_4scale_r50", ""),
    ("DINO R50 5 scales, 12 epochs", "49.4", "COCO val", "detr/dino_5scale_r50", ""),
    ("DINO Swin-L 4 scales", "", "COCO val", "detr/dino_4scale_swin_l", ""),
    ("DINO Swin-L 5 scales, 36 epochs", "58.5", "COCO val", "detr/dino_5scale_swin_l", ""),
    ("DINO of detrex or mmdetection, whose layers have heads of their own", "", "COCO val", "detr/dino_4scale_r50",
     OWN_HEADS),
]  # fmt: skip
CODETR = [
    ("Co-Deformable-DETR R50, 12 epochs", "49.5", "COCO val", "codetr/table3_deformable_detr_pp_r50_12ep_k2", ""),
    ("Co-Deformable-DETR Swin-T, 12 (36) epochs", "51.7 (54.1)", "COCO val", "released/co_deformable_swin_t", ""),
    ("Co-Deformable-DETR Swin-S, 12 (36) epochs", "53.4 (55.3)", "COCO val", "released/co_deformable_swin_s", ""),
    ("Co-Deformable-DETR Swin-B, 12 (36) epochs", "55.5 (57.5)", "COCO val", "released/co_deformable_swin_b", ""),
    ("Co-Deformable-DETR Swin-L, 12 epochs", "56.9", "COCO val", "codetr/table3_deformable_detr_pp_swin_l_12ep_k2", ""),
    ("Co-Deformable-DETR Swin-L, 900 queries", "58.5", "COCO val",
     "codetr/table4_co_deformable_detr_pp_swin_l_36ep", ""),
    ("Co-DINO R50, 12 epochs", "52.1", "COCO val", "codetr_co_dino_r50", ""),
    ("Co-DINO R50, LSJ, 12 (36) epochs", "52.1 (54.8)", "COCO val", "codetr/table4_co_dino_pp_r50_12ep", ""),
    ("Co-DINO-9enc R50, LSJ, 12 (36) epochs", "52.6 (55.4)", "COCO val", "released/co_dino_9encoder_r50", ""),
    ("Co-DINO Swin-L, 12 / 24 / 36 epochs", "58.9 / 59.8 / 60.0", "COCO val",
     "codetr/table4_co_dino_5scale_swin_l_36ep", ""),
    ("Co-DINO Swin-L, LSJ, 12 / 24 / 36 epochs", "59.3 / 60.4 / 60.7", "COCO val",
     "codetr/table4_co_dino_pp_swin_l_36ep", ""),
    ("Co-DINO Swin-L, LSJ", "56.9", "LVIS minival", "codetr/table6_co_dino_pp_swin_l_lvis", ""),
    ("Co-DINO Swin-L from Objects365", "64.1", "COCO val", "released/co_dino_swin_l_o365_coco", ""),
    ("Co-DINO Swin-L from Objects365", "64.5", "LVIS minival", "released/co_dino_swin_l_o365_lvis", ""),
    ("Co-DINO ViT-L from Objects365", "65.9", "COCO val", "codetr/table5_co_dino_vit_l_o365_coco_12ep",
     "model.tta=null"),
    ("Co-DINO ViT-L from Objects365", "68.0", "LVIS val", "codetr/table6_co_dino_pp_vit_l_o365_lvis", ""),
]  # fmt: skip
SCALEDET = [
    ("Detic BoxSup R50 (as a start)", "", "LVIS", "scaledet/table1_scaledet_r50_l_c", ""),
    ("Detic BoxSup Swin-B (as a start)", "", "LVIS", "scaledet/table2_scaledet_swin_b_clip", ""),
    (
        "CenterNet2_R50_1x and its LVIS and Objects365 siblings (as a start)",
        "",
        "COCO, LVIS, Objects365",
        "released/scaledet_centernet2_r50",
        "",
    ),
]
ALIGNDET = [
    ("Faster R-CNN R50, fine-tuned 1x", "39.0", "COCO val", "aligndet/table2_faster_rcnn_r50_90k_base", ""),
    ("Mask R-CNN R50, fine-tuned 1x", "39.4, masks 35.3", "COCO val", "aligndet/table2_mask_rcnn_r50_90k_base", ""),
    ("RetinaNet R50, fine-tuned 1x", "37.3", "COCO val", "aligndet/table2_retinanet_r50_90k_base", ""),
    ("DETR R50, fine-tuned 150 epochs", "41.0", "COCO val", "aligndet/table6_detr_r50_sup_150ep_base", ""),
    ("Faster and Mask R-CNN R50, pre-trained (as a start)", "", "COCO", "aligndet/table2_mask_rcnn_r50_90k_align", ""),
    ("RetinaNet R50, pre-trained (as a start)", "", "COCO", "aligndet/table2_retinanet_r50_90k_align", ""),
    ("FCOS R50, pre-trained (as a start)", "", "COCO", "aligndet/table2_fcos_r50_90k_align", ""),
    ("DETR R50, pre-trained (as a start)", "", "COCO", "aligndet/table6_detr_r50_sup_150ep_align", ""),
]  # fmt: skip
R101 = "model.backbone.bottom_up.stages.depth=101"
DETECTRON2 = [
    ("Faster R-CNN R50-FPN, 3x: model_final_280758.pkl", "40.2", "COCO val",
     "released/detectron2_faster_rcnn_r50_fpn", ""),
    ("Faster R-CNN R101-FPN, 3x: model_final_f6e8b1.pkl", "42.0", "COCO val",
     "released/detectron2_faster_rcnn_r50_fpn", R101),
    ("Mask R-CNN R50-FPN, 3x: model_final_f10217.pkl", "41.0, masks 37.2", "COCO val",
     "released/detectron2_mask_rcnn_r50_fpn", ""),
    ("Mask R-CNN R101-FPN, 3x: model_final_a3ec72.pkl", "42.9, masks 38.6", "COCO val",
     "released/detectron2_mask_rcnn_r50_fpn", R101),
    ("RetinaNet R50-FPN, 3x: model_final_5bd44e.pkl", "38.7", "COCO val",
     "released/detectron2_retinanet_r50_fpn", ""),
    ("RetinaNet R101-FPN, 3x: model_final_971ab9.pkl", "40.4", "COCO val",
     "released/detectron2_retinanet_r50_fpn", R101),
]  # fmt: skip
GROUPS = (
    (
        "The DETR family",
        "In their authors' names; HuggingFace's, detrex's and mmdetection's are known too. A file of a dilated "
        "backbone (DC5) has the names and shapes of one that is not; where its own name says so, it needs "
        "`+model.backbone.bottom_up.model_kwargs={output_stride: 16}`. DAB-DETR with patterns, "
        "Deformable-DETR of one scale and DETR with masks are refused.",
        DETR,
    ),
    ("Co-DETR", "Auxiliary heads are loaded where the config has them.", CODETR),
    (
        "ScaleDet",
        "Text classifies: the file's embeddings of words are left out. Other files of CenterNet2 (DLA, Res2Net, BiFPN, "
        "one stage) and UniDet's, which begin with an RPN, have other parts than ScaleDet and are refused by name.",
        SCALEDET,
    ),
    (
        "AlignDet",
        "In mmdetection 2's names. AP from the paper's tables 2, 3 and 6. Fine-tuned FCOS is refused: its boxes are "
        "exponentials of what the head gives, Detectron2's are linear in it. Cascades, MobileNetV2 and CBNetV2 have no "
        "map. Pre-trained files continue a pre-training too, but for predictors of another number of classes.",
        ALIGNDET,
    ),
    (
        "Detectron2's model zoo",
        "Detectron2's own models. A training that starts from one of these takes the rows of its classes by name. "
        "The configs themselves start from `ImageNetPretrained/MSRA/R-50.pkl` in `$POLYDET_WEIGHTS`.",
        DETECTRON2,
    ),
)
HEAD = """# Released weights

The files that their authors published open by file name alone: the layout is recognised by the names and shapes in the
file, and class rows go to the config's classes by name (COCO's 91 rows by category id).

```bash
python tools/lazyconfig_train_net.py --config-file configs/detr/dino_4scale_r50.py --eval-only \\
    train.init_checkpoint=FILE
```

or with another config and its overrides from the tables below.

`model_zoo.get("CONFIG", weights="FILE")`, `model_zoo.get_cfg` with Detectron2's `DefaultPredictor`, and a run that
starts from `train.init_checkpoint` read them alike. Nothing in a file is run. A load that leaves a weight of the model
random, or a tensor of the file without a place, ends with an error that names the key to set.

**No real file was at hand.** Names and shapes of each layout were read off the authors' modules, and tests compare them
with each config's; a few random files of those layouts are loaded whole. The AP below is what the authors report, not
what was measured here.

This page is written by `python tools/released.py --write`.
"""


def page() -> str:
    """The page as markdown."""
    parts = [HEAD]
    for title, note, rows in GROUPS:
        table = [[f"`{cell}`" if i > 2 and cell else cell for i, cell in enumerate(row)] for row in rows]
        parts.append(
            f"## {title}\n\n{note}\n\n{tabulate(table, headers=COLUMNS, tablefmt='github', disable_numparse=True)}\n"
        )
    return "\n".join(parts)


def main() -> None:
    """Print or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    if parser.parse_args().write:
        write_text(PAGE, page())
    else:
        print(page())


if __name__ == "__main__":
    main()
