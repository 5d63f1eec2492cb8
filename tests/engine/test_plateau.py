"""The auto-step schedule: hand-written sequences of metrics, and the hook in a real loop."""

import copy
import math

import pytest
import torch
from detectron2.engine import hooks
from detectron2.solver import LRMultiplier
from fvcore.common.checkpoint import Checkpointer
from fvcore.common.param_scheduler import LinearParamScheduler
from test_trainer import batches, make

from polydet.engine.plateau import Plateau, PlateauSchedule

UP, SAME, NAN = "up", "same", "nan"


def run(machine, sequence):
    """Feed rises and standstills; the (evaluation, event, lr) of everything but improvements and waiting."""
    value, events = 10.0, []
    for number, kind in enumerate(sequence, 1):
        value += kind == UP
        event = machine.step(math.nan if kind == NAN else value)
        if event not in ("improved", "wait"):
            events.append((number, event, machine.lr))
        if event == "stop":
            break
    return events


# t1 = 5 and t2 = 8, as in the paper, from 4e-5; every first evaluation is an improvement
SEQUENCES = {
    "rising all the way": ([UP] * 40, []),
    "plateau from the start": ([SAME] * 6, [(6, "decay", 4e-6)]),
    "one short of a plateau": ([UP] + [SAME] * 4, []),
    "improvement at the last moment": ([UP, *[SAME] * 4, UP, *[SAME] * 4, UP], []),
    "improvement one too late": ([UP, *[SAME] * 5, UP, *[SAME] * 4], [(6, "decay", 4e-6)]),
    "the counter starts again at a decay": ([UP] + [SAME] * 10, [(6, "decay", 4e-6), (11, "decay", 4e-7)]),
    "an equal metric is no improvement": ([UP, UP] + [SAME] * 5, [(7, "decay", 4e-6)]),
    "NaN is no improvement": ([UP] + [NAN] * 5, [(6, "decay", 4e-6)]),
    "down to the minimum": (
        [UP] + [SAME] * 20,
        [(6, "decay", 4e-6), (11, "decay", 4e-7), (16, "decay", 4e-8), (21, "decay", 1e-8)],
    ),
    "stop after eight at the minimum": (
        [UP] + [SAME] * 40,
        [(6, "decay", 4e-6), (11, "decay", 4e-7), (16, "decay", 4e-8), (21, "decay", 1e-8), (29, "stop", 1e-8)],
    ),
    "improvement at the minimum starts the eight again": (
        [UP, *[SAME] * 27, UP, *[SAME] * 8],
        [(6, "decay", 4e-6), (11, "decay", 4e-7), (16, "decay", 4e-8), (21, "decay", 1e-8), (37, "stop", 1e-8)],
    ),
    "five bad ones at the minimum do not decay": ([UP, *[SAME] * 20, *[SAME] * 7], None),
}


@pytest.mark.parametrize("name", SEQUENCES)
def test_state_machine(name):
    sequence, expected = SEQUENCES[name]
    machine = Plateau(4e-5)
    events = run(machine, sequence)
    if expected is None:
        assert [e for _, e, _ in events] == ["decay"] * 4 and machine.at_min and machine.bad == 7
    else:
        assert [(n, e, pytest.approx(lr)) for n, e, lr in expected] == events


def test_a_start_at_the_minimum_never_decays():
    assert run(Plateau(1e-8), [UP] + [SAME] * 20) == [(9, "stop", 1e-8)]


def test_an_exact_minimum_is_the_minimum():
    machine = Plateau(1e-6, patience=1, stop_patience=1, min_lr=1e-7)
    assert [machine.step(m) for m in (1, 1, 1)] == ["improved", "decay", "stop"]
    assert machine.lr == 1e-7


@pytest.mark.parametrize("settings", [{"factor": 1.0}, {"factor": 0.0}, {"patience": 0}, {"stop_patience": 0}])
def test_settings_that_never_end(settings):
    with pytest.raises(ValueError, match=r"must be in 0\.\.1"):
        Plateau(1e-3, **settings)


