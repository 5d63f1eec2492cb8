"""Annotations that are csv, xml, plain text or tar."""

import csv
import io
import json
import math
import tarfile
import unicodedata
from xml.dom import minidom

import yaml
from PIL import Image

from detclipv2.definitions import read_concepts
from polydet.data import DatasetError
from polydet.data.card import DatasetCard
from polydet.data.convert import yolo_class_names, yolo_to_coco
from polydet.data.readers import READERS
from tests.fuzz.campaign import Wrong, kind
from tests.fuzz.kinds_annotations import same_boxes, usable
from tests.fuzz.mutate import change_bytes, change_words

WIDTH, HEIGHT = 60, 40


def change(text, rng):
    """By word or by byte."""
    return change_words(text, rng).encode() if rng.random() < 0.6 else change_bytes(text.encode(), rng)


def pictures(folder, names):
    """Pictures of 60 x 40."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (WIDTH, HEIGHT)).save(folder / name)


class Text:
    """One text file, changed by word or byte."""

    errors = DatasetError
    file, text = "", ""

    def seed(self):
        return {self.file: self.text.encode()}

    def case(self, rng):
        return {self.file: change(self.text, rng)}


BOXES = """ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsGroupOf
0a,xclick,/m/1,1,0.1,0.5,0.2,0.9,0
0b,xclick,/m/2,1,0.0,0.25,0.1,0.3,1
0a,xclick,/m/2,1,0.5,1,0.5,1,0
"""
LABELS = """ImageID,Source,LabelName,Confidence
0a,verification,/m/1,1
0b,verification,/m/1,0
0b,verification,/m/9,0
"""


@kind("openimages")
class OpenImages:
    """Boxes and image labels in csv."""

    errors, share = DatasetError, 0.5
    named = ("boxes.csv", "labels.csv", "pictures")

    def __init__(self, folder):
        pictures(folder / "pictures", ["0a.jpg", "0b.jpg"])
        self.card = DatasetCard(
            "fuzzed", str(folder / "boxes.csv"), str(folder / "pictures"), format="openimages", classes=("one", "two"),
            category_ids=("/m/1", "/m/2"), files={"labels": str(folder / "labels.csv")},
        )  # fmt: skip

    def seed(self):
        return {"boxes.csv": BOXES.encode(), "labels.csv": LABELS.encode()}

    def case(self, rng):
        files = self.seed()
        name, text = ("boxes.csv", BOXES) if rng.random() < 0.7 else ("labels.csv", LABELS)
        return {**files, name: change(text, rng)}

    def read(self, folder):
        return READERS["openimages"](self.card, folder / "boxes.csv", folder / "pictures")[0]

    def check(self, files, table):
        boxes, labels = (
            [dict(zip(rows[0][::-1], row[: len(rows[0])][::-1])) for row in rows[1:]]
            for rows in (list(csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""))) for data in files.values())
        )
        ids = {"/m/1": 0, "/m/2": 1}
        known = {row["ImageID"] for row in boxes} | {r["ImageID"] for r in labels if r["LabelName"] in ids}
        known &= {"0a", "0b"}
        if {record["image_id"] for record in table} != known:
            raise Wrong(f"images {[r['image_id'] for r in table]} of {known}")
        for record in table:
            mine, positive, negative = [], set(), set()
            for row in boxes:
                if row["ImageID"] == record["image_id"]:
                    x0, x1, y0, y1 = (float(row[k]) for k in ("XMin", "XMax", "YMin", "YMax"))
                    box = [x0 * WIDTH, y0 * HEIGHT, x1 * WIDTH - x0 * WIDTH, y1 * HEIGHT - y0 * HEIGHT]
                    positive.add(ids[row["LabelName"]])
                    if usable(box, WIDTH, HEIGHT):
                        mine.append((ids[row["LabelName"]], box, row["IsGroupOf"] == "1"))
            for row in labels:
                if row["ImageID"] == record["image_id"] and row["LabelName"] in ids:
                    (positive if float(row["Confidence"]) > 0 else negative).add(ids[row["LabelName"]])
            same_boxes([(a["category_id"], a["bbox"], a["iscrowd"]) for a in record["annotations"]], mine)
            if set(record["pos_category_ids"]) != positive or set(record["neg_category_ids"]) != negative - positive:
                raise Wrong("other verified labels")


XML = """<annotation><filename>0a.jpg</filename><size><width>60</width><height>40</height><depth>3</depth></size>
<object><name>cat</name><difficult>0</difficult><bndbox><xmin>3</xmin><ymin>4</ymin><xmax>20</xmax><ymax>30</ymax></bndbox>
</object><object><name>dog</name><difficult>1</difficult><bndbox><xmin>5</xmin><ymin>1</ymin><xmax>50</xmax><ymax>12</ymax>
</bndbox></object></annotation>
"""


@kind("voc")
class Voc(Text):
    """An xml file an image."""

    file, text, named = "Annotations/0a.xml", XML, ("0a.xml", "all.txt")

    def __init__(self, folder):
        self.listing = folder / "ImageSets" / "Main" / "all.txt"
        self.listing.parent.mkdir(parents=True)
        self.listing.write_text("0a\n")
        self.card = DatasetCard("fuzzed", str(self.listing), str(folder), format="voc", classes=("cat", "dog"))

    def read(self, folder):
        return READERS["voc"](self.card, self.listing, folder)[0]

    def check(self, files, table):
        root = minidom.parseString(files[self.file]).documentElement
        (record,) = table
        (size,) = children(root, "size")[:1]
        height, width = (int(float(text(size, key))) for key in ("height", "width"))
        expected = []
        for item in children(root, "object"):
            x0, y0, x1, y1 = (float(text(children(item, "bndbox")[0], key)) for key in ("xmin", "ymin", "xmax", "ymax"))
            box = (x0 - 1, y0 - 1, x1 - x0 + 1, y1 - y0 + 1)
            crowd = (text(item, "difficult") or "0").strip() == "1"
            if usable(box, width, height):
                expected.append((("cat", "dog").index(text(item, "name").strip()), box, crowd))
        if (record["height"], record["width"]) != (height, width):
            raise Wrong("another size")
        same_boxes([(a["category_id"], a["bbox"], a["iscrowd"]) for a in record["annotations"]], expected)


def children(node, name):
    """Child elements of a name."""
    return [child for child in node.childNodes if child.nodeType == child.ELEMENT_NODE and child.tagName == name]


def text(node, name):
    """Text before the first child of the first child element of a name, as ElementTree's findtext."""
    found = children(node, name)
    parts = []
    for child in found[0].childNodes if found else ():
        if child.nodeType == child.ELEMENT_NODE:
            break
        if child.nodeType in (child.TEXT_NODE, child.CDATA_SECTION_NODE):
            parts.append(child.data)
    return "".join(parts)


