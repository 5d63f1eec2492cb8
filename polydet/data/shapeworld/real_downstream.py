"""ShapeWorld as joint training and downstream sets read it: GoldG's grounding json, CC's shards, ODinW's folders."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from polydet.data.card import find_card
from polydet.data.shapeworld.documents import caption_rows, coco_document, file_name, phrase_document
from polydet.data.shapeworld.generate import write_images, write_json, write_shards
from polydet.data.shapeworld.world import TRAINED_KINDS, Scene

__all__ = ["write_goldg", "write_odinw", "write_pairs"]

_GOLDG = ("goldg_flickr_train", "goldg_gqa_train")
_PAIRS = ("cc3m_train", "cc12m_train")


def write_goldg(root: Path, scenes: Mapping[str, list[Scene]], seed: int) -> None:
    """MDETR's files of Flickr30k and GQA; the training scenes, in halves."""
    for number, (name, part) in enumerate(zip(_GOLDG, _halves(scenes["train"]))):
        card = find_card(name)
        write_images(root / str(card.image_root), part)
        write_json(root / str(card.json_file), phrase_document(part, np.random.default_rng((seed, 7, number))))


def write_pairs(root: Path, scenes: Mapping[str, list[Scene]], seed: int) -> None:
    """One shard each of CC3M and CC12M; the training scenes, in halves."""
    for number, (name, part) in enumerate(zip(_PAIRS, _halves(scenes["train"]))):
        folder = root / str(find_card(name).image_root)
        write_images(folder / "images", part)
        rows = caption_rows(part, np.random.default_rng((seed, 8, number)))
        write_shards(folder, "00000", [(folder / "images" / image, text) for image, text in rows])
        shutil.rmtree(folder / "images")


def write_odinw(root: Path, scenes: Mapping[str, list[Scene]]) -> None:
    """The thirteen sets: the same few pictures for all, shapes under each set's class names."""
    from polydet.data.builtin.odinw import ODINW13

    for name in ODINW13:
        for split in ("train", "val", "test"):
            card = find_card(f"odinw_{name}_{split}")
            part = scenes["train" if split == "train" else "val"]
            classes = card.classes or ()
            names = {kind: classes[i % len(classes)] for i, kind in enumerate(TRAINED_KINDS)}
            names = dict(list(names.items())[: max(len(classes), 2)])  # of few classes few shapes are objects
            document = coco_document(part, names, classes)
            files = [f"{split}_{file_name(i)}" for i in range(1, len(part) + 1)]  # one set keeps its splits together
            for image, file in zip(document["images"], files):
                image["file_name"] = file
            write_images(root / str(card.image_root), part, files)
            write_json(root / str(card.json_file), document)


def _halves(scenes: Sequence[Scene]) -> tuple[Sequence[Scene], Sequence[Scene]]:
    middle = (len(scenes) + 1) // 2
    return scenes[:middle], scenes[middle:] or scenes
