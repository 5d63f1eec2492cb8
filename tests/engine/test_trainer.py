"""The training step against plain torch, resume, averaging, and the hooks that stop silent failures."""

import json
import math

import pytest
import torch
from detectron2.engine import hooks
from detectron2.structures import Instances
from torch import nn

from polydet.engine import read_checkpoint
from polydet.engine.best import BestCheckpoint
from polydet.engine.checkpoint import Checkpointer
from polydet.engine.ema import ModelEMA
from polydet.engine.nonfinite import NonFiniteError, first_nonfinite_module
from polydet.engine.progress import drop_metrics_from, read_metrics
from polydet.engine.sentinels import (
    FrozenSentinel,
    GroundTruthSentinel,
    NonFiniteReplay,
    SilentFailure,
    ZeroLossSentinel,
)
from polydet.engine.trainer import Trainer
from polydet.weight_files import CheckpointError


class Model(nn.Module):
    """A regression whose loss has noise, so that only repeated random numbers give repeated weights."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(3, 1)
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)

    def forward(self, batch):
        x = torch.stack([item["x"] for item in batch])
        y = self.linear(x + 0.1 * torch.randn_like(x))
        return {"loss_a": y.square().mean(), "loss_b": 0.0 * y.sum()}


def batches(start=0, size=2, boxes=1):
    generator = torch.Generator()
    for i in range(start, 10**6):
        generator.manual_seed(i)
        yield [
            {"x": torch.randn(3, generator=generator), "instances": Instances((4, 4), gt_classes=torch.zeros(boxes))}
            for _ in range(size)
        ]


def make(**kwargs):
    model = Model()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    return Trainer(model, optimizer, **kwargs)


def train(trainer, start, end, hooks=(), **kwargs):
    trainer.set_loader(batches(start * trainer.grad_accumulation, **kwargs))
    trainer.register_hooks(list(hooks))
    trainer.train(start, end)
    return trainer.model.linear.weight.detach().clone()


def test_a_step_is_plain_torch():
    trainer = make(clip="norm", clip_value=0.5)
    weight = train(trainer, 0, 1)
    model = Model()
    optimizer = torch.optim.AdamW([model.linear.weight, model.linear.bias], lr=0.1)
    from polydet.engine.distributed import seed_everything

    seed_everything(0, 0, 0)
    sum(model(next(batches())).values()).backward()
    nn.utils.clip_grad_norm_(model.linear.parameters(), 0.5)
    optimizer.step()
    torch.testing.assert_close(weight, model.linear.weight.detach(), rtol=0, atol=0)


def test_resume_equals_an_uninterrupted_run():
    whole = make(ema=ModelEMA(Model()), seed=3)
    expected = train(whole, 0, 6)
    first = make(ema=ModelEMA(Model()), seed=3)
    train(first, 0, 3)
    first.iter -= 1  # a checkpoint is saved inside the last step
    second = make(ema=ModelEMA(Model()), seed=3)
    second.model.load_state_dict(first.model.state_dict())
    second.load_state_dict(first.state_dict())
    assert second.iter == 2
    assert torch.equal(train(second, second.iter + 1, 6), expected)
    assert all(torch.equal(a, second.ema.average[k]) for k, a in whole.ema.average.items())


def test_accumulation_averages_gradients():
    class Noiseless(Model):
        def forward(self, batch):
            return {"loss": self.linear(torch.stack([item["x"] for item in batch])).square().mean()}

    def run(accumulation, size):
        model = Noiseless()
        trainer = Trainer(model, torch.optim.SGD(model.linear.parameters(), lr=0.1), grad_accumulation=accumulation)
        data = [item for batch, _ in zip(batches(), range(4)) for item in batch]
        trainer.set_loader(data[i : i + size] for i in range(0, 8, size))
        trainer.train(0, 2)
        return model.linear.weight

    torch.testing.assert_close(run(2, 2), run(1, 4))


def test_bfloat16_autocast_on_the_cpu_trains_float32_weights():
    seen = []

    class Watch(Model):
        def forward(self, batch):
            seen.append(self.linear(torch.ones(1, 3)).dtype)
            return super().forward(batch)

    model = Watch()
    trainer = Trainer(model, torch.optim.SGD(model.linear.parameters(), lr=0.1), dtype="bfloat16")
    train(trainer, 0, 1)
    assert seen == [torch.bfloat16] and model.linear.weight.dtype == torch.float32
    with pytest.raises(ValueError, match="bfloat16"):
        make(dtype="int8")
    with pytest.raises(ValueError, match="clip_grad"):
        make(clip="max")


def test_ema_follows_the_definition_and_steps_aside():
    model = Model()
    ema = ModelEMA(model, decay=0.9)
    start = model.linear.weight.detach().clone()
    with torch.no_grad():
        model.linear.weight += 1
    ema.update(model)
    torch.testing.assert_close(ema.average["linear.weight"], start + 0.1)
    assert "frozen" not in ema.average
    with ema.applied(model):
        torch.testing.assert_close(model.linear.weight.detach(), start + 0.1)
    torch.testing.assert_close(model.linear.weight.detach(), start + 1)
    warm = ModelEMA(model, decay=0.9999, warmup=True)
    with torch.no_grad():
        model.linear.weight += 1
    warm.update(model)
    torch.testing.assert_close(warm.average["linear.weight"], start + 1 + (1 - 2 / 11))
    with pytest.raises(CheckpointError, match="other parameters"):
        ema.load_state_dict({"step": 1, "average": {}})


def test_exponential_warmup_of_ema_is_that_of_the_released_co_dino():
    """ExpMomentumEMAHook: momentum (1 - m) exp(-(1 + i) / 2000) + m at iteration i, m = 1e-4."""
    model = Model()
    ema = ModelEMA(model, decay=0.9999, exponential_steps=2000)
    expected, momenta = model.linear.weight.detach().clone(), []
    for i in range(3):
        with torch.no_grad():
            model.linear.weight += 1
        ema.update(model)
        momenta.append((1 - 1e-4) * math.exp(-(1 + i) / 2000) + 1e-4)
        expected += momenta[-1] * (model.linear.weight.detach() - expected)
        assert 1 - ema.decay_now() == pytest.approx(momenta[-1])
    torch.testing.assert_close(ema.average["linear.weight"], expected)
    assert momenta[0] == pytest.approx(0.9995, abs=1e-5)  # the average starts as the weights themselves
    ema.step = 40000
    assert ema.decay_now() == pytest.approx(0.9999, abs=1e-8)
    for wrong in ({"warmup": True, "exponential_steps": 2000}, {"exponential_steps": -1}):
        with pytest.raises(ValueError, match="exponential_steps"):
            ModelEMA(model, **wrong)


def test_a_non_finite_step_stops_before_weights_change_and_can_be_replayed(tmp_path):
    class Breaks(Model):
        def forward(self, batch):
            losses = super().forward(batch)
            if any(item.get("bad") for item in batch):
                losses["loss_a"] = losses["loss_a"] * torch.tensor(float("nan"))
            return losses

    def poisoned():
        for i, batch in enumerate(batches()):
            if i == 2:
                batch[0].update(bad=1, file_name="bad.jpg")
            yield batch

    model = Breaks()
    trainer = Trainer(model, torch.optim.SGD(model.linear.parameters(), lr=0.1))
    trainer.set_loader(poisoned())
    with pytest.raises(NonFiniteError, match="iteration 2: loss_a"):
        trainer.train(0, 5)
    assert torch.isfinite(model.linear.weight).all()
    error = NonFiniteError("x", {"loss_a": float("nan")})
    folder = NonFiniteReplay(tmp_path).save(trainer, error)
    info = json.loads((folder / "info.json").read_text())
    assert info["iteration"] == 2 and "bad.jpg" in info["files"]
    batch = torch.load(folder / "batch_rank0.pth", weights_only=True)
    assert torch.equal(batch[0]["x"], trainer.batch[0]["x"]) and batch[0]["instances"]["image_size"] == (4, 4)
    assert first_nonfinite_module(model, batch) == "model"


def test_infinite_gradients_stop_too():
    class Steep(Model):
        def forward(self, batch):
            return {"loss": (self.linear.weight.sum() - self.linear.weight.sum().detach()).abs().sqrt()}

    model = Steep()
    trainer = Trainer(model, torch.optim.SGD(model.linear.parameters(), lr=0.1))
    trainer.set_loader(batches())
    with pytest.raises(NonFiniteError, match="gradient norm"):
        trainer.train(0, 1)


def test_no_ground_truth_stops_the_run():
    with pytest.raises(SilentFailure, match="no ground-truth box in the first 3 steps"):
        train(make(), 0, 5, [GroundTruthSentinel(3)], boxes=0)
    train(make(), 0, 5, [GroundTruthSentinel(3)], boxes=1)


def test_zero_losses_are_said_and_all_zero_stops(caplog):
    train(make(), 0, 4, [ZeroLossSentinel(3)])
    assert "exactly zero for 3 steps: loss_b" in caplog.text

    class Nothing(Model):
        def forward(self, batch):
            return {"loss_a": 0.0 * self.linear.weight.sum()}

    model = Nothing()
    trainer = Trainer(model, torch.optim.SGD(model.linear.parameters(), lr=0.1))
    with pytest.raises(SilentFailure, match="all losses"):
        train(trainer, 0, 4, [ZeroLossSentinel(3)])


def test_frozen_parameters_that_move_stop_the_run(caplog):
    class Mover(FrozenSentinel):
        def after_step(self):
            with torch.no_grad():
                self.trainer.model.frozen[0] += 1e-6
            super().after_step()

    with pytest.raises(SilentFailure, match="frozen parameters moved: frozen"):
        train(make(), 0, 2, [Mover(1)])
    trainer = make()
    trainer.model.unused = nn.Linear(1, 1)
    train(trainer, 0, 2, [FrozenSentinel(1)])
    assert "got no gradient in the first step: unused.weight, unused.bias" in caplog.text


def test_momentum_modules_may_move():
    class Mover(FrozenSentinel):
        def after_step(self):
            with torch.no_grad():
                self.trainer.model.target.weight += 1
            super().after_step()

    def momentum(*names):
        trainer = make()
        trainer.model.target = nn.Linear(1, 1).requires_grad_(False)
        trainer.model.momentum_modules = names
        return trainer

    train(momentum("target"), 0, 2, [Mover(1)])
    with pytest.raises(SilentFailure, match="target.weight"):
        train(momentum(), 0, 2, [Mover(1)])


def test_metrics_of_a_killed_run_are_dropped_from_the_resumed_one(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text('{"iteration": 1, "a": 1}\n{"iteration": 5, "a": 2}\n{"iteration": 6, "a"')
    drop_metrics_from(path, 5)
    assert read_metrics(path) == [{"iteration": 1, "a": 1}]
    assert read_metrics(tmp_path / "absent.json") == []


class WithAverage(Trainer):
    """Evaluates, keeps checkpoints and the best one; `seen` is what each evaluation saw."""

    def __init__(self, folder, scores=(1.0, 3.0, 2.0)):
        base = make(ema=ModelEMA(Model(), decay=0.5))
        super().__init__(base.model, base.optimizer, ema=base.ema)
        folder.mkdir(exist_ok=True)
        self.checkpointer = Checkpointer(self.model, str(folder), trainer=self)
        self.seen, self.scores = [], iter(scores)

    def evaluate(self):
        with self.averaged():
            self.seen.append({name: value.clone() for name, value in self.model.state_dict().items()})
        return {"x": {"bbox": {"AP": next(self.scores)}}}

    def go(self, start, end, period=2):
        keep = hooks.PeriodicCheckpointer(self.checkpointer, period)
        best = BestCheckpoint(self.checkpointer, "x/bbox/AP")
        return train(self, start, end, [hooks.EvalHook(period, self.evaluate), best, keep])


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


def test_checkpoints_hold_the_weights_that_were_evaluated_and_resume_those_that_are_trained(tmp_path):
    whole = WithAverage(tmp_path)
    expected = whole.go(0, 6)
    files = {name: read_checkpoint(tmp_path / f"model_{name}.pth")["model"] for name in ("0000001", "best", "final")}
    first, second, last = whole.seen
    assert same(files["0000001"], first) and same(files["best"], second) and same(files["final"], last)
    assert not torch.equal(last["linear.weight"], expected)
    resumed = WithAverage(tmp_path / "resumed")
    resumed.checkpointer.load(str(tmp_path / "model_0000003.pth"))
    assert torch.equal(resumed.go(4, 6), expected)
    assert all(torch.equal(value, resumed.ema.average[name]) for name, value in whole.ema.average.items())


@pytest.mark.parametrize("scores", [(1.0, 2.0, 3.0), (float("nan"), float("nan"), 0.0)])
def test_the_evaluation_at_the_end_may_be_the_best(tmp_path, scores):
    trainer = WithAverage(tmp_path, scores)
    trainer.go(0, 6)
    found = torch.load(tmp_path / "model_best.pth", weights_only=True)
    assert found["metric"] == scores[-1] and same(found["model"], trainer.seen[-1])