@kind("wider_face")
class WiderFace(Text):
    """A name, a count, as many faces."""

    file, named, share = "list.txt", ("list.txt", "pictures"), 0.5
    text = (
        "0a.jpg\n2\n1 2 10 12 0 0 0 0 0 0 \n4 4 8 8 0 0 0 1 0 0 \n0b.jpg\n0\n0 0 0 0 0 0 0 0 0 0 \n"
        "0c.jpg\n1\n5 5 9 9 1 0 0 0 0 0 \n"
    )

    def __init__(self, folder):
        pictures(folder / "pictures", ["0a.jpg", "0b.jpg", "0c.jpg"])
        self.card = DatasetCard("fuzzed", str(folder / "list.txt"), str(folder), format="wider_face", classes=("face",))

    def read(self, folder):
        return READERS["wider_face"](self.card, folder / "list.txt", folder / "pictures")[0]

    def check(self, files, table):
        lines, images = files["list.txt"].decode().splitlines(), {}
        while lines:
            name = lines.pop(0).strip()
            if name:
                count = int(lines.pop(0))
                images[name] = [[float(w) for w in line.split()] for line in lines[:count]]
                del lines[: max(count, 1)]
        if [r["image_id"] for r in table] != [name for name in images if name in ("0a.jpg", "0b.jpg", "0c.jpg")]:
            raise Wrong("other images")
        for record in table:
            expected = []
            for face in images[record["image_id"]]:
                x, y, w, h = face[:4]
                crowd = bool(face[7]) or w <= 0 or h <= 0
                box = (x, y, max(w, 1.0), max(h, 1.0)) if crowd else (x, y, w, h)
                if usable(box, WIDTH, HEIGHT):
                    expected.append((0, box, crowd))
            same_boxes([(a["category_id"], a["bbox"], a["iscrowd"]) for a in record["annotations"]], expected)


