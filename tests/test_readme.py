"""The commands of README.md and docs: what trains is run at toy size, the others are parsed by their programs."""

import argparse
import importlib.util
import re
import runpy
import shlex
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from torch.distributed.run import get_args_parser

from polydet.data.shapeworld.generate import VERSION, write_part
from polydet.engine import load_config

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PROGRAMS = ("uv", "pip", "python", "torchrun", "mkdocs", "pytest")


def toy_overrides():
    """Those of tests/engine, which run the quickstart in full; here two steps are enough."""
    spec = importlib.util.spec_from_file_location("engine_conftest", ROOT / "tests" / "engine" / "conftest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return [*module.TINY, "dataloader.train.num_workers=0", "train.max_iter=2", "train.checkpoint_period=100"]


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(path):
    """Shell commands of a page, as lists of words: of fenced blocks and of indented lines that call a known program."""
    text = path.read_text()
    shell = "\n".join([*blocks(text, "bash"), *blocks(text, "shell"), *indented(text)])
    for line in re.sub(r"\\\n\s*", " ", shell).splitlines():
        for part in line.split(" && "):
            words = shlex.split(part, comments=True)
            while words and re.fullmatch(r"[A-Z_0-9]+=\S*", words[0]):
                words.pop(0)  # environment
            if words and words[0] != "export" and "CONFIG" not in words:  # a synopsis
                yield words


def indented(text):
    outside = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    joined = re.sub(r"\\\n\s*", " ", outside)
    return [line.strip() for line in joined.splitlines() if re.match(rf"    ({'|'.join(PROGRAMS)}) ", line)]


def plain(words):
    """Without `uv run` and its options."""
    return words[2:] if words[:2] == ["uv", "run"] else words


class Parsed(Exception):
    """The arguments that a program understood."""


def parse(monkeypatch, words):
    """What the program's own parser makes of a command; the program does nothing else."""

    def stop_after(original):
        def parse_args(self, args=None, namespace=None):
            raise Parsed(original(self, args, namespace))

        return parse_args

    script = words[0]
    for method in ("parse_args", "parse_intermixed_args"):
        monkeypatch.setattr(argparse.ArgumentParser, method, stop_after(getattr(argparse.ArgumentParser, method)))
    monkeypatch.setattr(sys, "argv", words)
    try:
        if script == "-m":
            monkeypatch.setattr(sys, "argv", words[1:])
            runpy.run_module(words[1], run_name="__main__", alter_sys=False)
        else:
            monkeypatch.syspath_prepend(str((ROOT / script).parent))
            runpy.run_path(str(ROOT / script), run_name="__main__")
    except Parsed as parsed:
        return parsed.args[0]
    except SystemExit as error:
        pytest.fail(f"{' '.join(words)} is refused: {error}")
    return None  # a program without arguments: it has run


def check(monkeypatch, words):
    """A command can be typed: its program and options exist, its config and overrides are known."""
    words = plain(words)
    program, rest = words[0], words[1:]
    if program == "torchrun":
        options = get_args_parser().parse_args(rest)
        program, rest = "python", [options.training_script, *options.training_script_args]
    if program in ("pip", "uv"):
        return check_install(rest)
    if program == "pytest":
        assert importlib.util.find_spec("xdist"), "-n needs pytest-xdist"
        return None
    assert program == "python", words
    if rest[0] == "-m" and not (ROOT / rest[1].split(".")[0]).exists():
        assert importlib.util.find_spec(rest[1].split(".")[0]), f"no module {rest[1]}"
        return None
    arguments = parse(monkeypatch, rest)
    if arguments is not None and "config_file" in arguments:
        load_config(ROOT / arguments.config_file, getattr(arguments, "overrides", []))
    return arguments


def check_install(rest):
    """Extras of this package exist."""
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = known["project"].get("optional-dependencies", {})
    for word in rest:
        for extra in re.findall(r"^(?:\.|polydet)\[([\w,-]+)\]$", word):
            assert set(extra.split(",")) <= set(extras), f"no extra {extra}; there are {sorted(extras)}"
    return rest


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A place that looks like the repository, where runs leave their output; a small ShapeWorld."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("configs", "tools", "examples"):
        (folder / name).symlink_to(ROOT / name)
    for part in ("coco", "lvis"):
        world = folder / "datasets" / "shapeworld" / VERSION / part
        world.mkdir(parents=True)
        write_part(part, world, {"train": 8, "val": 2})
    (folder / "datasets" / "cards").mkdir()
    for split in ("train", "val"):  # what docs call their reader's own data
        world = f"shapeworld/{VERSION}/coco"
        card = f"json_file: {world}/instances_{split}.json\nimage_root: {world}/{split}\n"
        (folder / "datasets" / "cards" / f"my_{split}.yaml").write_text(card)
    patch = pytest.MonkeyPatch()
    patch.chdir(folder)
    patch.setenv("DETECTRON2_DATASETS", str(folder / "datasets"))
    patch.setenv("POLYDET_CACHE", str(folder / "cache"))
    yield folder
    patch.undo()


def quickstarts():
    return [words for words in map(plain, commands(ROOT / "README.md")) if "configs/quickstart/scaledet.py" in words]


def type_in(monkeypatch, words, *overrides):
    """Run `python script arguments` in this process, with further overrides."""
    monkeypatch.setattr(sys, "argv", [*words[1:], *toy_overrides(), *overrides])
    runpy.run_path(words[1], run_name="__main__")


def test_the_first_command_trains_and_the_app_uses_its_run(folder, monkeypatch):
    first = quickstarts()[0]
    assert first == ["python", "tools/lazyconfig_train_net.py", "--config-file", "configs/quickstart/scaledet.py"]
    type_in(monkeypatch, first)
    output = folder / "output" / "quickstart_scaledet"
    assert (output / "results.json").is_file() and (output / "model_final.pth").is_file()
    (app,) = blocks((ROOT / "README.md").read_text(), "python")
    names = {"bgr_image": np.zeros((60, 80, 3), np.uint8)}
    exec(compile(app, "README.md", "exec"), names)
    assert names["instances"].image_size == (60, 80)
    assert len(names["predictor"].model.vocabulary) == 1  # the block ends with one other word


def test_overrides_and_resume_as_they_are_written(folder, monkeypatch):
    changed, resume = quickstarts()[1:]
    assert "--resume" in resume and any(word.startswith("train.output_dir=") for word in changed)
    type_in(monkeypatch, changed, "train.max_iter=1", "dataloader.test_datasets=[]")
    mine = folder / "output" / "mine"
    assert "optimizer.lr = 0.0005" in (mine / "config_resolved.txt").read_text()
    end = [f"train.output_dir={mine}", "train.max_iter=2", "dataloader.test_datasets=[]"]
    (mine / "DONE").unlink()
    type_in(monkeypatch, resume, *end)
    assert "training from iteration 1 to 2" in (mine / "log.txt").read_text()


def test_the_doctor_of_the_readme_finds_everything(capsys, monkeypatch):
    assert "`uv run python tools/doctor.py`" in (ROOT / "README.md").read_text()
    monkeypatch.setattr(sys, "argv", ["tools/doctor.py"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "tools" / "doctor.py"), run_name="__main__")
    assert end.value.code == 0 and "ready" in capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_of_a_page_can_be_typed(page, folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # nothing is left in the repository; `folder` has the reader's own cards
    for words in commands(page):
        with monkeypatch.context() as patch:
            check(patch, words)


def test_there_are_commands_and_wrong_ones_are_refused(monkeypatch):
    assert len(list(commands(ROOT / "README.md"))) >= 7
    assert sum(len(list(commands(page))) for page in PAGES) >= 40
    wrong = [
        "python tools/lazyconfig_train_net.py --config-file configs/quickstart/scaledet.py train.max_itr=3",
        "python tools/lazyconfig_train_net.py --config-fil configs/absent.py",
        "python tools/absent.py",
        "pip install '.[absent]'",
    ]
    for line in wrong:
        with monkeypatch.context() as patch, pytest.raises((Exception, pytest.fail.Exception)):
            check(patch, shlex.split(line))
