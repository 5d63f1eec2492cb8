"""Predictor, pictures, the dictionary tool and the ODinW runner, on a few generated images."""

import importlib.util
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from detclipv2_parts import Letters, TrainedLetters, make_model
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from detclipv2.definitions import read_concepts
from detclipv2.dictionary import build_dictionary
from detclipv2.phrases import NounPhrases
from detclipv2.pictures import draw_word_regions, save_pictures
from detclipv2.predictor import WordPredictor
from polydet.data import DatasetCard, DatasetError, card, register_card
from polydet.data.shapeworld import generate
from polydet.engine import ConfigError, load_config, save_config, trust
from polydet.engine.build import eval_period
from polydet.engine.published import skip_published_weights
from polydet.model_zoo.zoo import config_path
from polydet.text import Vocabulary


def tool(name):
    """A script of `tools/` as a module."""
    path = Path(__file__).parents[2] / "tools" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"polydet_tool_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build_concepts, odinw = tool("build_concepts"), tool("odinw")


@pytest.fixture(autouse=True)
def letters_may_be_called(monkeypatch):
    monkeypatch.setattr(trust, "_allowed", {"detclipv2_parts.Letters"})


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    patch = pytest.MonkeyPatch()
    patch.setenv("DETECTRON2_DATASETS", str(root))
    patch.setattr(generate, "PARTS", {p: (w, dict.fromkeys(c, 12)) for p, (w, c) in generate.PARTS.items()})
    before = set(card._CARDS)
    folder = generate.ensure_part("coco")
    for name in ("Toy", "Other"):
        for split, part in (("train", "train"), ("val", "val"), ("test", "val")):
            register_card(
                DatasetCard(
                    name=f"odinw_{name}_{split}",
                    json_file=str(folder / f"instances_{part}.json"),
                    image_root=str(folder / part),
                    classes=card.find_card("shapes_coco_train").classes,
                )
            )
    yield root
    for name in set(card._CARDS) - before:
        del card._CARDS[name]
        DatasetCatalog.remove(name)
        if name in MetadataCatalog.list():
            MetadataCatalog.remove(name)
    patch.undo()


def small_config(path, **odinw_key):
    """The quickstart with a tiny model, as a file."""
    cfg = load_config(config_path("common/detclipv2_quickstart"))
    cfg.model.backbone.bottom_up.update(name="resnet10t")
    cfg.model.backbone.out_channels = 32
    cfg.model.head.update(dim=12, num_convs=1)
    cfg.model.text_tower.encoder = {"_target_": "detclipv2_parts.Letters"}
    cfg.optimizer.lr = 2e-4
    source = cfg.dataloader.train.sources.detection
    source.update(num_workers=0, batches_per_epoch=None, total_batch_size=4, datasets=["odinw_${odinw.set}_train"])
    cfg.dataloader.train.sources = {"detection": source}
    cfg.dataloader.train.update(total_batch_size=4, datasets=["odinw_${odinw.set}_train"])
    cfg.dataloader.test_datasets = ["odinw_${odinw.set}_val"]
    cfg.dataloader.test.num_workers = 0
    cfg.lr_multiplier.update(kind="constant", warmup_iters=500)
    schedule = {"_target_": "polydet.engine.plateau.PlateauSchedule", "metric": "${train.best_metric}", **odinw_key}
    cfg.train.update(max_epochs=3, max_iter=0, pictures=0, best_metric="odinw_${odinw.set}_val/bbox/AP")
    cfg.train["hooks"] = [schedule]
    cfg.train.output_dir = str(path.parent / "out")
    cfg["odinw"] = {"set": "Toy"}
    save_config(cfg, path)
    return path


def test_the_runner_trains_selects_tests_and_reports(world, tmp_path, capsys):
    path = small_config(tmp_path / "toy.yaml")
    arguments = ["--config-file", str(path), "--sets", "Toy", "Other", "train.log_period=1"]
    odinw.main(odinw.parse_args(arguments))
    out = tmp_path / "out"
    for name in ("Toy", "Other"):
        folder = out / name
        assert (folder / "model_best.pth").is_file() and (folder / "DONE").is_file()
        assert "AP" in json.loads((folder / "test" / "results.json").read_text())[f"odinw_{name}_test"]["bbox"]
        lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
        key = f"odinw_{name}_val/bbox/AP"
        assert sum(key in line for line in lines) == 3  # once an epoch of three steps
    report = json.loads((out / "report.json").read_text())
    assert set(report["results"]) == {"odinw_Toy_test", "odinw_Other_test"} and math.isfinite(
        report["summary"]["mAP_D"]
    )
    assert "mean AP over 2 sets" in capsys.readouterr().out
    stamp = (out / "Toy" / "model_final.pth").stat().st_mtime_ns
    odinw.main(odinw.parse_args(arguments))  # finished sets are left alone
    assert (out / "Toy" / "model_final.pth").stat().st_mtime_ns == stamp


def test_a_set_with_one_step_an_epoch(world, tmp_path):
    path = small_config(tmp_path / "toy.yaml")
    overrides = ["dataloader.train.total_batch_size=32", "train.max_epochs=250"]
    cfg = odinw.config_of(odinw.parse_args(["--config-file", str(path), *overrides]), "Toy")
    assert (cfg.train.eval_period, eval_period(cfg.train, 12 / 32)) == (0, 1)
    assert cfg.lr_multiplier.warmup_iters == math.ceil(250 * 12 / 32 / 10)
    assert list(cfg.dataloader.train.sources.detection.datasets) == ["odinw_Toy_train"]