@kind("wider_pedestrian")
class WiderPedestrian(Text):
    """A line an image."""

    file, named, share = "list.txt", ("list.txt", "pictures"), 0.5
    text = "0a.jpg 1 2 10 12 20 2 5 9\n0b.jpg\n0c.jpg 3 3 30 20\n"

    def __init__(self, folder):
        pictures(folder / "pictures", ["0a.jpg", "0b.jpg", "0c.jpg"])
        self.card = DatasetCard(
            "fuzzed", str(folder / "list.txt"), str(folder), format="wider_pedestrian", classes=("person",)
        )

    def read(self, folder):
        return READERS["wider_pedestrian"](self.card, folder / "list.txt", folder / "pictures")[0]

    def check(self, files, table):
        images = {line.split()[0]: line.split()[1:] for line in files["list.txt"].decode().splitlines() if line.split()}
        if [r["image_id"] for r in table] != [name for name in images if name in ("0a.jpg", "0b.jpg", "0c.jpg")]:
            raise Wrong("other images")
        for record in table:
            numbers = [float(word) for word in images[record["image_id"]]]
            boxes = [numbers[i : i + 4] for i in range(0, len(numbers), 4)]
            expected = [(0, box, 0) for box in boxes if usable(box, WIDTH, HEIGHT)]
            same_boxes([(a["category_id"], a["bbox"], a["iscrowd"]) for a in record["annotations"]], expected)


@kind("yolo")
class Yolo(Text):
    """A label file, boxes and polygons."""

    file, named, share = "labels/0a.txt", ("0a.txt", "labels"), 0.5
    text = "0 0.5 0.5 0.25 0.5\n1 0.1 0.2 0.1 0.1\n1 0.1 0.1 0.9 0.1 0.5 0.75\n"

    def __init__(self, folder):
        pictures(folder / "images", ["0a.jpg"])

    def read(self, folder):
        return yolo_to_coco(folder / "images", folder / "labels", ["cat", "dog"])

    def check(self, files, document):
        expected = []
        for line in files[self.file].decode().splitlines():
            if line.split():
                k, *v = (float(word) for word in line.split())
                xs, ys = (v[0] - v[2] / 2, v[0] + v[2] / 2), (v[1] - v[3] / 2, v[1] + v[3] / 2)
                if len(v) > 4:
                    xs, ys = v[0::2], v[1::2]
                box = [min(xs) * WIDTH, min(ys) * HEIGHT, (max(xs) - min(xs)) * WIDTH, (max(ys) - min(ys)) * HEIGHT]
                expected.append((int(k) + 1, box, 0))
        same_boxes([(a["category_id"], a["bbox"], a["iscrowd"]) for a in document["annotations"]], expected)
        if not all(math.isfinite(v) for a in document["annotations"] for v in a["bbox"]):
            raise Wrong("a box that is not finite")


@kind("class_list")
class ClassList(Text):
    """One name a line."""

    file, text = "classes.txt", "cat\ndog\n traffic light \nelk\n"

    def __init__(self, folder):
        pass

    def read(self, folder):
        return yolo_class_names(folder / self.file)

    def check(self, files, names):
        lines = files[self.file].decode("utf-8-sig").splitlines()
        if names != [" ".join(line.split()) for line in lines if line.strip()]:
            raise Wrong(f"{names} of {lines}")


@kind("class_yaml")
class ClassYaml(Text):
    """A data.yaml."""

    file, text = "data.yaml", "path: x\nnc: 3\nnames:\n  0: cat\n  1: 'dog'\n  2: traffic light\n"

    def __init__(self, folder):
        pass

    def read(self, folder):
        return yolo_class_names(folder / self.file)

    def check(self, files, names):
        root = yaml.compose(files[self.file].decode("utf-8-sig"))
        given = [value for key, value in root.value if key.value == "names"][-1].value
        if given and isinstance(given[0], tuple):
            given = [{k.value: v for k, v in given}[str(i)] for i in range(len(names))]
        if names != [" ".join(node.value.split()) for node in given]:
            raise Wrong(f"{names} of {given}")


