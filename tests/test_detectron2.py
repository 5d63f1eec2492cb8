"""Which Detectron2 is in use, and that what the house asks of it is there."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import detectron2
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


def is_pure_wheel() -> bool:
    try:
        return importlib.metadata.version("pb1-detectron2") == "0.6"
    except importlib.metadata.PackageNotFoundError:
        return False


def test_doctor_says_which_detectron2_is_in_use():
    output = subprocess.run([sys.executable, ROOT / "tools" / "doctor.py"], capture_output=True, text=True, check=True)
    line = next(row for row in output.stdout.splitlines() if row.startswith("detectron2"))
    assert str(Path(detectron2.__file__).parent) in line
    assert ("pb1-detectron2 0.6" in line) == is_pure_wheel()
    assert output.stdout.rstrip().endswith("ready")


def test_schedulers_of_torch_are_resumed_by_detectron2s_hook():
    """Detectron2 0.6 as published forgets the state of torch's own schedulers; the wheel and main do not."""
    from detectron2.engine import hooks

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    hook = hooks.LRScheduler(optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 10))
    assert hook.state_dict()


def test_models_that_the_house_stands_on_import_without_the_extension():
    from detectron2.modeling import FPN, META_ARCH_REGISTRY, GeneralizedRCNN  # noqa: F401
    from detectron2.modeling.meta_arch.fcos import FCOS  # noqa: F401
    from detectron2.modeling.meta_arch.retinanet import RetinaNet  # noqa: F401
    from detectron2.modeling.roi_heads import CascadeROIHeads  # noqa: F401


def test_the_plugin_refuses_other_sources(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "build_support" / "d2pure" / "src"))
    monkeypatch.delitem(sys.modules, "d2pure", raising=False)
    real_torch = sys.modules["torch"]
    import d2pure

    assert sys.modules["torch"] is real_torch
    (tmp_path / "detectron2").mkdir()
    file = tmp_path / "detectron2" / "a.py"
    file.write_text("x = np.float(1)\n")
    first = d2pure.digest(tmp_path, "detectron2")
    file.write_text("x = np.float(2)\n")
    assert d2pure.digest(tmp_path, "detectron2") != first
    d2pure.apply(tmp_path, {"detectron2/a.py": [(d2pure.NUMPY_ALIAS, r"\1", 1)]})
    assert file.read_text() == "x = float(2)\n"
    with pytest.raises(RuntimeError, match="matched 0 times, not 1"):
        d2pure.apply(tmp_path, {"detectron2/a.py": [(d2pure.NUMPY_ALIAS, r"\1", 1)]})
