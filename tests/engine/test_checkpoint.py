"""Loading with a ledger, saving whole or not at all."""

import argparse
import collections
import os
import pickle
import random
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from polydet.detr import TwoStageQueries
from polydet.engine import CheckpointError, load_weights, read_checkpoint
from polydet.engine.checkpoint import Checkpointer
from polydet.weight_files import Inert


def net(classes=3):
    model = nn.Module()
    model.body = nn.Linear(4, 4)
    model.cls = nn.Linear(4, classes)
    return model


def test_ledger_counts_modules_conflicts_and_leftovers():
    source = {**net(5).state_dict(), "old.weight": torch.zeros(1)}
    del source["body.bias"]
    model = net(3)
    before = model.cls.weight.clone()
    ledger = load_weights(model, source, fresh=["cls"])
    assert ledger.modules == {"body": (16, 20), "cls": (0, 15)}
    assert ledger.conflicts == {"cls.weight": ((5, 4), (3, 4)), "cls.bias": ((5,), (3,))}
    assert ledger.missing == ["body.bias"] and ledger.unexpected == ["old.weight"]
    assert ledger.coverage == pytest.approx(16 / 35)
    assert torch.equal(model.body.weight, source["body.weight"]) and torch.equal(model.cls.weight, before)
    assert "shape conflict" in ledger.table() and "45.7" not in ledger.table() and "80.0 %" in ledger.table()


def test_too_little_coverage_is_an_error_that_shows_the_ledger_and_changes_nothing():
    model = net()
    before = model.body.weight.clone()
    with pytest.raises(CheckpointError, match=r"(?s)min_coverage.*only in the file \(2\): wrong"):
        load_weights(model, {f"wrong.{k.replace('.', '_')}": v for k, v in net().state_dict().items() if "body" in k})
    assert torch.equal(model.body.weight, before)


def test_rows_that_are_no_classes_stay_in_their_place():
    """Two-stage Deformable-DETR calls every object 0, whatever the class of row 0 is called."""
    source, model = (TwoStageQueries(n, 4, 16, "proposal", "proposal", "first", "all") for n in (4, 3))
    names = ("", "cat", "traffic light", "dog"), ("dog", "cat", "bird")
    load_weights(model, source.state_dict(), class_names=names, min_coverage=0.0)
    assert torch.equal(model.class_head.weight, source.class_head.weight[:3])
    ledger = load_weights(source, model.state_dict(), class_names=(names[1], names[0]), min_coverage=0.0)
    assert "class_head.weight" in ledger.loaded and torch.equal(source.class_head.bias[:3], model.class_head.bias)


@pytest.mark.parametrize("background", [0, 1])
def test_class_rows_go_by_name(background):
    old, new = ("cat", "traffic_light", "dog"), ("dog", "bird", "Traffic light")
    source, model = net(3 + background), net(3 + background)
    ledger = load_weights(model, source.state_dict(), class_names=(old, new), min_coverage=0.0)
    assert ledger.transferred["cls.weight"] == (2, 3)  # as many classes, but not the same ones
    assert torch.equal(model.cls.weight[0], source.cls.weight[2])
    assert "body.weight" in ledger.loaded
    model = net(len(new) + 1 + background)
    fresh = model.cls.weight.clone()
    ledger = load_weights(model, source.state_dict(), class_names=(old, (*new, "horse")), min_coverage=0.0)
    assert ledger.transferred["cls.weight"] == (2, 4)
    assert torch.equal(model.cls.weight[0], source.cls.weight[2])
    assert torch.equal(model.cls.weight[2], source.cls.weight[1])
    assert torch.equal(model.cls.weight[1], fresh[1]) and torch.equal(model.cls.weight[3], fresh[3])
    if background:
        assert torch.equal(model.cls.weight[-1], source.cls.weight[-1])


def test_key_map_prefix_and_skip():
    source = {f"module.{k.replace('body', 'trunk')}": v for k, v in net().state_dict().items()}
    model = net()
    ledger = load_weights(
        model,
        source,
        key_map=lambda state: {k.replace("trunk", "body"): v for k, v in state.items()},
        skip=["cls"],
    )
    assert sorted(ledger.loaded) == ["body.bias", "body.weight"] and sorted(ledger.missing) == [
        "cls.bias",
        "cls.weight",
    ]