@kind("captions")
class Captions(Text):
    """A csv of captions."""

    file, text = "c.csv", 'file_name,caption,source\na.jpg,a cat,x\nb.jpg,"two dogs, one ""big""",y\nc.jpg, ,z\n'

    def __init__(self, folder):
        self.card = DatasetCard("fuzzed", "c.csv", str(folder), format="caption_csv", classes=("object",))

    def read(self, folder):
        return READERS["caption_csv"](self.card, folder / self.file, folder)[0]

    def check(self, files, table):
        rows = list(csv.reader(io.StringIO(files[self.file].decode("utf-8-sig"), newline="")))
        name, caption = ([i for i, cell in enumerate(rows[0]) if cell == key][-1] for key in ("file_name", "caption"))
        expected = [(row[name], row[caption]) for row in rows[1:] if row and row[caption].strip()]
        if [(r["image_id"], r["caption"]) for r in table] != expected:
            raise Wrong(f"{list(table)} of {expected}")


@kind("shard")
class Shard:
    """A tar of images and captions: what is kept is in the file, and whole."""

    errors, share = DatasetError, 0.7
    named = ("0.tar",)

    def __init__(self, folder):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for key in ("aa", "bb", "cc"):
                texts = {"txt": f"a picture of {key}".encode(), "json": json.dumps({"caption": f"{key}!"}).encode()}
                for suffix, data in ((".jpg", key.encode() * 40), (".txt" if key < "c" else ".json", None)):
                    data = texts[suffix[1:]] if data is None else data
                    member = tarfile.TarInfo(key + suffix)
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
        self.data = buffer.getvalue()
        self.card = DatasetCard("fuzzed", "0.tar", str(folder), format="webdataset", classes=("object",))

    def seed(self):
        return {"0.tar": self.data}

    def case(self, rng):
        data = self.data
        if rng.random() < 0.6:  # of a header: most bytes are padding
            at = rng.choice([i for i in range(0, len(data), 512) if any(data[i : i + 512])])
            head = change_bytes(data[at : at + 512].rstrip(b"\0") or b"\0", rng)
            return {"0.tar": data[:at] + (head + bytes(512))[: rng.choice((512, 512, len(head)))] + data[at + 512 :]}
        return {"0.tar": change_bytes(data, rng)}

    def read(self, folder):
        return READERS["webdataset"](self.card, folder / "0.tar", folder)[0]

    def check(self, files, table):
        data = files["0.tar"]
        if data == self.data and len(table) != 3:
            raise Wrong("not all samples of a whole shard")
        for record in table:
            start, size = record["file_offset"], record["file_size"]
            if not 0 <= start <= start + size <= len(data):
                raise Wrong("an image outside the file")
            header = data[start - 512 : start]
            name = header[:100].split(b"\0")[0]
            if int(header[124:136].split(b"\0")[0].strip() or b"0", 8) != size:
                raise Wrong("another size than the header says")
            key = record["image_id"].split("/", 1)[1].encode()
            if not name.startswith(key):
                raise Wrong(f"the image of {name} for {key}")
            plain = record["caption"].encode()
            if (
                "\ufffd" not in record["caption"]
                and plain not in data
                and json.dumps(record["caption"])[1:-1].encode() not in data
            ):
                raise Wrong(f"a caption that the file does not have: {record['caption']!r}")


@kind("concepts")
class Concepts(Text):
    """A concept dictionary."""

    errors = (DatasetError, ValueError)
    file, text = (
        "c.tsv",
        "# name\tcount\tdefinition\ncat\t12\tfeline mammal\ndog\t3\t\ntraffic light\t0\ta visual signal\n",
    )

    def __init__(self, folder):
        pass

    def read(self, folder):
        return read_concepts(folder / self.file)

    def check(self, files, rows):
        lines = files[self.file].decode().replace("\r\n", "\n").replace("\r", "\n").split("\n")
        expected = [(*line.split("\t"), "", "") for line in lines if line and not line.startswith("#")]
        if rows != [(name.strip(), int(count or 0), text.strip()) for name, count, text, *_ in expected]:
            raise Wrong(f"{rows} of {expected}")
        if any(unicodedata.category(char) == "Cc" for name, *_ in rows for char in name):
            raise Wrong("a control character in a name")
