"""Columns on disk: the same records, converted once, again when a file changes, resumed when interrupted."""

import io
import json
import multiprocessing
import os
import random
import tarfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from polydet.data import DatasetError, load, load_card, store
from polydet.data.columns import AnnotationTable
from polydet.data.readers import json_stream
from polydet.data.readers.json_stream import JsonSections


@pytest.fixture
def stored_bench(bench, monkeypatch):
    """The toy card, with everything stored under the test's folder."""
    monkeypatch.setenv("POLYDET_CACHE", str(bench.root / "cache"))
    monkeypatch.setattr(load, "STORE_BYTES", -1)
    return bench


def grow(document, images=40):
    rng = random.Random(0)
    for i in range(100, 100 + images):
        document["images"].append({"id": i, "file_name": f'x/{{"id": 3}}, {{{i}.jpg', "height": 90, "width": 80})
        for _ in range(rng.randrange(4)):
            item = {"id": len(document["annotations"]) + 1, "image_id": i, "category_id": rng.choice([2, 5])}
            item["bbox"] = [rng.random() * 40 for _ in range(2)] + [1 + rng.random() * 30 for _ in range(2)]
            item["segmentation"] = rng.choice([{"size": [90, 80], "counts": "}, {"}, [[1, 1, 5, 1, 5, 5]], []])
            document["annotations"].append(item)


def converted(root):
    return sorted(p.name for p in (root / "cache").iterdir() if not p.name.startswith("."))


def test_same_records_and_memory_mapped(stored_bench, monkeypatch):
    grow(stored_bench.document)
    stored_bench.card()
    mapped = load_card("toy")
    assert len(converted(stored_bench.root)) == 1
    assert isinstance(mapped.boxes.base, np.memmap) and not mapped.boxes.flags.owndata
    monkeypatch.setattr(load, "STORE_BYTES", 10**9)
    load._CACHE.clear()
    plain = load_card("toy")
    assert plain.boxes.base is None or not isinstance(plain.boxes.base, np.memmap)
    assert list(mapped) == list(plain) and len(plain) == 43


def test_converted_once_and_again_after_a_change(stored_bench, monkeypatch):
    calls = []
    real = load._read
    monkeypatch.setattr(load, "_read", lambda card: calls.append(1) or real(card))
    stored_bench.card()
    first = load_card("toy")
    load._CACHE.clear()
    assert list(load_card("toy")) == list(first) and len(calls) == 1
    before = converted(stored_bench.root)
    stored_bench.document["images"].append({"id": 99, "file_name": "z.jpg", "height": 5, "width": 5})
    stored_bench.card()
    assert len(load_card("toy")) == 4 and len(calls) == 2
    assert len(converted(stored_bench.root)) == 1 and converted(stored_bench.root) != before
    stored_bench.card(spelling={"cat": "Katze"})
    load_card("toy")
    assert len(calls) == 3, "a changed card is another conversion"


OID_BOXES = "ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf\n"


def openimages(bench, images):
    """A stored OpenImages card of which the given images are on disk (four are annotated)."""
    for name in images:
        Image.new("RGB", (40, 30)).save(bench.root / "images" / f"{name}.jpg")
    (bench.root / "boxes.csv").write_text(OID_BOXES + "".join(f"{i},/m/a,0.1,0.5,0.1,0.5,0\n" for i in "abcd"))
    (bench.root / "labels.csv").write_text("ImageID,LabelName,Confidence\n")
    os.utime(bench.root / "boxes.csv", (1, 1))
    os.utime(bench.root / "labels.csv", (1, 1))
    load._CACHE.clear()
    return bench.card(
        json_file=str(bench.root / "boxes.csv"), format="openimages", classes=("a",), category_ids=("/m/a",),
        files={"labels": str(bench.root / "labels.csv")}, label_policy="federated", evaluator="openimages",
    )  # fmt: skip


def test_images_that_come_later_are_taken_up(stored_bench, monkeypatch, caplog):
    (stored_bench.root / "images" / "d.jpg").write_text("broken for good")
    openimages(stored_bench, "ab")
    assert len(load_card("toy")) == 2
    calls = []
    monkeypatch.setattr(load, "_read", lambda card, real=load._read: calls.append(1) or real(card))
    load._CACHE.clear()
    caplog.clear()
    assert len(load_card("toy")) == 2 and not calls, "nothing has come: the columns are used"
    assert "c.jpg" in caplog.text and "looked for at every start" in caplog.text
    openimages(stored_bench, "c")
    assert len(load_card("toy")) == 3 and len(calls) == 1
    load._CACHE.clear()
    assert len(load_card("toy")) == 3 and len(calls) == 1, "a file that is broken does not convert again"


