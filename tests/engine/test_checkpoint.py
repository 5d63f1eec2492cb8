"""Loading with a ledger, saving whole or not at all."""

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from polydet.engine.checkpoint import (
    Checkpointer,
    CheckpointError,
    load_weights,
    read_checkpoint,
)


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
    ledger = load_weights(model, source, min_coverage=0.0)
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
        load_weights(model, {f"wrong.{k}": v for k, v in net().state_dict().items() if "body" in k})
    assert torch.equal(model.body.weight, before)


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


def test_files_of_every_kind_and_pickles_only_when_asked(tmp_path):
    state = net().state_dict()
    torch.save({"model": state, "iteration": 3}, tmp_path / "a.pth")
    torch.save({"state_dict": state}, tmp_path / "b.pth")
    torch.save(state, tmp_path / "c.pth")
    save_file(state, tmp_path / "d.safetensors")
    for name in ("a.pth", "b.pth", "c.pth", "d.safetensors"):
        assert torch.equal(read_checkpoint(tmp_path / name)["model"]["body.weight"], state["body.weight"])
    torch.save({"model": state, "code": Path("x")}, tmp_path / "e.pth")
    (tmp_path / "f.pkl").write_bytes(pickle.dumps({"model": {k: v.numpy() for k, v in state.items()}}))
    for name in ("e.pth", "f.pkl"):
        with pytest.raises(CheckpointError, match="allow_pickle"):
            read_checkpoint(tmp_path / name)
        loaded = read_checkpoint(tmp_path / name, allow_pickle=True)["model"]
        assert torch.equal(loaded["body.weight"], state["body.weight"])


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        read_checkpoint(tmp_path / "absent.pth")
    torch.save({"model": net().state_dict()}, tmp_path / "torn.pth")
    data = (tmp_path / "torn.pth").read_bytes()
    (tmp_path / "torn.pth").write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="torn.pth.*damaged"):
        read_checkpoint(tmp_path / "torn.pth")
    torch.save({"epoch": 1}, tmp_path / "empty.pth")
    with pytest.raises(CheckpointError, match="no state dict"):
        read_checkpoint(tmp_path / "empty.pth")


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
