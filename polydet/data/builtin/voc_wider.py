"""Cards of Pascal VOC, WIDER FACE and WIDER Pedestrian."""

from __future__ import annotations

from detectron2.data.datasets.pascal_voc import CLASS_NAMES as VOC_CLASSES

from polydet.data.card import DatasetCard, register_card

__all__ = ["VOC_CLASSES"]

_VOC_IMAGES = {
    2007: {"train": 2_501, "val": 2_510, "trainval": 5_011, "test": 4_952},
    2012: {"train": 5_717, "val": 5_823, "trainval": 11_540},
}
for _year, _splits in _VOC_IMAGES.items():
    for _split, _images in _splits.items():
        register_card(
            DatasetCard(
                name=f"voc_{_year}_{_split}",
                json_file=f"VOC{_year}/ImageSets/Main/{_split}.txt",
                image_root=f"VOC{_year}/JPEGImages",
                format="voc",
                classes=tuple(VOC_CLASSES),
                images=_images,
                about="Pascal VOC: 20 classes, exhaustive; difficult objects are ignored; scored as COCO",
                url="http://host.robots.ox.ac.uk/pascal/VOC/",
                licence="research use; images under Flickr terms",
            )
        )
register_card(
    DatasetCard(
        name="voc_0712_trainval",
        json_file=("VOC2007/ImageSets/Main/trainval.txt", "VOC2012/ImageSets/Main/trainval.txt"),
        image_root=("VOC2007/JPEGImages", "VOC2012/JPEGImages"),
        format="voc",
        classes=tuple(VOC_CLASSES),
        images=16_551,
        about="Pascal VOC 2007 and 2012 trainval together: 16,551 images",
        url="http://host.robots.ox.ac.uk/pascal/VOC/",
        licence="research use; images under Flickr terms",
    )
)
for _split in ("train", "val"):
    register_card(
        DatasetCard(
            name=f"wider_face_{_split}",
            json_file=f"wider_face/wider_face_split/wider_face_{_split}_bbx_gt.txt",
            image_root=f"wider_face/WIDER_{_split}/images",
            format="wider_face",
            classes=("face",),
            images=12_880 if _split == "train" else 3_226,
            about="WIDER FACE: 12,880 training and 3,226 validation images; invalid faces are ignored",
            url="http://shuoyang1213.me/WIDERFACE/",
            licence="non-commercial research",
        )
    )
    register_card(
        DatasetCard(
            name=f"wider_pedestrian_{_split}",
            json_file=f"wider_pedestrian/Annotations/{_split}_bbox.txt",
            image_root=f"wider_pedestrian/{_split}",
            format="wider_pedestrian",
            classes=("pedestrian",),
            images=11_500 if _split == "train" else 5_000,
            files={"ignore": f"wider_pedestrian/Annotations/{_split}_ignore.txt"},
            about="WIDER Pedestrian: 11,500 training and 5,000 validation images; ignore regions are crowds",
            url="https://competitions.codalab.org/competitions/20132",
            licence="non-commercial research",
        )
    )