def test_images_that_come_during_an_interrupted_conversion(stored_bench, monkeypatch):
    openimages(stored_bench, "ab")
    with monkeypatch.context() as patch:
        patch.setattr(store, "save_columns", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            load_card("toy")
    openimages(stored_bench, "cd")
    assert len(load_card("toy")) == 4


def test_interrupted_conversion_goes_on(stored_bench, monkeypatch):
    grow(stored_bench.document, 60)
    monkeypatch.setattr(json_stream, "WHOLE", 0)
    monkeypatch.setattr(json_stream, "PIECE", 700)
    real, parsed = JsonSections.piece, []

    def piece(self, key, position=0, optional=False):
        if key == "annotations":
            if len(parsed) == 4:
                raise KeyboardInterrupt
            parsed.append(position)
        return real(self, key, position, optional)

    monkeypatch.setattr(JsonSections, "piece", piece)
    stored_bench.card()
    with pytest.raises(KeyboardInterrupt):
        load_card("toy")
    assert not converted(stored_bench.root), "nothing half-done is visible"
    done, parsed[:] = list(parsed), ["now without limit"] * 5
    data = load_card("toy")
    again = parsed[5:]
    assert again and not set(again) & set(done), "no piece is parsed twice"
    monkeypatch.setattr(load, "STORE_BYTES", 10**9)
    load._CACHE.clear()
    assert list(load_card("toy")) == list(data)
    assert not [p for p in (stored_bench.root / "cache").iterdir() if p.name.endswith(".parts")]


def test_interrupted_between_shards(stored_bench, monkeypatch):
    folder = stored_bench.root / "images"
    for s in range(3):
        with tarfile.open(folder / f"s-{s}.tar", "w") as tar:
            for name, data in ((f"{s}.jpg", b"x"), (f"{s}.txt", b"words")):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    stored_bench.card(format="webdataset", classes=("object",), json_file=str(folder / "s-*.tar"))
    real, seen = load.READERS["webdataset"], []

    def read(card, path, root):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(path.name)
        return real(card, path, root)

    monkeypatch.setitem(load.READERS, "webdataset", read)
    with pytest.raises(KeyboardInterrupt):
        load_card("toy")
    seen[:] = [None] * 3
    assert [r["image_id"] for r in load_card("toy")] == ["s-0/0", "s-1/1", "s-2/2"]
    assert seen[3:] == ["s-2.tar"]


def test_errors_are_those_of_the_reader(stored_bench):
    stored_bench.document["annotations"][0]["category_id"] = 77
    stored_bench.card()
    for _ in range(2):
        with pytest.raises(DatasetError, match="77"):
            load_card("toy")
    assert not converted(stored_bench.root)


def test_empty_columns(stored_bench):
    stored_bench.document["annotations"] = []
    stored_bench.card()
    assert [r["annotations"] for r in load_card("toy")] == [[], [], []]


def test_two_processes_convert_once(stored_bench):
    stored_bench.card()
    with multiprocessing.get_context("fork").Pool(2) as pool:
        results = pool.map(_load, range(2))
    assert results[0] == results[1] == [3, 7, 9]
    assert len(converted(stored_bench.root)) == 1


def _load(_):
    return [record["image_id"] for record in load_card("toy")]


def test_where_columns_go(monkeypatch, tmp_path):
    monkeypatch.delenv("POLYDET_CACHE", raising=False)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert store.store_root() == tmp_path / ".columns"
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "absent"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert store.store_root() == tmp_path / "home" / "polydet"
    monkeypatch.setenv("POLYDET_CACHE", os.fspath(tmp_path / "c"))
    assert store.store_root() == tmp_path / "c"


text = st.text(alphabet='ab{}[],": \\é\n', max_size=12)
entry = st.dictionaries(
    st.sampled_from(["id", "name", "a", "segmentation"]),
    text | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.dictionaries(text, st.just([{}]), max_size=2),
    max_size=4,
)


@settings(max_examples=120, deadline=None)
@given(
    st.lists(entry, max_size=25),
    st.lists(entry, max_size=6),
    st.sampled_from([20, 60, 300, 5000]),
    st.sampled_from([None, 1]),
    st.booleans(),
)
def test_streamed_sections_equal_the_whole(tmp_path_factory, items, others, size, indent, ascii_only):
    path = tmp_path_factory.mktemp("json") / "d.json"
    document = {"info": {"x": "[{"}, "images": others, "annotations": items, "categories": others}
    path.write_text(json.dumps(document, indent=indent, ensure_ascii=ascii_only), encoding="utf-8")
    old = json_stream.WHOLE, json_stream.PIECE
    json_stream.WHOLE, json_stream.PIECE = 0, size
    try:
        sections = JsonSections(path)
        for key in ("annotations", "categories", "images"):
            assert sections.whole(key) == document[key]
    finally:
        json_stream.WHOLE, json_stream.PIECE = old


def test_broken_large_file(bench, monkeypatch):
    monkeypatch.setattr(json_stream, "WHOLE", 0)
    monkeypatch.setattr(json_stream, "PIECE", 64)
    whole = json.dumps(bench.document)
    for cut in (10, 200, len(whole) - 30, len(whole) - 2):
        bench.card(whole[:cut])
        try:
            table = load_card("toy")
        except DatasetError as error:
            assert "toy.json" in str(error)
        else:
            assert isinstance(table, AnnotationTable) and cut > len(whole) - 5, "only the closing brace is missing"
