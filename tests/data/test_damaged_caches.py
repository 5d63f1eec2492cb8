"""What is kept on disk to save time heals: damaged, it is made again, and a disk that takes nothing costs a warning."""

import contextlib
import random

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from polydet.data import DatasetError, load, load_card, store
from polydet.data.arrays import DamagedArrays, load_arrays, save_arrays
from polydet.text import Vocabulary
from polydet.text.cache import load_embeddings, save_embeddings


@pytest.fixture
def stored_bench(bench, monkeypatch):
    """The toy card, with everything stored under the test's folder."""
    monkeypatch.setenv("POLYDET_CACHE", str(bench.root / "cache"))
    monkeypatch.setattr(load, "STORE_BYTES", -1)
    for annotation in bench.document["annotations"]:
        annotation["segmentation"] = [[1, 1, 5, 1, 5, 5]]
    return bench


def damage(path, rng):
    """Flip a bit, cut, empty, remove or replace a file."""
    data = bytearray(path.read_bytes())
    kind = rng.choice(["flip", "flip", "flip", "cut", "empty", "remove", "other"])
    if kind == "flip":
        at = rng.randrange(len(data))
        data[at] ^= 1 << rng.randrange(8)
    if kind in ("cut", "empty"):
        del data[rng.randrange(len(data)) if kind == "cut" else 0 :]
    path.unlink()  # not into the mapped file
    if kind != "remove":
        path.write_bytes(b"<html>not found</html>" if kind == "other" else data)


def test_columns(stored_bench, caplog):
    stored_bench.card()
    expected = list(load_card("toy"))
    rng = random.Random(0)
    said = 0
    for _ in range(120):
        (folder,) = (p for p in (stored_bench.root / "cache").iterdir() if p.is_dir() and not p.name.startswith("."))
        damage(rng.choice(sorted(folder.iterdir())), rng)
        load._CACHE.clear()
        caplog.clear()
        assert list(load_card("toy")) == expected
        said += "converted again" in caplog.text
    assert said >= 100, "only a removed meta.json is no damage"


def test_parts_of_an_interrupted_conversion(tmp_path):
    work, rng = store.Work(tmp_path), random.Random(1)
    arrays = {"a": np.arange(50), "b": np.ones((3, 2), np.float32)}
    for _ in range(40):
        work.part("x", lambda: arrays)
        damage(tmp_path / "x.npz", rng)
        again = work.part("x", lambda: arrays)
        assert all((again[key] == arrays[key]).all() and again[key].dtype == arrays[key].dtype for key in arrays)


def test_a_disk_that_takes_nothing(stored_bench, monkeypatch, caplog):
    stored_bench.card()

    @contextlib.contextmanager
    def full(path):
        raise OSError(28, "No space left on device", str(path))
        yield

    monkeypatch.setattr(store, "whole_folder", full)
    assert len(load_card("toy")) == 3
    assert "No space left" in caplog.text and "set POLYDET_CACHE" in caplog.text
    (stored_bench.root / "plain").write_text("")
    monkeypatch.setenv("POLYDET_CACHE", str(stored_bench.root / "plain" / "cache"))
    load._CACHE.clear()
    assert len(load_card("toy")) == 3, "a folder that cannot be made"


def test_arrays(tmp_path):
    save_arrays(
        tmp_path, {"a": np.arange(5), "empty": np.zeros(0, np.int32)}, {"name": "é", "list": [1, None]}, "m.json"
    )
    arrays, meta = load_arrays(tmp_path, "m.json")
    assert arrays["a"].tolist() == [0, 1, 2, 3, 4] and arrays["empty"].dtype == np.int32
    assert meta["name"] == "é" and meta["list"] == [1, None]
    (tmp_path / "a.npy").write_bytes((tmp_path / "empty.npy").read_bytes())
    with pytest.raises(DamagedArrays, match=r"a\.npy is damaged"):
        load_arrays(tmp_path, "m.json")
    with pytest.raises(FileNotFoundError):
        load_arrays(tmp_path, "n.json")


def test_text_embeddings(tmp_path, caplog):

    embeddings = torch.randn(4, 8)
    rng = random.Random(2)
    path = tmp_path / "print.safetensors"
    for _ in range(60):
        save_embeddings(tmp_path, "print", embeddings)
        assert (load_embeddings(tmp_path, "print", (4, 8)) == embeddings).all()
        damage(path, rng)
        caplog.clear()
        assert load_embeddings(tmp_path, "print", (4, 8)) is None
        assert "encoded again" in caplog.text or not path.exists()


def test_a_damaged_text_cache_is_written_again(tmp_path):
    class Encoder:
        id, dim = "test:ones", 3

        def encode(self, texts):

            return torch.nn.functional.normalize(torch.tensor([[len(t), 1.0, 2.0] for t in texts]), dim=1)

    first = Vocabulary.build(["cat", "horse"], Encoder(), "a {}", cache_dir=tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    again = Vocabulary.build(["cat", "horse"], Encoder(), "a {}", cache_dir=tmp_path)
    assert (again.embeddings == first.embeddings).all() and (load_file(path)["embeddings"] == first.embeddings).all()


def test_proposals(tmp_path):
    from aligndet.proposal_columns import ProposalColumns
    from aligndet.proposal_run import _is_whole

    columns = ProposalColumns(
        boxes=np.ones((3, 4), np.float32),
        labels=np.zeros(3, np.uint16),
        offsets=np.array([0, 2, 3]),
        image_ids=np.array([4, 5]),
        sizes=np.full((2, 2), 30, np.int32),
        file_names=["a.jpg", "b.jpg"],
        info={"num_labels": 1},
    )
    rng = random.Random(3)
    for _ in range(60):
        columns.save(tmp_path / "p.columns")
        assert (ProposalColumns.load(tmp_path / "p.columns").boxes == 1).all()
        damage(rng.choice(sorted((tmp_path / "p.columns").iterdir())), rng)
        with pytest.raises((DatasetError, FileNotFoundError), match=r"p\.columns"):
            ProposalColumns.load(tmp_path / "p.columns")
    np.savez(tmp_path / "shard.npz", boxes=np.ones(9))
    assert _is_whole(tmp_path / "shard.npz") and not _is_whole(tmp_path / "gone.npz")
    data = bytearray((tmp_path / "shard.npz").read_bytes())
    data[len(data) // 3] ^= 1
    (tmp_path / "shard.npz").write_bytes(data)
    assert not _is_whole(tmp_path / "shard.npz")
