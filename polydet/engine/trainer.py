"""The training loop: one optimiser step with autocast, accumulation, clipping and averaging."""

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import torch
import torch.distributed as dist
from detectron2.engine.hooks import LRScheduler, PeriodicWriter
from detectron2.engine.train_loop import HookBase, TrainerBase
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from polydet.engine.distributed import seed_everything
from polydet.engine.ema import ModelEMA
from polydet.engine.nonfinite import NonFiniteError, cause_of
from polydet.engine.optim import restore_optimizer
from polydet.engine.stopping import Interrupted, asked
from polydet.weight_files import CheckpointError

Clip = Literal["none", "norm", "value"]
_ASKED = "a signal came"  # beside the losses, so that all processes learn of it at the same step
DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Trainer(TrainerBase):
    """Detectron2's trainer with hooks, on CPU or CUDA.

    Every step starts by seeding torch, numpy and random from (seed, iteration, rank): a run that is resumed, and a
    step that is replayed, see the numbers that the uninterrupted run saw.

    Args:
        model: the model or its DistributedDataParallel; returns a dict of weighted losses in training.
        optimizer: steps once per iteration.
        dtype: autocast dtype, ``float32`` for none.
        grad_accumulation: batches per optimiser step; the losses are averaged.
        clip: ``norm`` (total norm), ``value`` (element-wise) or ``none``.
        clip_value: bound of the clipping.
        ema: average to update after each step.
        seed: of the run.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        dtype: str = "float32",
        grad_accumulation: int = 1,
        clip: Clip = "none",
        clip_value: float = 0.0,
        ema: ModelEMA | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if dtype not in DTYPES:
            raise ValueError(f"train.amp.dtype must be one of {sorted(DTYPES)}, not {dtype!r}")
        if clip not in ("none", "norm", "value"):
            raise ValueError(f"train.clip_grad.kind must be none, norm or value, not {clip!r}")
        self.model, self.optimizer, self.ema, self.seed = model, optimizer, ema, seed
        self.grad_accumulation, self.clip, self.clip_value = grad_accumulation, clip, clip_value
        self.device = next(model.parameters()).device
        self.dtype = DTYPES[dtype]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype is torch.float16)
        self.batch: list[dict[str, Any]] = []  # of the current step; read by hooks
        self.num_ground_truth = 0  # boxes of the current step, this process
        self.unfinished: dict[str, Any] = {}  # the hook in which a signal ended the step, and the step's numbers
        self._pending_hooks: dict[str, Any] = {}
        self._asked = False
        self._batches: Iterator[list[dict[str, Any]]] = iter(())

    @property
    def raw_model(self) -> nn.Module:
        """The model without its DistributedDataParallel."""
        return self.model.module if isinstance(self.model, DistributedDataParallel) else self.model

    def set_loader(self, loader: Iterable[list[dict[str, Any]]]) -> None:
        """Batches from the position where training starts; ``grad_accumulation`` of them are one step."""
        self._batches = iter(loader)

    def register_hooks(self, hooks: list[HookBase | None]) -> None:
        """Detectron2's, for hooks that are built after a checkpoint was loaded: they get their state here."""
        super().register_hooks(hooks)
        for hook in hooks:
            state = self._pending_hooks.pop(type(hook).__qualname__, None)
            if hook is not None and state is not None:
                hook.load_state_dict(state)

    def train(self, start_iter: int, max_iter: int) -> None:
        """Detectron2's loop, but a hook can end it after the current step by lowering ``max_iter``.

        Hooks see the end of a training that fails as one before its last step: nothing is evaluated then.

        Raises:
            Interrupted: a signal came; in every process, after the same step or in its evaluation.
        """
        self.iter = self.start_iter = start_iter
        self.max_iter = max_iter
        with EventStorage(start_iter) as self.storage:
            try:
                self.before_train()
                self._finish_step()
                while self.iter < self.max_iter:
                    self.before_step()
                    self.run_step()
                    self.after_step()
                    if self._asked if comm.get_world_size() > 1 else asked():
                        raise Interrupted
                    self.iter += 1  # equal to max_iter in after_train: training has not failed
            except Interrupted:
                for hook in self._hooks:
                    if isinstance(hook, PeriodicWriter):  # which would write of a step that is not its turn
                        for writer in hook._writers:
                            writer.close()
                raise
            except BaseException:
                self.max_iter = max(self.max_iter, self.iter + 2)
                self.storage.iter = self.iter
                for hook in self._hooks:
                    with contextlib.suppress(Exception):  # what went wrong is to be seen, not what follows from it
                        hook.after_train()
                raise
            self.after_train()

    def after_step(self, since: str = "") -> None:
        """Detectron2's, from the hook of the class ``since`` on; one in which a signal ends the run is remembered."""
        names = [type(hook).__qualname__ for hook in self._hooks]
        for hook in self._hooks[names.index(since) if since else 0 :]:
            try:
                hook.after_step()
            except Interrupted:
                hints = self.storage.smoothing_hints()
                latest = self.storage.latest().items()
                numbers = {k: (float(value), hints[k]) for k, (value, step) in latest if step == self.iter}
                self.unfinished = {"hook": type(hook).__qualname__, "numbers": numbers}
                raise

    def _finish_step(self) -> None:
        """What the hooks of a resumed run's last step had still to do."""
        state, self.unfinished = self.unfinished, {}
        if not state:
            return
        self.iter -= 1
        self.storage.iter = self.iter
        for name, (value, smooth) in state["numbers"].items():
            self.storage.put_scalar(name, value, smoothing_hint=smooth)
        for hook in self._hooks:
            if isinstance(hook, LRScheduler):  # as the hook itself left the rates in that step
                for group, rate in zip(self.optimizer.param_groups, hook.scheduler.get_last_lr()):
                    group["lr"] = rate
        self.after_step(state["hook"])
        self.iter += 1

    def run_step(self) -> None:
        """One optimiser step.

        Raises:
            NonFiniteError: on every process, before any weight has changed.
        """
        seed_everything(self.seed, self.iter, comm.get_rank())
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        self.num_ground_truth = 0
        data_time, metrics = 0.0, dict[str, float]()
        for micro in range(self.grad_accumulation):
            start = time.perf_counter()
            self.batch = next(self._batches)
            data_time += time.perf_counter() - start
            self.num_ground_truth += sum(len(item["instances"]) for item in self.batch if "instances" in item)
            last = micro == self.grad_accumulation - 1
            for name, value in self._forward_backward(last).items():
                metrics[name] = metrics.get(name, 0.0) + value / self.grad_accumulation
        self._update(metrics)
        if self.ema is not None:
            self.ema.update(self.raw_model)
        self.storage.put_scalars(data_time=data_time, **metrics)

    def _forward_backward(self, last: bool) -> dict[str, float]:
        wait = not last and isinstance(self.model, DistributedDataParallel)
        with self.model.no_sync() if wait else contextlib.nullcontext():  # type: ignore[operator]
            losses = self._forward()
            total = torch.stack([value.reshape(()) for value in losses.values()]).sum()
            values = {**losses, "total_loss": total}
            if comm.get_world_size() > 1:
                values[_ASKED] = total.new_tensor(float(asked()))
            metrics = reduce_losses(values)
            self._asked = metrics.pop(_ASKED, 0.0) > 0
            bad = [name for name, value in metrics.items() if value != value or abs(value) == float("inf")]
            if bad:
                raise NonFiniteError(f"iteration {self.iter}: {', '.join(bad)} not finite", metrics)
            self.scaler.scale(total / self.grad_accumulation).backward()
        return metrics

    def _forward(self) -> dict[str, Tensor]:
        """Losses of the batch; a model that raises because its numbers are no longer finite is told from others."""
        try:
            with self.autocast():
                losses = self.model(self.batch)
        except Exception as error:
            seed_everything(self.seed, self.iter, comm.get_rank())
            with self.autocast():
                cause = cause_of(error, self.raw_model, self.batch)
            if not cause:
                raise
            alone = comm.get_world_size() > 1
            raise NonFiniteError(f"iteration {self.iter}: {cause} not finite", {}, alone) from error
        if not losses:
            raise RuntimeError(f"{type(self.raw_model).__name__} returned no losses in training")
        return losses

    def _update(self, metrics: dict[str, float]) -> None:
        self.scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        limit = self.clip_value if self.clip == "norm" else float("inf")
        norm = float(nn.utils.clip_grad_norm_(parameters, limit)) if parameters else 0.0
        if norm != norm or norm == float("inf"):
            if not self.scaler.is_enabled():  # with loss scaling a skipped step is part of the method
                raise NonFiniteError(f"iteration {self.iter}: gradient norm is {norm}", metrics)
        elif self.clip == "value":
            nn.utils.clip_grad_value_(parameters, self.clip_value)
        metrics["grad_norm"] = norm
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Autocast of the run: used in training, and by the engine in evaluation."""
        return autocast(self.device, self.dtype)

    def averaged(self) -> contextlib.AbstractContextManager[None]:
        """Inside the block the model has its averaged weights, where the run averages them."""
        return contextlib.nullcontext() if self.ema is None else self.ema.applied(self.raw_model)

    def state_dict(self) -> dict[str, Any]:
        """Everything besides the model that a resumed run needs; randomness follows from seed and iteration."""
        state = {**super().state_dict(), "optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}
        state["parameters"] = self._trained()
        if self.unfinished:
            state["unfinished"] = self.unfinished
        if self.ema is not None:
            state["ema"] = self.ema.state_dict()
        return state

    def _trained(self) -> list[str]:
        """Names of the optimiser's parameters, in its order."""
        names = {id(p): name for name, p in self.raw_model.named_parameters()}
        return [names.get(id(p), "") for group in self.optimizer.param_groups for p in group["params"]]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` saved; the model is loaded before.

        Raises:
            CheckpointError: the run averaged weights and the checkpoint did not, or the other way round; or other
                parameters are trained.
        """
        self.iter = int(state_dict["iteration"])
        self.unfinished = dict(state_dict.get("unfinished", {}))
        self._pending_hooks = dict(state_dict.get("hooks", {}))
        self._pending_hooks.pop("LRScheduler", None)  # rates follow from the config and the step
        restore_optimizer(self.optimizer, state_dict["optimizer"], self._trained(), state_dict.get("parameters"))
        if state_dict["scaler"]:  # a run without loss scaling has none, and a new precision begins with its own
            self.scaler.load_state_dict(state_dict["scaler"])
        if (self.ema is not None) != ("ema" in state_dict):
            on, off = ("the run", "the checkpoint") if self.ema is not None else ("the checkpoint", "the run")
            raise CheckpointError(
                f"{on} averages its weights and {off} does not: train.ema.enabled stays what it was with --resume; "
                "train.init_checkpoint starts a new run from these weights"
            )
        if self.ema is not None:
            self.ema.load_state_dict(state_dict["ema"])
            if state_dict["ema"].get("exchanged"):  # the model was loaded with the average
                self.ema.exchange(self.raw_model)


def autocast(device: torch.device, dtype: torch.dtype | None) -> contextlib.AbstractContextManager[Any]:
    """Autocast to one of ``DTYPES`` on a device; None is none."""
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def reduce_losses(losses: Mapping[str, Tensor]) -> dict[str, float]:
    """Scalars averaged over processes: one reduction and one copy to the host."""
    names = sorted(losses)
    values = torch.stack([losses[name].detach().float().reshape(()) for name in names])
    if comm.get_world_size() > 1:
        dist.all_reduce(values)
        values /= comm.get_world_size()
    return dict(zip(names, values.tolist()))