def test_other_papers_configs_are_taken(world):
    args = odinw.parse_args(["--config-file", str(config_path("scaledet/table7_scaledet_r50_odinw13_ft")), "--direct"])
    assert odinw.config_of(args, "Packages").train.output_dir.endswith("r50_odinw13_ft/Packages")


def test_configs_without_a_set_and_missing_data_stop_at_once(world, tmp_path):
    args = odinw.parse_args(["--config-file", str(config_path("common/detclipv2_quickstart"))])
    with pytest.raises(ConfigError, match=r"no key odinw\.set"):
        odinw.config_of(args, "Toy")
    args = odinw.parse_args(["--config-file", str(small_config(tmp_path / "toy.yaml")), "--sets", "Packages"])
    with pytest.raises(DatasetError, match="odinw_Packages_train"):
        odinw.main(args)


def test_overrides_after_sets():
    args = odinw.parse_args(["--config-file", "x", "--sets", "Packages", "a.b=1"])
    assert args.sets == ["Packages"] and args.overrides == ["a.b=1"]
    assert len(odinw.parse_args(["--config-file", "x", "a.b=1"]).sets) == 13


def test_dictionary_of_cards(world, tmp_path, capsys):
    output = tmp_path / "concepts.tsv"
    arguments = ["--detection", "shapes_coco_train", "--grounding", "shapes_phrases_train"]
    arguments += ["--captions", "shapes_captions_train", "--min-count", "0", "--parser", "light", "--no-definitions"]
    build_concepts.main(build_concepts.parse_args([*arguments, "--output", str(output)]))
    rows = read_concepts(output)
    names = [name for name, _, _ in rows]
    assert names[:8] == ["circle", "ring", "square", "rectangle", "triangle", "star", "hexagon", "oval"]
    assert len(set(names)) == len(names) > 20 and any(name.split()[-1] in ("heart", "cross") for name in names)
    counts = [count for _, count, _ in rows[8:]]
    assert counts == sorted(counts, reverse=True) and f"{len(rows)} concepts" in capsys.readouterr().out


def test_dictionary_keeps_defined_and_frequent_phrases(world):
    known = {"heart": "a shape"}.get
    rows = build_dictionary(["shapes_coco_train"], [], ["shapes_captions_train"], 0, NounPhrases("light"), known)
    assert [row for row in rows if row[2]] == [("heart", rows[8][1], "a shape")] and len(rows) == 9
    assert len(build_dictionary(captions=["shapes_captions_train"], min_count=10**6)) == 0


def _pictures():
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (50 + 20 * i, 80, 3), dtype=np.uint8) for i in range(3)]


def test_predictor_batches_and_encodes_words_once(tmp_path):
    tower = TrainedLetters()
    model = make_model(tower, vocabulary=["cat"])
    with torch.no_grad():
        model.head.words.bias.fill_(0.0)
    predictor = WordPredictor(model.train(), short=64, batch_size=2)
    images = _pictures()
    found = predictor(images, ["dog", "bird"])
    assert [f.image_size for f in found] == [(50, 80), (70, 80), (90, 80)] and all(len(f) for f in found)
    assert len(tower.encoder.texts) == 2 and model.vocabulary == ("cat",) and not model.training
    Image.fromarray(images[0]).save(tmp_path / "x.png")
    again = predictor([tmp_path / "x.png"], ["dog", "bird"])
    assert len(tower.encoder.texts) == 2
    torch.testing.assert_close(again[0].scores, found[0].scores, atol=1e-3, rtol=1e-3)
    strict = WordPredictor(model, short=0, min_score=0.99)(images[:1], ["dog"])
    assert len(strict[0]) == 0


def test_predictor_gives_a_vocabulary_of_embeddings_back(tmp_path):
    model = make_model()
    given = Vocabulary.build(["cat"], Letters(), "photo", cache_dir=tmp_path)
    model.set_vocabulary(given)
    WordPredictor(model, short=0)(_pictures()[:1], ["dog"])
    assert model.vocabulary == ("cat",) and torch.equal(model.vocabulary_rows(), given.embeddings)


def test_predictor_without_words_or_file():
    predictor = WordPredictor(make_model(vocabulary=["cat"]))
    with pytest.raises(ValueError, match="at least one name"):
        predictor(_pictures(), [])
    with pytest.raises(DatasetError, match="nowhere.jpg"):
        predictor(["nowhere.jpg"], ["dog"])
    assert predictor.model.vocabulary == ("cat",)


def test_word_region_pictures(tmp_path):
    model = make_model()
    picture, drawn = draw_word_regions(model, _pictures()[0], "a cat on a mat", NounPhrases("light"), short=0)
    assert drawn == ["cat", "mat"] and picture.shape[2] == 3 and min(picture.shape[:2]) >= 300
    _, drawn = draw_word_regions(model, _pictures()[0], "over there", NounPhrases("light"), short=0)
    assert drawn == ["over there"]
    _, drawn = draw_word_regions(model, _pictures()[0], "a cat", NounPhrases("light"), short=0, min_score=1.0)
    assert drawn == []
    save_pictures([("a cat on a mat", picture)] * 5, tmp_path / "out" / "words.png", columns=3)
    assert Image.open(tmp_path / "out" / "words.png").size[0] > 500


def test_a_whole_checkpoint_needs_no_published_weights_of_parts():
    cfg = load_config(config_path("detclipv2_swint"))
    skip_published_weights(cfg.model)
    assert cfg.model.text_tower.pretrained is None and cfg.model.backbone.bottom_up.weights is None


def test_letters_are_unit_rows():
    torch.testing.assert_close(Letters().encode(["ab", "c"]).norm(dim=1), torch.ones(2))
