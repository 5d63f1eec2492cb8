"""Processes: Detectron2's ``launch``, ``torchrun`` and SLURM, on CUDA (NCCL) and CPU (gloo)."""

import contextlib
import os
import random
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from detectron2.engine import launch
from detectron2.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from polydet.engine.errors import ConfigError, RunError
from polydet.engine.stopping import passed_on

_BROKEN = re.compile(r"gloo|NCCL|Connection (closed|reset)|Broken pipe")


def run_distributed(
    main: Callable[..., Any],
    args: tuple[Any, ...],
    num_processes: int = 1,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
) -> None:
    """Call ``main(*args)`` in every process of the job.

    Under ``torchrun`` (``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK`` set) or SLURM with several tasks this process joins the
    group that is already there; otherwise Detectron2's ``launch`` starts ``num_processes`` processes here.
    """
    place = _place_of_this_process()
    if place is None:
        with passed_on() if num_processes > 1 else contextlib.nullcontext():
            launch(main, num_processes, num_machines, machine_rank, dist_url, args)
        return
    rank, world_size, local_rank, local_size = place
    cuda = torch.cuda.is_available()
    if cuda:
        # with one visible GPU a process (srun --gpus-per-task=1) it is number 0 for all of them
        torch.cuda.set_device(local_rank % torch.cuda.device_count())
    dist.init_process_group("nccl" if cuda else "gloo", rank=rank, world_size=world_size)
    try:
        _make_local_group(world_size, local_size)
        main(*args)
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def deaths_named() -> Iterator[None]:
    """Inside the block the death of a worker or of another process is said in a sentence.

    Raises:
        RunError: see above.
    """
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        text = f"{type(error).__name__}: {error}"
        if "DataLoader worker" in text or not isinstance(error, RuntimeError):  # the end of a pipe from one
            raise RunError(
                f"a worker of the data loader has died ({text.splitlines()[0]}), often for want of memory: lower "
                "num_workers of dataloader.train or dataloader.test, and go on with --resume"
            ) from error
        if comm.get_world_size() > 1 and _BROKEN.search(text):
            raise RunError(
                f"another process of the run has died ({text.splitlines()[0][:200]}): its own message says why; go on "
                "with --resume"
            ) from error
        raise


def on_main(function: Callable[..., Any], *args: Any) -> Any:
    """Call in the main process; every process gets what it returns, or the error that it raises."""
    outcome: tuple[Any, Exception | None] = None, None
    if comm.is_main_process():
        try:
            outcome = function(*args), None
        except Exception as error:
            if comm.get_world_size() == 1:
                raise
            outcome = None, error
    value, problem = comm.all_gather(outcome)[0] if comm.get_world_size() > 1 else outcome
    if problem is not None:
        raise problem
    return value


def _place_of_this_process() -> tuple[int, int, int, int] | None:
    """(rank, world size, local rank, processes here), or None when nothing has started us as one of several."""
    env = os.environ
    if "TORCHELASTIC_RUN_ID" in env:
        return int(env["RANK"]), int(env["WORLD_SIZE"]), int(env["LOCAL_RANK"]), int(env["LOCAL_WORLD_SIZE"])
    if int(env.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in env:
        if "MASTER_ADDR" not in env or "MASTER_PORT" not in env:
            raise RuntimeError(
                "SLURM started several tasks, but MASTER_ADDR and MASTER_PORT are not set: in the batch script, "
                'export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1) MASTER_PORT=29500'
            )
        tasks, nodes = int(env["SLURM_NTASKS"]), int(env.get("SLURM_NNODES", "1"))
        return int(env["SLURM_PROCID"]), tasks, int(env["SLURM_LOCALID"]), tasks // nodes
    return None


def _make_local_group(world_size: int, local_size: int) -> None:
    """Tell Detectron2's ``comm`` which processes share this machine."""
    if hasattr(comm, "create_local_process_group"):  # Detectron2's main branch
        comm.create_local_process_group(local_size)
        return
    for start in range(0, world_size, local_size):
        ranks = list(range(start, start + local_size))
        group = dist.new_group(ranks)
        if dist.get_rank() in ranks:
            comm._LOCAL_PROCESS_GROUP = group


def refuse_disagreement(settings: Mapping[str, Any]) -> None:
    """Every process must have the same settings; a recipe decides them in each of them.

    Args:
        settings: key -> value; numbers, strings and None are compared, other values by their type.

    Raises:
        ConfigError: two processes differ, in every process; names the first such key and both values.
    """
    plain = {key: value if isinstance(value, _PLAIN) else type(value).__name__ for key, value in settings.items()}
    first, *others = comm.all_gather(plain)
    for rank, other in enumerate(others, 1):
        for key in (*first, *other):
            here, there = first.get(key, "absent"), other.get(key, "absent")
            if here != there:
                raise ConfigError(
                    f"{key} is {here!r} in process 0 and {there!r} in process {rank}: their files, environments or "
                    f"GPUs differ; state {key}=VALUE"
                )


_PLAIN = (str, int, float, bool, type(None))


def wrap_model(model: nn.Module, find_unused_parameters: bool = False) -> nn.Module:
    """``model`` itself in a single process, else its DistributedDataParallel."""
    if comm.get_world_size() == 1:
        return model
    device = next(model.parameters()).device
    return DistributedDataParallel(
        model,
        device_ids=[device.index] if device.type == "cuda" else None,
        broadcast_buffers=False,
        find_unused_parameters=find_unused_parameters,
    )


def resolve_device(device: str) -> torch.device:
    """``auto`` is this process's CUDA device where there is one, else the CPU.

    Raises:
        RuntimeError: CUDA is asked for and absent.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda"):
        if not torch.cuda.is_available():
            raise RuntimeError("train.device=cuda, but torch sees no CUDA device; run python tools/doctor.py")
        if device == "cuda":
            return torch.device("cuda", torch.cuda.current_device())
    return torch.device(device)


def seed_everything(seed: int, step: int = 0, rank: int = 0) -> None:
    """Seed torch, numpy and random from three numbers, so that any step can be repeated on its own."""
    state = int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint32)[0])
    random.seed(state)
    np.random.seed(state)
    torch.manual_seed(state)
