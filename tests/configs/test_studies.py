"""Every run of every study under benchmarks/shapeworld builds, so that none fails hours after the study began."""

import argparse
import sys
from pathlib import Path

import pytest
from ledger_row import build

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def studies(anywhere):
    """The studies, without the stages that train a backbone first."""
    patch = pytest.MonkeyPatch()
    patch.setattr(sys, "path", [str(ROOT), *sys.path])
    from benchmarks.shapeworld import aligndet, codetr, detclipv2, detr, metr, stages

    patch.setattr(stages, "instantiate", lambda node: None)
    yield argparse.Namespace(aligndet=aligndet, codetr=codetr, detclipv2=detclipv2, detr=detr, metr=metr)
    patch.undo()


def arguments(work, **more):
    return argparse.Namespace(**{"work": work, "seeds": [0], "seed": 0, "steps": 7, "tune_steps": 5} | more)


def runs_of(studies, work):
    """(name, how its config is made, steps) of every run of seed 0."""
    args = arguments(work, lambda_2=2.0)
    for member in studies.detr.MEMBERS:
        for arm in studies.detr.ARMS:
            steps = 1 if arm == "untrained" else 7
            yield f"detr {member} {arm}", lambda m=member, a=arm: studies.detr.config(args, m, a), steps
    for arm in studies.codetr.ARMS:
        yield f"codetr {arm}", lambda a=arm: studies.codetr.config(args, a, 0), 7
    for arm in studies.detclipv2.ARMS:
        steps = 5 if arm == "none" else 7  # 3 of 10 batches are captions, which `none` leaves out
        yield f"detclipv2 {arm}", lambda a=arm: studies.detclipv2.config_of(a, args, 0), steps
    for arm, make in studies.metr.arms(args, 0).items():
        steps = {"joint": 14, "no_cem": 14, "coco": 7, "lvis": 7}.get(arm, 5)
        yield f"metr {arm}", make, steps
    args = arguments(work, detectors=list(studies.aligndet.ROWS), percents=[10, 100], pretrain_steps=3, detr_factor=2)
    for name, (_, make) in studies.aligndet.jobs(args).items():
        steps = (3 if name.startswith("pretrain") else 5) * (2 if "detr" in name else 1)
        yield f"aligndet {name}", make, steps


def test_every_run_of_every_study_builds(studies, tmp_path):
    broken, seen = {}, set()
    for name, make, steps in runs_of(studies, tmp_path):
        try:
            cfg = make()
            assert cfg.train.max_iter == steps, f"{cfg.train.max_iter} steps, not {steps}"
            build(cfg)
        except Exception as error:
            broken[name] = f"{type(error).__name__}: {error}"
        seen.add(name.split()[0])
    assert not broken, "\n".join(f"{name}: {why[:300]}" for name, why in broken.items())
    assert seen == {path.stem for path in (ROOT / "benchmarks" / "shapeworld").glob("*.py")} - {"report", "stages"}
