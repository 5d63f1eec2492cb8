"""Pre-training over two processes, as the engine wraps it: no weight is left out and both processes take one step."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from aligndet_detectors import DETECTORS, build, two_view_batch
from detectron2.utils.events import EventStorage

from aligndet.pretrainer import AlignDet
from polydet.engine.distributed import wrap_model

TASKS = [("classification", "regression"), ("classification",), ("regression",)]


def gradients(kind, tasks, rank):
    """Of the second of two steps, which fails if a weight was left out; images differ between the processes."""
    torch.manual_seed(0)
    model = AlignDet(build(kind), 10, tasks=tasks).train()
    wrapped = wrap_model(model)
    for step in range(2):
        model.zero_grad()
        with EventStorage(step):
            losses = wrapped(two_view_batch(images=1, proposals=3 + rank, seed=rank + step))
        sum(losses.values()).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])


def worker(rank, folder, kind):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    found = [gradients(kind, tasks, rank) for tasks in TASKS]
    torch.save(found, f"{folder}/gradients{rank}.pth")
    dist.destroy_process_group()


@pytest.mark.parametrize("kind", sorted(DETECTORS))
def test_two_processes_take_one_step(kind, tmp_path):
    mp.start_processes(worker, (str(tmp_path), kind), nprocs=2, start_method="fork")
    for one, other in zip(*(torch.load(tmp_path / f"gradients{rank}.pth") for rank in range(2)), strict=True):
        assert torch.isfinite(one).all() and one.any()
        torch.testing.assert_close(one, other)
