"""Columns on disk: the same records, converted once, again when a file changes, resumed when interrupted."""

import contextlib
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
from polydet.data.readers import annotation_columns, json_stream
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
    monkeypatch.setattr(json_stream, "PIECE", 7)
    real, made = annotation_columns._piece, []

    def piece(items, first, *rest):
        if len(made) == 4:
            raise KeyboardInterrupt
        made.append(first)
        return real(items, first, *rest)

    monkeypatch.setattr(annotation_columns, "_piece", piece)
    stored_bench.card()
    with pytest.raises(KeyboardInterrupt):
        load_card("toy")
    assert not converted(stored_bench.root), "nothing half-done is visible"
    done, made[:] = list(made), ["now without limit"] * 5
    data = load_card("toy")
    again = made[5:]
    assert done == [0, 7, 14, 21] and again and not set(again) & set(done), "no piece is converted twice"
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
    text | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.dictionaries(text, st.just([{}]), max_size=2),
    max_size=4,
)


@contextlib.contextmanager
def streaming(piece):
    """Files of any size are streamed."""
    old = json_stream.WHOLE, json_stream.PIECE
    json_stream.WHOLE, json_stream.PIECE = 0, piece
    try:
        yield
    finally:
        json_stream.WHOLE, json_stream.PIECE = old


def sections_of(path):
    """Every section, or the message of the error."""
    try:
        sections = JsonSections(path)
        return repr([sections.whole(key) for key in ("annotations", "categories", "images")])
    except DatasetError as error:
        return str(error)


@settings(max_examples=120, deadline=None)
@given(
    st.lists(entry, max_size=25),
    st.lists(entry, max_size=6),
    st.sampled_from([1, 3, 8, 5000]),
    st.sampled_from([None, 1]),
    st.booleans(),
)
def test_streamed_sections_equal_the_whole(tmp_path_factory, items, others, size, indent, ascii_only):
    path = tmp_path_factory.mktemp("json") / "d.json"
    document = {"info": {"x": "[{", "annotations": [{"id": 1}]}, "images": others, "annotations": items}
    document["categories"] = others
    path.write_text(json.dumps(document, indent=indent, ensure_ascii=ascii_only), encoding="utf-8")
    with streaming(size):
        found = sections_of(path)
    assert found == sections_of(path) == repr([items, others, others])


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32))
def test_broken_files_streamed_and_whole(tmp_path_factory, seed):
    """A changed byte anywhere, behind the section too: the same objects, or an error from both (not always the same:
    an entry that is no object is met before what is broken behind it)."""
    rng = random.Random(seed)
    document = {"info": {"a": [1, 2.5, None]}, "images": [{"id": 1, "file_name": "é"}], "annotations": [{"id": 2}] * 9}
    document["categories"] = [{"id": 1, "name": "cat"}]
    data = bytearray(json.dumps(document, ensure_ascii=False).encode())
    for _ in range(rng.randrange(1, 3)):
        data[rng.randrange(len(data))] = rng.choice(b'{}[]",:0e\\N \xff')
    path = tmp_path_factory.mktemp("json") / "d.json"
    path.write_bytes(data)
    with streaming(rng.choice([1, 4, 100])):
        found = sections_of(path)
    whole = sections_of(path)
    assert found == whole or (found.startswith(str(path)) and whole.startswith(str(path)))


def test_a_nested_key_does_not_take_a_sections_place(bench):
    bench.document = {"info": {"annotations": [], "images": [{"id": 1}]}, **bench.document}
    bench.card()
    with streaming(2):
        assert len(load_card("toy").labels) == 3


def test_positions_in_a_large_file(bench):
    bench.document["annotations"][2]["bbox"] = "x"
    bench.card()
    with streaming(2), pytest.raises(DatasetError, match=r"annotations\[2\] \(id 3\)"):
        load_card("toy")


def test_broken_large_file(bench):
    whole = json.dumps(bench.document)
    for cut in (10, 200, len(whole) - 30, len(whole) - 1):
        bench.card(whole[:cut])
        with streaming(1), pytest.raises(DatasetError, match=r"toy\.json: is not valid json"):
            load_card("toy")
