"""Grounding json, caption csv, webdataset shards, class folders: good and bad."""

import io
import json
import subprocess
import sys
import tarfile

import pytest

from polydet.data import DatasetError, DetectionMapper, Union, build_train_loader, load_card, read_image
from polydet.data.card import find_card
from polydet.data.shapeworld import generate


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    patch = pytest.MonkeyPatch()
    patch.setenv("DETECTRON2_DATASETS", str(root))
    parts = {p: (w, dict.fromkeys(c, 9)) for p, (w, c) in generate.PARTS.items()}
    patch.setattr(generate, "PARTS", parts)
    for part in ("phrases", "captions"):
        generate.ensure_part(part)
    yield root
    patch.undo()


def test_phrases(world):
    for record in load_card("shapes_phrases_train"):
        assert record["annotations"] and record["caption"]
        for annotation in record["annotations"]:
            assert annotation["phrase"] in record["caption"] and annotation["phrase"]
    out = DetectionMapper(True, [])(load_card("shapes_phrases_train")[0])
    assert len(out["phrases"]) == len(out["instances"]) > 0


def test_the_same_pairs_from_csv_and_shards(world):
    table, shards = load_card("shapes_captions_train"), load_card("shapes_captions_shards_train")
    assert len(table) == len(shards) == 9
    for a, b in zip(table, shards):
        assert a["caption"] == b["caption"]
        assert (read_image(a) == read_image(b)).all()
        assert b["image_id"] == f"train-000000/{a['image_id'][:-4]}"
    loader = build_train_loader(["shapes_captions_shards_train"], DetectionMapper(True, []), 3, num_workers=0)
    sample = next(iter(loader))[0]
    assert sample["caption"] and len(sample["instances"]) == 0 and "file_offset" not in sample
    assert len(Union(["shapes_captions_train"])) == 9


def grounding(bench, **annotation):
    bench.document["categories"] = [{"id": 1, "name": "object"}]
    for image in bench.document["images"]:
        image["caption"] = "two dogs and a cat"
    for item in bench.document["annotations"]:
        item.update({"category_id": 1, "tokens_positive": [[0, 8]]})
    bench.document["annotations"][0].update(annotation)
    bench.card(format="grounding")
    return load_card("toy")


def test_spans(bench, caplog):
    data = grounding(bench, tokens_positive=[[0, 3], [15, 18]])
    assert [a["phrase"] for a in data[1]["annotations"]] == ["two cat", "two dogs"]
    assert grounding(bench, tokens_positive=[])[1]["annotations"][0]["phrase"] == "" and "no phrase" in caplog.text


@pytest.mark.parametrize("spans", [[[0, 99]], [[5, 5]], [[-1, 4]], [4, 5], "ab", [["a", "b"]], None])
def test_bad_spans_are_named(bench, spans):
    with pytest.raises(DatasetError, match="tokens_positive.*(\n.*)*annotation id 1"):
        grounding(bench, tokens_positive=spans)


def csv_card(bench, text):
    return bench.card(text, format="caption_csv", classes=("object",))


def test_csv(bench, caplog):
    csv_card(bench, '\ufefffile_name,caption,url\na.jpg,"x, y",u\nb.jpg,,u\nsub/c.jpg,"two\nlines",u\n')
    got = [(r["file_name"].split("images/")[1], r["caption"]) for r in load_card("toy")]
    assert got == [("a.jpg", "x, y"), ("sub/c.jpg", "two\nlines")]
    assert "1 rows have an empty caption" in caplog.text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a.jpg,hello\n", "no column"),
        ("file_name,caption\na.jpg\n", "too few"),
        ("file_name,caption\n../a.jpg,x\n", "leaves the image folder"),
        ("file_name,caption\na.jpg,x\na.jpg,y\n", "more than once"),
        (b"file_name,caption\na.jpg,\xff\xfe\n", "UTF-8"),
        ('file_name,caption\na.jpg,"x\n', "csv"),
        ("", "no column"),
        ("file_name,caption\n", "no usable image"),
    ],
)
def test_bad_csv(bench, text, words):
    csv_card(bench, text)
    with pytest.raises(DatasetError, match=words) as error:
        load_card("toy")
    assert "toy.json" in str(error.value)


def shard(path, samples):
    with tarfile.open(path, "w") as tar:
        for name, data in samples:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def test_shards_with_holes(bench, caplog):
    folder = bench.root / "images"
    shard(
        folder / "s-0.tar",
        [
            ("a.jpg", b"1"),
            ("a.txt", b"hello"),
            ("b.jpg", b"2"),
            ("c.txt", b"no image"),
            ("d.png", b"3"),
            ("d.json", json.dumps({"caption": "from json"}).encode()),
            ("e.jpg", b"4"),
            ("e.json", b"{broken"),
        ],
    )
    shard(folder / "s-1.tar", [(f"{k}.{s}", b"x" * 3000) for k in range(3) for s in ("jpg", "txt")])
    data = (folder / "s-1.tar").read_bytes()
    (folder / "s-1.tar").write_bytes(data[:11000])
    (folder / "s-2.tar").write_bytes(b"this is no tar at all" * 100)
    bench.card(format="webdataset", classes=("object",), json_file=str(folder / "s-*.tar"))
    table = load_card("toy")
    assert [r["image_id"] for r in table] == ["s-0/a", "s-0/d", "s-1/0"]
    assert [r["caption"] for r in table][:2] == ["hello", "from json"]
    assert "s-1.tar: shard breaks off" in caplog.text and "s-2.tar: shard breaks off" in caplog.text
    assert "3 of 5 samples lack" in caplog.text
    for path in folder.iterdir():
        path.write_bytes(b"junk" * 300)
    with pytest.raises(DatasetError, match="no usable image"):
        load_card("toy")


def test_no_shards(bench):
    bench.card(format="webdataset", classes=("object",), json_file=str(bench.root / "none-*.tar"))
    with pytest.raises(DatasetError, match=r"none-\*\.tar"):
        load_card("toy")


def test_class_folders(bench):
    for folder, files in {"n02": ["b.JPEG", "a.JPEG"], "n01": ["c.JPEG", "notes.txt"]}.items():
        (bench.root / "images" / folder).mkdir()
        for file in files:
            (bench.root / "images" / folder / file).write_bytes(b"")
    fields = {"format": "class_folders", "classes": ("object",), "json_file": str(bench.root / "images")}
    bench.card(**fields, options={"captions": ("tench", "goldfish")})
    got = [(r["file_name"].split("images/")[1], r["caption"]) for r in load_card("toy")]
    assert got == [("n01/c.JPEG", "tench"), ("n02/a.JPEG", "goldfish"), ("n02/b.JPEG", "goldfish")]
    bench.card(**fields, options={"captions": ("tench", "goldfish", "shark")})
    with pytest.raises(DatasetError, match="2 class folders, the card names 3"):
        load_card("toy")
    bench.card(**fields, options={"captions": "string:absent"})
    with pytest.raises(DatasetError, match="'string:absent' cannot be found"):
        load_card("toy")
    bench.card(**fields, options=find_card("imagenet1k_pairs_train").options)
    with pytest.raises(DatasetError, match="2 class folders, the card names 1000"):
        load_card("toy")


def test_heavy_packages_are_not_imported_with_the_data():
    heavy = {"open_clip", "timm", "transformers", "sentence_transformers"}
    code = f"import sys, polydet.data; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