def _trainer(metrics, tmp_path, period=2, end=100, start=0, state=None, first=("eval", "schedule"), **settings):
    """A loop that evaluates every `period` steps; `metrics` is what the evaluations find.

    Returns (trainer, rates of each step, the schedule, what a checkpoint of each step holds).
    """
    trainer = make()
    head = torch.nn.Parameter(torch.zeros(1))
    trainer.model.register_parameter("head", head)
    trainer.optimizer.add_param_group({"params": [head], "lr": 0.001})
    for group in trainer.optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    rates, states, found = [], {}, iter(metrics)

    class Record(hooks.HookBase):
        def before_step(self):
            rates.append([group["lr"] for group in self.trainer.optimizer.param_groups])

        def after_step(self):
            states[self.trainer.iter] = copy.deepcopy(self.trainer.state_dict())

    if state is not None:
        trainer.load_state_dict(state)
    scheduler = LRMultiplier(trainer.optimizer, LinearParamScheduler(1.0, 1.0), end, last_iter=start - 1)
    checkpointer = Checkpointer(trainer.model, str(tmp_path))
    schedule = PlateauSchedule("toy/bbox/AP", min_lr=0.0005, **settings)
    evaluation = hooks.EvalHook(period, lambda: {"toy": {"bbox": {"AP": next(found, 0.0)}}})
    pair = {"eval": evaluation, "schedule": schedule}
    middle = [pair[name] for name in first]
    trainer.register_hooks(
        [hooks.LRScheduler(scheduler=scheduler), *middle, hooks.PeriodicCheckpointer(checkpointer, 1000), Record()]
    )
    trainer.set_loader(batches(start))
    trainer.train(start, end)
    return trainer, rates, schedule, states


def test_the_hook_decays_all_groups_and_ends_the_run(tmp_path):
    trainer, rates, schedule, _ = _trainer([5, 6, 1, 2], tmp_path, patience=2, stop_patience=3)
    # evaluations after steps 1, 3, 5, ...; decays at 2 bad ones, clamped at 5e-4
    image = [round(r[0], 8) for r in rates]
    changes = [i for i in range(1, len(image)) if image[i] != image[i - 1]]
    assert changes == [8, 12, 16] and sorted(set(image)) == [0.0005, 0.001, 0.01, 0.1]
    assert all(text == pytest.approx(rate / 100) for rate, text in rates)
    assert trainer.iter == trainer.max_iter == 22 and schedule.plateau.best == 6
    assert (tmp_path / "model_final.pth").is_file()


def test_a_run_that_had_ended_is_not_trained_on(tmp_path):
    """It was killed in the evaluation after its last step, with the final checkpoint written."""
    settings = {"patience": 2, "stop_patience": 3}
    whole, *_, states = _trainer([5, 6, 1, 2], tmp_path, **settings)
    last = whole.iter - 1
    resumed, rates, schedule, _ = _trainer([], tmp_path, start=last + 1, state=states[last], **settings)
    assert rates == [] and resumed.iter == resumed.max_iter == last + 1
    assert schedule.plateau.ended


def test_evaluations_of_the_warmup_are_not_bad_ones(tmp_path):
    _, rates, schedule, _ = _trainer([5, 1, 1, 1, 1, 1], tmp_path, patience=2, end=12, warmup_iters=6)
    assert [r[0] for r in rates] == [pytest.approx(0.1)] * 10 + [pytest.approx(0.01)] * 2
    assert schedule.plateau.best == 5


@pytest.mark.parametrize("step", [3, 4, 5])  # 3 and 5 are evaluation steps, 5 is that of the decay
def test_a_run_resumed_at_any_step_goes_on_with_its_rate_and_counter(tmp_path, step):
    metrics = [5, 1, 1, 1, 6, 1]
    _, whole, _, states = _trainer(metrics, tmp_path, patience=2, end=12)
    seen = sum(i <= step for i in (1, 3, 5))
    assert states[step]["hooks"]["PlateauSchedule"]["seen"] == 2 * seen - 1
    _, rest, schedule, _ = _trainer(metrics[seen:], tmp_path, patience=2, start=step + 1, end=12, state=states[step])
    assert rest == [pytest.approx(r) for r in whole[step + 1 :]]
    assert schedule.plateau.best == 6


def test_an_order_that_would_lose_an_evaluation_is_refused(tmp_path):
    with pytest.raises(ValueError, match="after EvalHook"):
        _trainer([5], tmp_path, first=("schedule", "eval"))
