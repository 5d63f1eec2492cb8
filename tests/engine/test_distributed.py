"""Which GPU a process takes."""

from types import SimpleNamespace

import pytest
import torch

from polydet.engine import distributed


@pytest.mark.parametrize(("visible", "local_rank", "device"), [(8, 3, 3), (1, 3, 0)])
def test_the_gpu_of_a_process_is_one_that_it_sees(monkeypatch, visible, local_rank, device):
    """Under ``srun --gpus-per-task=1`` every process sees one GPU, whatever its place on the machine."""
    current = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[-1])
    monkeypatch.setattr(distributed, "_place_of_this_process", lambda: (local_rank, 8, local_rank, 8))
    monkeypatch.setattr(distributed, "_make_local_group", lambda *sizes: None)
    for name in ("init_process_group", "destroy_process_group"):
        monkeypatch.setattr(distributed.dist, name, lambda *args, **kwargs: None)
    found = []
    distributed.run_distributed(lambda: found.append(distributed.resolve_device("cuda")), ())
    assert found == [torch.device("cuda", device)]
    monkeypatch.setattr(distributed.comm, "get_world_size", lambda: 8)
    monkeypatch.setattr(distributed, "DistributedDataParallel", lambda model, **options: options["device_ids"])

    model = SimpleNamespace(parameters=lambda: iter([SimpleNamespace(device=torch.device("cuda", device))]))
    assert distributed.wrap_model(model) == [device]
