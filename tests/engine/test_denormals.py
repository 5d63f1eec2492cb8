"""Denormal numbers are flushed while a run lasts, and only then."""

from pathlib import Path

import torch
from detectron2.config import LazyCall as L
from fvcore.nn import sigmoid_focal_loss
from omegaconf import OmegaConf

from polydet.engine import run
from polydet.engine.denormals import denormals_are_zero, flush_denormals, same_rounding


def test_they_are_zero_inside_and_numbers_outside() -> None:
    assert not denormals_are_zero()
    with flush_denormals():
        assert denormals_are_zero()
        with flush_denormals():
            pass
        assert denormals_are_zero()  # an inner block leaves them to the outer one
        assert (torch.full((1000,), 1e-30) * 1e-10).count_nonzero() == 0
    assert not denormals_are_zero()


def test_a_run_flushes_them(tmp_path: Path) -> None:
    seen = []
    stage = {"run": L(lambda: seen.append(denormals_are_zero()))()}
    cfg = {"train": {"output_dir": str(tmp_path)}, "stages": {"probe": stage}}
    run(OmegaConf.create(cfg, flags={"allow_objects": True}))
    assert seen == [True] and not denormals_are_zero()


def test_a_scripted_loss_rounds_the_first_time_as_the_next():
    torch.manual_seed(0)
    logits, targets = torch.randn(400, 7), (torch.rand(400, 7) > 0.9).float()

    def gradient(loss):
        x = logits.clone().requires_grad_()
        loss(x, targets, alpha=0.25, gamma=2.0, reduction="sum").backward()
        return x.grad

    with same_rounding():
        again = torch.jit.script(sigmoid_focal_loss)
        assert all(torch.equal(gradient(again), gradient(sigmoid_focal_loss)) for _ in range(4))
