"""A run owns its folder: one at a time, nothing stale answers, and what it goes on from is whole and said."""

import contextlib
import json
import os
import random
import shutil
from pathlib import Path

import pytest
import torch
from test_exact_resume import card, small  # noqa: F401

from polydet.engine import CheckpointError, run
from polydet.engine import folder as folder_module
from polydet.engine.errors import RunError
from polydet.engine.folder import owned
from polydet.engine.progress import read_metrics
from polydet.sealed import save_sealed
from polydet.weight_files import read_checkpoint


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp("kept") / "run"


@pytest.fixture
def trained(small, tmp_path, kept):  # noqa: F811
    """Config and folder of a run of four steps that has ended; checkpoints of steps 1 and 3."""
    cfg = small("fcos")
    if not kept.exists():
        cfg.train.output_dir = str(kept)
        run(cfg)
    shutil.copytree(kept, tmp_path / "run")
    cfg.train.output_dir = str(tmp_path / "run")
    return cfg, tmp_path / "run"


def killed(folder, *more):
    """What a run leaves that is killed before its end."""
    for name in ("DONE", "model_final.pth", "model.safetensors", *more):
        (folder / name).unlink(missing_ok=True)
    (folder / "last_checkpoint").write_text("model_0000003.pth")


def damage(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def in_child(call):
    """What a call in another process raises, as text."""
    read, write = os.pipe()
    if not (child := os.fork()):
        try:
            call()
            os.write(write, b"nothing")
        except BaseException as error:
            os.write(write, f"{type(error).__name__}: {error}".encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    with os.fdopen(read) as pipe:
        return pipe.read()


def take(folder):
    with owned(folder):
        pass


def test_one_run_at_a_time(tmp_path, monkeypatch, caplog):
    folder = tmp_path / "run"
    with owned(folder):
        text = in_child(lambda: take(folder))
        assert text.startswith("RunError") and f"in use by process {os.getpid()} on " in text and str(folder) in text
        with pytest.raises(RunError, match="in use by"):
            take(folder)
        (folder / ".owner.json").write_text("[]")
        assert "in use by another run" in in_child(lambda: take(folder))
    assert list(folder.iterdir()) == [] and in_child(lambda: take(folder)) == "nothing"
    assert in_child(lambda: owned(folder).__enter__() and os._exit(0)) == "nothing"
    take(folder)  # its holder has died

    def none(*_args, **_options):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(folder_module, "locked", none)
    take(folder)
    assert "takes no lock" in caplog.text


def test_a_fresh_start_moves_the_old_run_aside(trained, small, monkeypatch):  # noqa: F811
    cfg, folder = trained
    (folder / "mine.txt").write_text("stays")
    (folder / "model_of_mine.pth").write_text("stays")
    old = (folder / "model_final.pth").read_bytes()

    def dies(*_args):
        raise KeyboardInterrupt

    again = small("fcos")
    again.train.update(output_dir=str(folder), init_checkpoint=str(folder / "model_final.pth"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setitem(run.__wrapped__.__globals__, "build_trainer", dies)
        run(again)
    left = {path.name for path in folder.iterdir()}
    assert left == {"mine.txt", "model_of_mine.pth", "previous", "config.yaml", "config_resolved.txt", "log.txt"}
    moved = folder / "previous" / "001"
    assert (moved / "model_final.pth").read_bytes() == old and (moved / "DONE").exists()
    assert "previous/001" in (folder / "log.txt").read_text()
    assert "previous/001/model_final.pth" in (folder / "config.yaml").read_text()  # the start has moved, too
    again.train.max_iter = 1
    run(again, resume=True)  # not "is finished"
    assert read_metrics(folder / "metrics.json")[-1]["iteration"] == 0 and (folder / "DONE").exists()
    run(again)
    assert (folder / "previous" / "002" / "DONE").exists() and not (folder / "previous" / "003").exists()


def test_more_steps_train_on_with_the_schedule_that_they_imply(trained, small, caplog):  # noqa: F811
    cfg, folder = trained
    before = (folder / "config.yaml").read_bytes()
    cfg.optimizer.lr = 0.5
    assert run(cfg, resume=True) == {} and "is finished" in (folder / "log.txt").read_text() + caplog.text
    assert (folder / "config.yaml").read_bytes() == before, "a run that is finished was not trained with this"
    fewer = small("fcos")
    fewer.train.update(output_dir=str(folder), max_iter=2)
    with pytest.raises(RunError, match=r"has trained 4 steps and the config asks for 2.*train\.max_iter"):
        run(fewer, resume=True)
    assert (folder / "config.yaml").read_bytes() == before and (folder / "DONE").exists()
    more = small("fcos")
    more.lr_multiplier.update(kind="cosine", warmup_iters=0, end_factor=0.0)
    more.train.update(output_dir=str(folder), max_iter=8)
    caplog.set_level("WARNING", "polydet")
    run(more, resume=True)
    rates = [record["lr"] for record in read_metrics(folder / "metrics.json")]
    assert rates[:4] == [0.01] * 4
    expected = [0.01 * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * step / 8)).item()) for step in range(4, 8)]
    assert rates[4:] == pytest.approx(expected, rel=1e-5)
    assert "train.max_iter: 4 -> 8" in (folder / "log.txt").read_text()
    assert "max_iter: 8" in (folder / "config.yaml").read_text()
    names = {path.name for path in folder.iterdir()}
    assert {"model_0000001.pth", "model_0000003.pth", "model_0000007.pth", "model_final.pth", "DONE"} <= names
    assert read_checkpoint(folder / "model_final.pth")["iteration"] == 7
    assert (folder / "previous" / "001" / "DONE").exists(), "what belonged to the earlier end"


def test_another_rate_is_used_and_said(trained):
    cfg, folder = trained
    killed(folder)
    (folder / "last_checkpoint").write_text("model_0000001.pth")
    cfg.optimizer.lr = 0.002
    run(cfg, resume=True)
    assert [record["lr"] for record in read_metrics(folder / "metrics.json")] == [0.01, 0.01, 0.002, 0.002]
    log = (folder / "log.txt").read_text()
    assert "learning rate of" in log and "0.01 until here, 0.002 from here on" in log
    assert "optimizer.lr: 0.01 -> 0.002" in log and "lr: 0.002" in (folder / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda cfg: cfg.model.head.update(num_convs=2), "of another model"),
        (lambda cfg: cfg.model.backbone.bottom_up.update(freeze_at=5), "other parameters are trained .*freeze_at"),
        (lambda cfg: cfg.train.ema.update(enabled=True), "train.ema.enabled"),
        (lambda cfg: cfg.train.amp.update(dtype="float16"), None),
    ],
)
def test_a_resume_that_is_refused_leaves_the_config_alone(trained, change, message):
    cfg, folder = trained
    killed(folder)
    before = (folder / "config.yaml").read_bytes()
    change(cfg)
    cfg.train.max_iter = 5
    if message is None:
        run(cfg, resume=True)
        assert "amp.dtype: float32 -> float16" in (folder / "log.txt").read_text()
        return
    with pytest.raises(CheckpointError, match=message) as error:
        run(cfg, resume=True)
    assert "model_0000003.pth" in str(error.value) or str(folder) in str(error.value)
    assert (folder / "config.yaml").read_bytes() == before and not (folder / "DONE").exists()


