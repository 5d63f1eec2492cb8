"""A small COCO-format dataset that tests bend and break."""

import copy
import json

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from polydet.data import DatasetCard, card, register_card

DOCUMENT = {
    "images": [
        {"id": 7, "file_name": "b.jpg", "height": 40, "width": 60},
        {"id": 3, "file_name": "a.jpg", "height": 50, "width": 30},
        {"id": 9, "file_name": "c.jpg", "height": 20, "width": 20},
    ],
    "categories": [{"id": 5, "name": "cat"}, {"id": 2, "name": "dog"}],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 5, "bbox": [1, 2, 10, 12], "area": 120, "iscrowd": 0},
        {"id": 2, "image_id": 3, "category_id": 2, "bbox": [0.5, 0.25, 4, 8], "area": 32, "iscrowd": 0},
        {"id": 3, "image_id": 7, "category_id": 2, "bbox": [3, 3, 5, 5], "area": 25, "iscrowd": 1},
    ],
}


class Bench:
    """Writes documents and registers a card for them."""

    def __init__(self, root):
        self.root = root
        self.document = copy.deepcopy(DOCUMENT)
        (root / "images").mkdir()

    def card(self, text=None, **fields):
        """Write the document (or raw text) and register it under the name `toy`."""
        path = self.root / "toy.json"
        data = json.dumps(self.document) if text is None else text
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        fields = {"name": "toy", "json_file": str(path), "image_root": str(self.root / "images"), **fields}
        return register_card(DatasetCard(**fields), overwrite=True)


@pytest.fixture
def bench(tmp_path):
    """A document to edit; the catalogs are as before afterwards."""
    before = dict(card._CARDS)
    yield Bench(tmp_path)
    for name in set(card._CARDS) - set(before):
        del card._CARDS[name]
        DatasetCatalog.remove(name)
        if name in MetadataCatalog.list():
            MetadataCatalog.remove(name)
