"""docs/own_data.md's first commands, run as they stand in a folder of generated photographs, at toy size."""

import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

from polydet.data.shapeworld.generate import write_part

ROOT = Path(__file__).resolve().parent.parent
TOY = ["dataloader.train.mapper.augmentations.short=64", "train.max_iter=2", "train.device=cpu", "recipe.speed=fast"]


def first_block():
    text = (ROOT / "docs" / "own_data.md").read_text()
    block = re.search(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)[1]
    return [shlex.split(line) for line in re.sub(r"\\\n\s*", " ", block).splitlines()]


def test_from_a_folder_to_a_detector(tmp_path, monkeypatch):
    write_part("coco", tmp_path / "world", {"train": 8, "val": 2})
    for name in ("ann", "images"):
        (tmp_path / name).mkdir()
    for split in ("train", "val"):
        (tmp_path / "world" / f"instances_{split}.json").rename(tmp_path / "ann" / f"{split}.json")
        for image in (tmp_path / "world" / split).iterdir():
            shutil.move(image, tmp_path / "images" / image.name)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    commands = first_block()
    assert [words[1] for words in commands] == ["tools/add_dataset.py"] * 2 + ["tools/lazyconfig_train_net.py"]
    for _, script, *arguments in commands:
        monkeypatch.setattr(sys, "argv", [script, *arguments, *(TOY if "lazyconfig" in script else [])])
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except SystemExit as error:
            assert not error.code, f"{script}: {error.code}"
    run = tmp_path / "output" / "finetune" / "scaledet"
    assert (run / "results.json").is_file() and (run / "predictions.png").is_file()
    assert "recipe: my_train at speed=fast: 8 images" in (run / "log.txt").read_text()
