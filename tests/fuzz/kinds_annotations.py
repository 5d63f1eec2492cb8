"""Json annotations: COCO, LVIS, OpenImages' json, grounding, proposals, hierarchies."""

import json
import math

import numpy as np

from aligndet.proposal_columns import ProposalColumns
from aligndet.proposal_run import images_of_json
from polydet.data import DatasetError
from polydet.data.card import DatasetCard
from polydet.data.hierarchy import read_hierarchy
from polydet.data.readers import READERS
from tests.fuzz.campaign import Wrong, kind
from tests.fuzz.mutate import change_json


def parse(data):
    """The json that the bytes are, as Python's own parser reads them."""
    return json.loads(data.decode("utf-8-sig"))


def usable(box, width, height):
    """Whether a box (XYWH) is one that can be used: finite, with an area, over its image."""
    try:
        x, y, w, h = (float(v) for v in box)
    except OverflowError:
        return False
    finite = all(math.isfinite(v) and abs(v) <= 1e6 for v in (x, y, w, h))
    return finite and w > 0 and h > 0 and x < width and y < height and x + w > 0 and y + h > 0


def same_boxes(found, expected):
    """Compare [(label, box, crowd)] of one image in the file's order."""
    if len(found) != len(expected):
        raise Wrong(f"{len(found)} boxes in place of {len(expected)}")
    for (label, box, crowd), (k, b, c) in zip(found, expected):
        if label != k or bool(crowd) != bool(c) or not np.allclose(box, np.float32(b), rtol=1e-6, atol=1e-6):
            raise Wrong(f"{(label, box, crowd)} in place of {(k, b, c)}")


CATEGORIES = [{"id": 5, "name": "cat"}, {"id": 2, "name": "dog"}]
IMAGES = [
    {"id": i, "file_name": f"{i}.jpg", "coco_url": f"http://x/val/{i}.jpg", "height": 40, "width": 60,
     "caption": "two dogs and a cat", "neg_category_ids": [2], "not_exhaustive_category_ids": [5]}
    for i in (7, 3)
]  # fmt: skip
ANNOTATIONS = [
    {"id": i, "image_id": image, "category_id": k, "bbox": [2 * i, 3, 10.5, 12], "iscrowd": int(i == 3), "area": 126,
     "tokens_positive": [[0, 3], [4, 8]], "segmentation": [[1, 2, 9, 9, 1, 9]]}
    for i, image, k in ((1, 7, 5), (2, 3, 5), (3, 7, 2), (4, 7, 2))
]  # fmt: skip
DOCUMENT = {"images": IMAGES, "categories": CATEGORIES, "annotations": ANNOTATIONS}


class Coco:
    """A COCO-like reader."""

    errors, form = DatasetError, "coco"

    def __init__(self, folder):
        self.card = DatasetCard("fuzzed", str(folder / "toy.json"), str(folder), format=self.form)

    def seed(self):
        return {"toy.json": json.dumps(DOCUMENT).encode()}

    def case(self, rng):
        return {"toy.json": change_json(DOCUMENT, rng)}

    def read(self, folder):
        return READERS[self.form](self.card, folder / "toy.json", folder)

    def check(self, files, result):
        table, card = result
        document = parse(files["toy.json"])
        names = self.names(document, card)
        if len(table) != len(document["images"]):
            raise Wrong("another number of images")
        by_id = {image["id"]: image for image in document["images"]}
        for record in table:
            image = by_id[record["image_id"]]
            self.check_image(record, image)
            mine = [a for a in document.get("annotations", []) if a["image_id"] == image["id"]]
            mine = [a for a in mine if usable(a["bbox"], image["width"], image["height"])]
            found = [(card.classes[a["category_id"]], a["bbox"], a["iscrowd"]) for a in record["annotations"]]
            same_boxes(found, [(names[a["category_id"]], a["bbox"], self.crowd(a)) for a in mine])
            for a, b in zip(record["annotations"], mine):
                self.check_annotation(a, b, image)

    def names(self, document, card):
        """Class name of each id, which the table must agree with."""
        names = {c["id"]: " ".join(c["name"].split()) for c in document["categories"]}
        if [names[id_] for id_ in card.category_ids] != list(card.classes):
            raise Wrong(f"classes {card.classes} for ids {card.category_ids} of {names}")
        return names

    def crowd(self, annotation):
        return annotation.get("iscrowd", 0) or bool(annotation.get("isgroupof"))

    def check_image(self, record, image):
        if not record["file_name"].endswith("/" + image["file_name"]):
            raise Wrong(f"{record['file_name']} for {image['file_name']}")
        if (record["height"], record["width"]) != (image["height"], image["width"]):
            raise Wrong("another size")

    def check_annotation(self, record, annotation, image):
        mask = annotation.get("segmentation")
        kept = record.get("segmentation", ()) if isinstance(mask, list) else ()
        if any(polygon not in mask for polygon in kept):
            raise Wrong(f"mask {kept} of {mask}")


kind("coco")(Coco)