def test_the_newest_whole_checkpoint_is_taken_and_said(trained, tmp_path):
    cfg, folder = trained
    expected = torch.load(folder / "model_final.pth", weights_only=True)["model"]
    killed(folder)
    cases = {
        "missing": (lambda f: (f / "last_checkpoint").unlink(), "model_0000003.pth", "last_checkpoint is not there"),
        "empty": (lambda f: (f / "last_checkpoint").write_bytes(b""), "model_0000003.pth", "names no checkpoint"),
        "elsewhere": (lambda f: (f / "last_checkpoint").write_text("../a.pth"), "model_0000003.pth", "names no check"),
        "gone": (lambda f: (f / "model_0000003.pth").unlink(), "model_0000001.pth", "does not exist"),
        "damaged": (lambda f: damage(f / "model_0000003.pth"), "model_0000001.pth", "is damaged: its SHA-256"),
    }
    for name, (spoil, taken, note) in cases.items():
        copy = tmp_path / name
        shutil.copytree(folder, copy)
        spoil(copy)
        cfg.train.output_dir = str(copy)
        run(cfg, resume=True)
        log = (copy / "log.txt").read_text()
        assert f"resuming from {copy / taken}, since" in log and note in log, name
        found = torch.load(copy / "model_final.pth", weights_only=True)["model"]
        assert all(torch.equal(value, found[key]) for key, value in expected.items()), name
    cfg.train.output_dir = str(folder)
    for step in (1, 3):
        damage(folder / f"model_000000{step}.pth")
    with pytest.raises(CheckpointError, match="no checkpoint in .* can be resumed from: .*000003.*000001"):
        run(cfg, resume=True)
    for step in (1, 3):
        (folder / f"model_000000{step}.pth").unlink()
    (folder / "last_checkpoint").write_text("")
    with pytest.raises(CheckpointError, match="last_checkpoint names no checkpoint"):
        run(cfg, resume=True)


def test_every_byte_of_a_checkpoint_counts(tmp_path):
    path = Path(tmp_path / "a.pth")
    save_sealed({"model": {"a": torch.arange(300.0)}, "iteration": 3}, path)
    assert torch.equal(torch.load(path, weights_only=True)["model"]["a"], torch.arange(300.0))
    whole = path.read_bytes()
    assert read_checkpoint(path)["iteration"] == 3
    draw = random.Random(0)
    for place in [
        0,
        len(whole) - 1,
        len(whole) - 60,
        len(whole) - 80,
        *(draw.randrange(len(whole)) for _ in range(200)),
    ]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << draw.randrange(8))]) + whole[place + 1 :])
        if len(whole) - 83 < place < len(whole) - 64:  # where it says that it has a digest: its members' sums are left
            with contextlib.suppress(CheckpointError):
                assert torch.equal(read_checkpoint(path)["model"]["a"], torch.arange(300.0))
            continue
        with pytest.raises(CheckpointError, match=r"a\.pth"):
            read_checkpoint(path)
    for size in (0, 3, 100, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"a\.pth"):
            read_checkpoint(path)
    torch.save({"model": {"a": torch.ones(1)}}, path)  # of another tool
    assert read_checkpoint(path)["model"]["a"] == 1


def test_a_damaged_result_of_a_finished_run_is_named(trained):
    cfg, folder = trained
    (folder / "results.json").write_text("{")
    with pytest.raises(RunError, match=r"results\.json of the finished run is damaged"):
        run(cfg, resume=True)
    (folder / "results.json").write_text(json.dumps({"a": {}}))
    assert run(cfg, resume=True) == {"a": {}}