def test_files_of_every_kind(tmp_path):
    state = net().state_dict()
    torch.save({"model": state, "iteration": 3}, tmp_path / "a.pth")
    torch.save({"state_dict": state}, tmp_path / "b.pth")
    torch.save(state, tmp_path / "c.pth")
    save_file(state, tmp_path / "d.safetensors")
    for name in ("a.pth", "b.pth", "c.pth", "d.safetensors"):
        assert torch.equal(read_checkpoint(tmp_path / name)["model"]["body.weight"], state["body.weight"])


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        read_checkpoint(tmp_path / "absent.pth")
    torch.save({"model": net().state_dict()}, tmp_path / "torn.pth")
    data = (tmp_path / "torn.pth").read_bytes()
    (tmp_path / "torn.pth").write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="torn.pth.*is cut off"):
        read_checkpoint(tmp_path / "torn.pth")
    torch.save({"epoch": 1}, tmp_path / "empty.pth")
    with pytest.raises(CheckpointError, match="no state dict"):
        read_checkpoint(tmp_path / "empty.pth")


@pytest.mark.parametrize("zipped", [True, False])
def test_what_authors_save_beside_their_weights_is_not_needed_and_not_imported(tmp_path, zipped):
    state = net().state_dict()
    extra = {"args": argparse.Namespace(lr=1e-4, path=Path("x")), "log": collections.UserDict(a=1.0)}
    torch.save({"model": state, **extra}, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    data = read_checkpoint(tmp_path / "a.pth")
    assert torch.equal(data["model"]["body.weight"], state["body.weight"])
    assert isinstance(data["args"], Inert) and not hasattr(data["args"], "lr")


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_arrays_open_and_nothing_in_them_runs(tmp_path, protocol):
    state = net().state_dict()

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    data = {"model": {k: v.numpy() for k, v in state.items()}, "__author__": "x", "matching_heuristics": True}
    data["model"]["scalar"] = np.float32(2)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({**data, "evil": Evil()}, protocol))
    loaded = read_checkpoint(tmp_path / "a.pkl")
    assert set(loaded["model"]) == set(state) and loaded["__author__"] == "x" and isinstance(loaded["evil"], Inert)
    assert all(torch.equal(loaded["model"][k], v) for k, v in state.items())
    (tmp_path / "b.pkl").write_bytes(pickle.dumps(Evil(), protocol))
    with pytest.raises(CheckpointError, match="whole pickled object"):
        read_checkpoint(tmp_path / "b.pkl")
    torch.save({"model": state, "evil": Evil()}, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match=r"running what is in it.*mkdir.*state_dict\(\)"):
        read_checkpoint(tmp_path / "c.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "git-lfs pointer"),
        (b"\n<!DOCTYPE html><html><head>", "web page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "web page"),
        (b'{"error": "Repository not found"}', "message of a server"),
        (b"\x1f\x8b\x08" + bytes(600), "packed archive"),
        (b"weights", "neither safetensors"),
        ((1 << 20).to_bytes(8, "little") + b'{"a":', "cut off"),
    ],
)
def test_what_is_no_checkpoint_is_called_what_it_is(tmp_path, content, said):
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"a\.pth.*{said}"):
        read_checkpoint(tmp_path / "a.pth")


def test_archives_and_whole_models_are_told_from_weights(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("model.pth", "x")
    with pytest.raises(CheckpointError, match="packed archive"):
        read_checkpoint(tmp_path / "a.zip")
    torch.save(net(), tmp_path / "b.pth")
    with pytest.raises(CheckpointError, match=r"whole pickled object.*state_dict\(\)"):
        read_checkpoint(tmp_path / "b.pth")
    with pytest.raises(CheckpointError, match="folder"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"cls.weight": torch.zeros(5, 4)},
            r"cls.weight has another shape: \(5, 4\) .*train.init.class_names.*fresh=\[cls",
        ),
        ({"body.extra": torch.zeros(1)}, r"no place for body.extra .*train.init.skip=\[body\]"),
        ({"body.weight": torch.full((4, 4), float("nan"))}, "body.weight has values that are NaN"),
        ({"body.weight": torch.zeros(4, 4, dtype=torch.int8)}, "body.weight is int8: .*quantised"),
        ({"cls.weight": None, "cls.bias": None}, r"only 0.0 % of 'cls' .*min_coverage=0.5.*train.init.fresh=\[cls\]"),
    ],
)
def test_a_load_that_is_wrong_does_not_pass(change, said):
    source = {k: v for k, v in {**net().state_dict(), **change}.items() if v is not None}
    model = net()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for complete in (False, True):
        with pytest.raises(CheckpointError, match=said if not complete else None):
            load_weights(model, source, complete=complete)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_nothing_is_random_where_it_is_evaluated():
    source = net().state_dict()
    del source["body.bias"]
    assert load_weights(net(), source).missing == ["body.bias"]
    with pytest.raises(CheckpointError, match="1 weights are not in the file and would be random: body.bias"):
        load_weights(net(), source, complete=True, fresh=["body"], min_coverage=0.0)
    names = ["a", "b", "c"], ["c", "a", "d"]
    assert load_weights(net(), net().state_dict(), class_names=names).transferred["cls.bias"] == (2, 3)
    with pytest.raises(CheckpointError, match="cls.weight has rows for 2 of the model's 3 classes"):
        load_weights(net(), net().state_dict(), class_names=names, complete=True)


