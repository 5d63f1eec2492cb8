"""A few cases of the faults campaign, `benchmarks/faults.py`: each is equal to the bit or refused by name."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    """The undisturbed runs of the R-CNN alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        from benchmarks import fault_kinds, fault_runs

        work = tmp_path_factory.mktemp("faults")
        patch.setenv("DETECTRON2_DATASETS", str(work / "datasets"))
        patch.setattr(fault_runs, "MODELS", ("rcnn",))
        patch.setattr(fault_kinds, "MODELS", ("rcnn",))
        from polydet.engine import run

        patch.setitem(run.__wrapped__.__globals__, "save_curves", lambda *_: None)
        made = fault_runs.Campaign(work)
        made.prepare()
        yield lambda seed, kind: fault_kinds.Case(made, seed, kind, restart=False)


@pytest.mark.parametrize(
    ("seed", "kind"),
    [
        (1, "file of a killed run"),
        (2, "file of a finished run"),
        (3, "full disk"),
        (4, "dead worker"),
        (5, "second run"),
    ],
)
def test_a_fault_is_mended_or_named(campaign, seed, kind):
    case = campaign(seed, kind)
    outcome = case()
    assert outcome in ("equal", "refused"), f"{case.detail}: {outcome}"


def test_other_weights_would_be_seen(campaign):
    import torch

    case = campaign(6, "second run")
    case.folder.mkdir()
    case.start_from("whole")
    file = case.run_folder / "model_final.pth"
    state = torch.load(file, weights_only=True)
    next(iter(state["model"].values())).view(-1)[0] += 1e-6
    torch.save(state, file)
    assert case.judge(0, "").startswith("ended with other weights")
    assert case.judge(1, "Traceback ...\nRAW KeyError: 1").startswith("code 1")