@kind("lvis")
class Lvis(Coco):
    """Federated labels beside the boxes."""

    form = "lvis"

    def check_image(self, record, image):
        if "coco_url" in image:
            image = {**image, "file_name": "/".join(image["coco_url"].split("/")[-2:])}
        super().check_image(record, image)
        negative = image.get("neg_category_ids", [])
        if len(record["neg_category_ids"]) != len(negative):
            raise Wrong(f"negatives {record['neg_category_ids']} of {negative}")


@kind("openimages_json")
class OpenImagesJson(Coco):
    """Group-of flags."""

    form = "openimages_json"


@kind("grounding")
class Grounding(Coco):
    """Phrases of captions."""

    form = "grounding"

    def check_annotation(self, record, annotation, image):
        words = [image["caption"][a:b].strip() for a, b in annotation.get("tokens_positive", [])]
        if record["phrase"] != " ".join(words) or not record["phrase"].isprintable() and "\x00" not in record["phrase"]:
            raise Wrong(f"phrase {record['phrase']!r} of {words}")


@kind("coco_card")
class CocoOfCard(Coco):
    """A card that declares classes and ids: the file may have no others, and none under another name."""

    def __init__(self, folder):
        super().__init__(folder)
        self.card = DatasetCard(
            "fuzzed", str(folder / "toy.json"), str(folder), classes=("cat", "dog", "elk"), category_ids=(5, 2, 9)
        )

    def names(self, document, card):
        """The card's names, whatever the file has of them; up to case and punctuation they are the file's."""
        names = dict(zip((5, 2, 9), ("cat", "dog", "elk")))
        for category in document["categories"]:
            plain = "".join(char for char in category["name"].casefold() if char.isalnum())
            if names.get(category["id"]) != plain:
                raise Wrong(f"{category} taken for one of {names}")
        return names


@kind("proposals")
class Proposals:
    """Boxes that somebody else made, as COCO json."""

    errors = DatasetError

    def __init__(self, folder):
        pass

    def seed(self):
        return {"p.json": json.dumps(DOCUMENT).encode()}

    def case(self, rng):
        return {"p.json": change_json(DOCUMENT, rng)}

    def read(self, folder):
        return ProposalColumns.read_coco(folder / "p.json")

    def check(self, files, columns):
        document = parse(files["p.json"])
        ids = sorted({c["id"] for c in document["categories"]})
        if columns.image_ids.tolist() != [image["id"] for image in document["images"]]:
            raise Wrong("other images")
        for i, image in enumerate(document["images"]):
            if columns.file_names[i] != image["file_name"]:
                raise Wrong("another name")
            mine = [a for a in document["annotations"] if a["image_id"] == image["id"]]
            mine = [a for a in mine if np.isfinite(np.float64(a["bbox"])).all() and min(a["bbox"][2:]) > 0]
            rows = slice(int(columns.offsets[i]), int(columns.offsets[i + 1]))
            found = [(int(k), box, 0) for k, box in zip(columns.labels[rows], columns.boxes[rows])]
            same_boxes(found, [(ids.index(a["category_id"]), a["bbox"], 0) for a in mine])


@kind("proposal_images")
class ProposalImages:
    """The images of a json, for selective search."""

    errors = DatasetError

    def __init__(self, folder):
        pass

    def seed(self):
        return {"i.json": json.dumps({"images": IMAGES}).encode()}

    def case(self, rng):
        return {"i.json": change_json({"images": IMAGES}, rng)}

    def read(self, folder):
        return images_of_json(folder / "i.json")

    def check(self, files, records):
        images = parse(files["i.json"])["images"]
        for record, image in zip(records, images, strict=True):
            name = image.get("file_name") or "/".join(image["coco_url"].split("/")[-2:])
            if (record.image_id, record.file_name) != (image["id"], name):
                raise Wrong(f"{record} of {image}")


TREE = {
    "LabelName": "root",
    "Subcategory": [
        {"LabelName": "animal", "Subcategory": [{"LabelName": "cat"}, {"LabelName": "dog"}]},
        {"LabelName": "toy", "Subcategory": [{"LabelName": "dog"}]},
    ],
}


@kind("hierarchy")
class Hierarchy:
    """OpenImages' tree of classes."""

    errors = DatasetError
    mapping = {"animal": 0, "cat": 1, "dog": 2, "toy": 3}

    def __init__(self, folder):
        pass

    def seed(self):
        return {"h.json": json.dumps(TREE).encode()}

    def case(self, rng):
        return {"h.json": change_json(TREE, rng)}

    def read(self, folder):
        return read_hierarchy(folder / "h.json", self.mapping)

    def check(self, files, matrix):
        expected = {(k, k) for k in self.mapping.values()}
        stack = [(parse(files["h.json"]), [])]
        while stack:
            node, above = stack.pop()
            k = self.mapping.get(node["LabelName"])
            if k is not None:
                expected |= {(k, a) for a in above}
                above = [*above, k]
            stack += [(child, above) for child in node.get("Subcategory", [])]
        if {tuple(p) for p in np.argwhere(matrix).tolist()} != expected:
            raise Wrong("another tree")