def test_layers_that_the_model_lacks_name_the_key():
    def stack(layers):
        model = nn.Module()
        model.encoder = nn.Module()
        model.encoder.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(layers))
        return model

    with pytest.raises(CheckpointError, match=r"encoder\.layers\.2.*set model\.encoder\.num_layers=4"):
        load_weights(stack(2), stack(4).state_dict())


def test_four_rows_a_class_go_by_name():
    model, source = nn.Module(), nn.Module()
    model.class_boxes, source.class_boxes = nn.Linear(2, 8), nn.Linear(2, 12)
    ledger = load_weights(model, source.state_dict(), class_names=(["a", "b", "c"], ["c", "a"]), complete=True)
    assert ledger.transferred["class_boxes.weight"] == (2, 2)
    assert torch.equal(model.class_boxes.weight[:4], source.class_boxes.weight[8:])
    assert torch.equal(model.class_boxes.weight[4:], source.class_boxes.weight[:4])


def test_a_save_that_fails_keeps_the_previous_checkpoint(tmp_path, monkeypatch):
    model = net()
    checkpointer = Checkpointer(model, str(tmp_path))
    checkpointer.save("model_1", iteration=1)

    def full_disk(data, path):
        Path(path).write_bytes(b"half")
        raise RuntimeError("No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="model_2.pth.*another folder"):
        checkpointer.save("model_2", iteration=2)
    monkeypatch.undo()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last_checkpoint", "model_1.pth"]
    assert checkpointer.get_checkpoint_file().endswith("model_1.pth")
    assert checkpointer.load(checkpointer.get_checkpoint_file())["iteration"] == 1


def test_another_model_is_not_resumed(tmp_path):
    """Detectron2's checkpointer warns and goes on with the initial values of what does not fit."""
    Checkpointer(net(), str(tmp_path)).save("model_1")
    other = net(5)
    other.neck = nn.Linear(1, 1)
    del other.body.bias
    other.body.register_parameter("bias", None)
    with pytest.raises(CheckpointError, match=r"(?s)of another model.*cls.weight: \(3, 4\) in the file, \(5, 4\)") as e:
        Checkpointer(other, str(tmp_path)).load(str(tmp_path / "model_1.pth"))
    assert "not in the file: neck.weight" in str(e.value) and "only in the file: body.bias" in str(e.value)


def test_flipped_bytes_of_a_checkpoint_are_an_error(tmp_path):
    path, numbers = tmp_path / "model.pth", random.Random(0)
    torch.save({"model": {"weight": torch.randn(256, 256)}}, path)
    whole = path.read_bytes()
    start = whole.index(b"weight")
    for _ in range(64):
        data = bytearray(whole)
        data[numbers.randrange(start + 2048, start + 200_000)] ^= 1 << numbers.randrange(8)
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match="damaged"):
            read_checkpoint(path)


def test_a_deeper_backbone_in_the_file_is_named():
    body = torch.nn.ModuleDict({"bottom_up": torch.nn.ModuleDict({"body": torch.nn.Linear(2, 2)})})
    model = torch.nn.ModuleDict({"backbone": body})
    state = {**model.state_dict(), "backbone.bottom_up.body.layer3.6.conv1.weight": torch.ones(2)}
    with pytest.raises(CheckpointError, match=r"set model\.backbone\.bottom_up to the network of the file"):
        load_weights(model, state)
