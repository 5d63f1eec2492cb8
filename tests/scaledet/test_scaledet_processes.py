"""Losses and gradients do not depend on how a batch is split over processes."""

import os

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.utils.events import EventStorage
from scaledet_parts import build_model, make_input


def inputs():
    return [
        make_input(((10, 10, 50, 60), (30, 20, 90, 80), (5, 40, 60, 90)), (0, 1, 2)),
        make_input((), (), dataset="farm", seed=1),  # no objects here: all positives are in the other process
    ]


def losses_and_gradients(batch):
    # enough regions that all proposals are taken: the draw of regions is each process's own
    model = build_model(norm="frozen", batch_size_per_image=10**6, positive_fraction=1.0)
    model.train()
    # oneDNN rounds one image and two differently on some processors, which a ReLU's edge shows in a gradient
    with EventStorage(), torch.backends.mkldnn.flags(enabled=False):
        losses = model(batch)
        sum(losses.values()).backward()
    values = torch.stack([losses[name].detach() for name in sorted(losses)])
    return [values, *(p.grad for p in model.parameters() if p.requires_grad)]


def worker(rank, folder):
    torch.set_num_threads(1)
    os.environ["POLYDET_CACHE"] = f"{folder}/cache{rank}"
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    results = losses_and_gradients(inputs()[rank : rank + 1])
    for tensor in results:
        dist.all_reduce(tensor)
        tensor /= 2
    if rank == 0:
        torch.save(results, f"{folder}/results.pth")
    dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    mp.start_processes(worker, (str(tmp_path),), nprocs=2, start_method="fork")  # no second import of torch
    for ours, expected in zip(torch.load(tmp_path / "results.pth"), losses_and_gradients(inputs()), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
