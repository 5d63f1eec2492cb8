"""Cards of grounding data and image-text pairs."""

from __future__ import annotations

from polydet.data.card import DatasetCard, register_card

__all__: list[str] = []

_MDETR = "https://github.com/ashkamath/mdetr"
for _name, _json, _images, _about in (
    (
        "goldg_flickr_train",
        "mdetr_annotations/final_flickr_separateGT_train.json",
        "flickr30k/flickr30k_images",
        "Flickr30k Entities as MDETR prepares it: phrases of captions with boxes",
    ),
    (
        "goldg_gqa_train",
        "mdetr_annotations/final_mixed_train_no_coco.json",
        "gqa/images",
        "GQA and Visual Genome as MDETR prepares them, without COCO images",
    ),
):
    register_card(
        DatasetCard(
            name=_name,
            json_file=_json,
            image_root=_images,
            format="grounding",
            classes=("object",),
            category_ids=(1,),
            evaluator="none",
            about=_about,
            url=_MDETR,
            licence="research use; images under their own terms",
        )
    )
for _name, _folder, _about in (
    ("cc3m_train", "cc3m", "Conceptual Captions 3M as webdataset shards (img2dataset's output)"),
    ("cc12m_train", "cc12m", "Conceptual 12M as webdataset shards (img2dataset's output)"),
):
    register_card(
        DatasetCard(
            name=_name,
            json_file=f"{_folder}/*.tar",
            image_root=_folder,
            format="webdataset",
            classes=("object",),
            evaluator="none",
            about=_about,
            url="https://github.com/rom1504/img2dataset",
            licence="captions: Google's terms; images under their own terms",
        )
    )
register_card(
    DatasetCard(
        name="imagenet1k_pairs_train",
        json_file="imagenet/train",
        image_root="imagenet/train",
        format="class_folders",
        classes=("object",),
        evaluator="none",
        options={"captions": "open_clip:IMAGENET_CLASSNAMES"},
        images=1_281_167,
        about="ImageNet-1k: 1,281,167 images, the caption is the class name (open_clip's names)",
        url="https://image-net.org/download.php",
        licence="ImageNet terms of access",
    )
)
