"""SIGTERM and SIGUSR1: saved at the end of the step, left with a code to be started again, and equal to the bit."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import torch.distributed as dist
from detectron2.config import LazyCall as L
from test_exact_resume import card, small  # noqa: F401

from polydet.engine import checkpoint, distributed, evaluate, run
from polydet.engine.plateau import PlateauSchedule
from polydet.engine.progress import read_metrics
from polydet.engine.stopping import EXIT_CODE, Interrupted
from polydet.engine.trainer import Trainer

NAMES = run.__wrapped__.__globals__


def stripped(folder):
    timing = {"time", "data_time", "eta_seconds"}
    return [{k: v for k, v in r.items() if k not in timing} for r in read_metrics(folder / "metrics.json")]


def assert_same_run(a, b):
    assert stripped(a) == stripped(b)
    one, two = (torch.load(folder / "model_final.pth", weights_only=True) for folder in (a, b))
    assert all(torch.equal(value, two["model"][key]) for key, value in one["model"].items())
    assert repr(one["trainer"]["optimizer"]) == repr(two["trainer"]["optimizer"])
    assert one["trainer"].get("hooks") == two["trainer"].get("hooks") and "unfinished" not in two["trainer"]


def send(number, group=False):
    """Signal this process, or its group as another process does."""
    if not group:
        os.kill(os.getpid(), number)
    elif not (other := os.fork()):
        signal.signal(number, signal.SIG_IGN)
        os.killpg(os.getpgrp(), number)
        os._exit(0)
    else:
        os.waitpid(other, 0)


def after(owner, name, call, number=signal.SIGTERM, group=False):
    """Send a signal to this process at the ``call``th call of a function of ``owner``, before it does its work."""
    original, calls = getattr(owner, name), []

    def wrapped(*args, **options):
        calls.append(0)
        if len(calls) == call:
            send(number, group)
        return original(*args, **options)

    return wrapped


def in_group(call):
    """A process that leads a process group of its own and ends with the exit code of a call.

    Every run that is compared has such a one, as it has in life.
    """
    if not (child := os.fork()):
        os.setsid()
        code = 1
        try:
            call()
            code = 0
        except SystemExit as error:
            code = error.code
        finally:
            os._exit(code)
    return child


def code_of(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp("kept") / "run"


@pytest.fixture
def rich(small, card, kept):  # noqa: F811
    """A run with all that a step may still have to do: evaluation, plateau, best checkpoint; and it uninterrupted."""

    def build(folder):
        cfg = small("fcos")
        cfg.dataloader.test_datasets = [card]
        cfg.lr_multiplier.update(kind="cosine", warmup_iters=2)
        cfg.train.update(output_dir=str(folder), max_iter=6, eval_period=2, log_period=2, checkpoint_period=4)
        cfg.train.update(best_metric=f"{card}/bbox/AP", ema=dict(enabled=True, decay=0.5))
        cfg.train.hooks = [L(PlateauSchedule)(metric=f"{card}/bbox/AP", patience=1, stop_patience=50)]
        return cfg

    if not kept.exists():
        assert code_of(in_group(lambda: run(build(kept)))) == 0
    return build


@pytest.mark.parametrize(
    ("where", "call", "number", "saved"),
    [
        ("run_step", 3, signal.SIGUSR1, 2),  # in a step: after it, though no checkpoint is due
        ("evaluate", 1, signal.SIGTERM, 1),  # in the evaluation of step 1, which the resumed run repeats
        ("save_sealed", 1, signal.SIGTERM, 3),  # while the checkpoint of step 3 is written
        ("final", 3, signal.SIGTERM, 5),  # in the last evaluation, which is after the last step
    ],
)
def test_a_run_that_is_asked_to_leave_resumes_to_the_bit(rich, kept, tmp_path, monkeypatch, where, call, number, saved):
    cfg = rich(tmp_path)
    owner, name = {"run_step": (Trainer, "run_step"), "save_sealed": (checkpoint, "save_sealed")}.get(
        where, (sys.modules[evaluate.__module__], "inference_on_dataset")
    )

    def interrupted():
        monkeypatch.setattr(owner, name, after(owner, name, call, number))
        run(cfg)

    assert code_of(in_group(interrupted)) == EXIT_CODE == 75
    file = tmp_path / ("model_final.pth" if where == "final" else f"model_{saved:07d}.pth")
    assert (tmp_path / "last_checkpoint").read_text() == file.name and file.is_file()
    assert not (tmp_path / "DONE").exists() and "exit code 75" in (tmp_path / "log.txt").read_text()
    assert code_of(in_group(lambda: run(rich(tmp_path), resume=True))) == 0
    assert_same_run(kept, tmp_path)
    best = [torch.load(folder / "model_best.pth", weights_only=True) for folder in (kept, tmp_path)]
    assert best[0]["metric"] == best[1]["metric"] and best[0]["iteration"] == best[1]["iteration"]
    assert (tmp_path / "results.json").read_bytes() == (kept / "results.json").read_bytes()


def test_in_warm_up_it_leaves_at_once(rich, tmp_path, monkeypatch):
    monkeypatch.setitem(NAMES, "build_model", after_global("build_model"))
    with pytest.raises(Interrupted):
        run(rich(tmp_path))
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert not list(tmp_path.glob("model_*")) and (tmp_path / "config.yaml").is_file()


def after_global(name):
    class Owner:
        pass

    setattr(Owner, name, staticmethod(NAMES[name]))
    return after(Owner, name, 1)


def test_a_signal_to_the_whole_group_leaves_the_workers_at_work(rich, kept, tmp_path, monkeypatch):
    cfg = rich(tmp_path)
    cfg.dataloader.train.num_workers = 2
    cfg.dataloader.test.num_workers = 1

    def interrupted():
        monkeypatch.setattr(Trainer, "run_step", after(Trainer, "run_step", 3, signal.SIGTERM, group=True))
        run(cfg)

    assert code_of(in_group(interrupted)) == EXIT_CODE
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000002.pth"
    assert code_of(in_group(lambda: run(rich(tmp_path), resume=True))) == 0
    assert_same_run(kept, tmp_path)


def test_all_processes_leave_at_the_same_step(small, tmp_path):  # noqa: F811
    def process(rank, folder, step, resume=False):
        dist.init_process_group("gloo", init_method=f"file://{folder}.{step}", rank=rank, world_size=2)
        distributed._make_local_group(2, 2)
        cfg = small("fcos")
        cfg.train.output_dir = str(folder)
        if rank == 1:  # only this one gets the signal
            Trainer.run_step = after(Trainer, "run_step", step)
        try:
            run(cfg, resume=resume)
        finally:
            dist.destroy_process_group()

    def both(*args):
        return [code_of(child) for child in [in_group(lambda rank=rank: process(rank, *args)) for rank in (0, 1)]]

    assert both(tmp_path / "whole", 99) == [0, 0]
    assert both(tmp_path / "left", 2) == [EXIT_CODE, EXIT_CODE]
    assert (tmp_path / "left" / "last_checkpoint").read_text() in ("model_0000001.pth", "model_0000002.pth")
    assert both(tmp_path / "left", 98, True) == [0, 0]
    assert_same_run(tmp_path / "whole", tmp_path / "left")


def test_a_launcher_passes_the_signal_on(tmp_path):
    def started():
        def work():
            got = []
            signal.signal(signal.SIGUSR1, lambda *_: got.append(1))
            (tmp_path / "ready").write_text("")
            while not got:
                time.sleep(0.01)
            (tmp_path / "got").write_text("")

        import multiprocessing

        with distributed.passed_on():
            child = multiprocessing.get_context("fork").Process(target=work)
            child.start()
            child.join()

    child = in_group(started)
    while not (tmp_path / "ready").exists():
        time.sleep(0.01)
    os.kill(child, signal.SIGUSR1)
    assert code_of(child) == 0 and (tmp_path / "got").exists()


def test_workers_end_with_the_run(tmp_path):
    """A loader that is never exhausted lives until the interpreter ends, which then does away with its workers."""
    code = (
        "import os, sys, torch\n"
        "from polydet.data.loader import _leave_signals_to_the_run as init\n"
        "data = torch.utils.data.DataLoader(list(range(99)), num_workers=1, worker_init_fn=init)\n"
        "kept = iter(data)\n"
        "sys.kept = kept, next(kept)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=240)
