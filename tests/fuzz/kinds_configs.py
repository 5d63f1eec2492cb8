"""Cards, overrides and configs."""

import re
from dataclasses import fields

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from polydet.data import DatasetError
from polydet.data.card import DatasetCard
from polydet.data.card_files import load_card_file
from polydet.engine.config import ConfigError, apply_overrides, flatten, load_config
from polydet.engine.settings import conform
from tests.fuzz.campaign import Wrong, kind
from tests.fuzz.kinds_tables import Text
from tests.fuzz.mutate import WORDS, change_bytes, change_words

CARD = """name: mine
json_file: train.json
image_root: images
classes: [cat, dog, 'traffic light']
category_ids: [1, 2, 7]
templates: a photo of a {}
spelling: {kat: cat}
label_policy: exhaustive
evaluator: coco
images: 12
max_dets: 300
options: {trust_ids: true}
"""


@kind("card")
class Card(Text):
    """A card in yaml."""

    errors = DatasetError
    file, text = "mine.yaml", CARD

    def __init__(self, folder):
        pass

    def read(self, folder):
        return load_card_file(folder / self.file)

    def check(self, files, card):
        content = yaml.safe_load(files[self.file].decode())
        if set(content) - {field.name for field in fields(DatasetCard)}:
            raise Wrong("an unknown key")
        for key, value in content.items():
            found = getattr(card, key)
            if key != "templates" and (list(found) if isinstance(found, tuple) else found) != value:
                raise Wrong(f"{key} is {found!r}, not {value!r}")


CONFIG = """model:
  _target_: torch.nn.Linear
  in_features: 4
  out_features: ${.in_features}
  bias: true
optimizer:
  _target_: polydet.engine.optim.param_groups
  lr: 0.001
  weight_decay: 0.05
  lr_factors: {backbone: 0.1}
dataloader:
  train: {_target_: polydet.data.build_train_loader, datasets: [a, b], total_batch_size: 4, num_workers: 0}
  test_datasets: [a_val]
  evaluators: {a_val: {max_dets: 300}}
lr_multiplier: {_target_: polydet.engine.optim.lr_schedule, warmup_iters: 10}
train:
  output_dir: out
  seed: 3
  max_iter: 100
  amp: {dtype: float32}
  clip_grad: {kind: norm, value: 0.5}
  init: {skip: [head], min_coverage: 0.5}
  checkpoint_period: 20
"""


@kind("config")
class Config(Text):
    """A run's config.yaml."""

    errors, share = ConfigError, 0.4
    file, text = "config.yaml", CONFIG
    named = ("config.yaml", *(f"{key}." for key in ("model", "train", "dataloader", "optimizer", "lr_multiplier")),
             "unknown config key", "the config")  # fmt: skip

    def __init__(self, folder):
        pass

    def read(self, folder):
        return load_config(folder / self.file)

    def check(self, files, cfg):
        content = OmegaConf.create(yaml.safe_load(files[self.file].decode()), flags={"allow_objects": True})
        found = flatten(cfg)
        for key, value in flatten(content).items():
            if key.split(".")[0] in ("model", "train", "dataloader", "optimizer", "lr_multiplier"):
                same = key in found and (found[key] == value or str(found[key]) == str(value))
                empty = value is None or value in ({}, [])
                if not (same or empty):
                    raise Wrong(f"{key} is {found.get(key)!r}, not {value!r}")


OVERRIDES = [
    "train.max_iter=50", "train.checkpoint_period=10", "optimizer.lr=0.5", "train.amp.dtype=bfloat16",
    "+model.device=cpu",
    "dataloader.train.datasets=[c,d]", "train.clip_grad={kind: value, value: 1.0}", "~train.seed", "model.bias=false",
    "optimizer.lr_factors={a.b: 0.1}", "dataloader.evaluators.a_val.max_dets=100", "train.init.skip=[x,'y z']",
    "dataloader.test_datasets=[]", "train.output_dir=/tmp/x", "dataloader.evaluators={b: [coco, multilabel]}",
    "train.hooks=[]", "dataloader.train.datasets.0=z",
    "model={_target_: torch.nn.Linear, in_features: 2, out_features: 1}",
]  # fmt: skip


ODD = ["1,2", "[1", "{a", "${train.seed}", "???", "true", "3", "1.5", "x y", "[a]"]


@kind("override")
class Override:
    """Strict overrides of the command line."""

    errors, share = ConfigError, 0.6
    named = ("",)  # the command line has no file: every message is looked at for what was typed

    def __init__(self, folder):
        (folder / "base.yaml").write_text(CONFIG)
        self.base = load_config(folder / "base.yaml")

    def seed(self):
        return {"override.txt": OVERRIDES[0].encode()}

    def case(self, rng):
        text = rng.choice(OVERRIDES)
        kind_ = rng.random()
        if kind_ < 0.3:
            key = text.lstrip("+~").split("=")[0]
            text = f"{key}={rng.choice([*WORDS, *ODD])}"
        elif kind_ < 0.7:
            text = change_words(text, rng)
        else:
            text = change_bytes(text.encode(), rng).decode("utf-8", "replace")
        return {"override.txt": text.encode()}

    def read(self, folder):
        text = (folder / "override.txt").read_bytes().decode()
        cfg = self.base.copy()
        try:
            if len(text) % 4 == 0:
                return load_config(folder / "base.yaml", [text])  # before the settings have types
            apply_overrides(cfg, [text])
            conform(cfg)
        except ConfigError as error:
            words = [word for word in re.split(r"[^\w]+", text) if word]
            if not any(word in str(error) for word in words or [repr(text)]):
                raise Wrong(f"{text!r} refused without naming it: {error}") from error
            raise
        return cfg

    def check(self, files, cfg):
        text = files["override.txt"].decode()
        (override,) = OverridesParser.create().parse_overrides([text])
        key = override.key_or_group
        before, after = flatten(self.base), flatten(cfg)
        for other, value in before.items():
            kept = other.startswith((key.split(".")[0], "source")) or after.get(other) == value
            if not kept:
                raise Wrong(f"{other} changed too")
        if override.is_delete():
            return
        value, found = override.value(), OmegaConf.select(cfg, key, throw_on_resolution_failure=False)
        plain = isinstance(value, int | float | str | bool) and "${" not in str(value) and value != "???"
        if plain and value is not found and str(found) != str(value) and found != value:
            raise Wrong(f"{key} is {found!r}, not {value!r}")
