"""Names -> configs -> models.  A name is a config of ``configs/`` (without ``.py``), a file (a config, or a model file
that holds its weights as well), or a run's folder."""

import difflib
import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode, instantiate
from detectron2.config import get_cfg as detectron2_cfg
from detectron2.data import MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY
from omegaconf import DictConfig
from torch import nn

from polydet.data import DatasetError
from polydet.data.card import is_known, stand_in_cards
from polydet.engine.config import ConfigError, load_config
from polydet.engine.labels import (
    cards_of,
    closed_names,
    is_open_vocabulary,
    label_space,
    names_by_name,
    test_size,
    trained_words,
)
from polydet.engine.lazy import config_root
from polydet.engine.loading import load_file
from polydet.engine.portable import NAME as MODEL_FILE
from polydet.engine.portable import refuse_differences, save_model_file
from polydet.engine.published import skip_published_weights
from polydet.engine.thresholds import (
    Thresholds,
    apply_operating_points,
    apply_thresholds,
    current_names,
    thresholds_in,
)
from polydet.engine.weights import weights_in
from polydet.model_file import is_model_file, read_header
from polydet.model_zoo.hub import fetch, is_hub_name
from polydet.weight_files import CheckpointError, read_checkpoint

logger = logging.getLogger(__name__)


def list_configs() -> list[str]:
    """Names of all configs that a run can take, sorted; the parts in ``common/`` are left out."""
    root = config_root()
    names = (path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.py"))
    return sorted(name for name in names if "common" not in name.split("/")[:-1])


def config_path(name: str | Path) -> Path:
    """The config file that ``name`` means: a zoo name, a file, the folder of a run, or ``hf://owner/name``.

    Of a run that has ended that is its model file, which needs neither its cards nor its text encoder.

    Raises:
        ConfigError: nothing of that name, with near names.
    """
    if is_hub_name(name):
        return fetch(str(name))
    path = Path(name)
    for own in (MODEL_FILE, "config.yaml"):
        if (path / own).is_file():
            return path / own
    if path.is_file():
        return path
    zoo = config_root() / f"{str(name).removesuffix('.py')}.py"
    if zoo.is_file():
        return zoo
    near = [file.parent.as_posix() for file in sorted(path.glob("*/config.yaml"))]  # a run of several stages
    near = near or difflib.get_close_matches(str(name), list_configs(), n=3, cutoff=0.4)
    raise ConfigError(f"no config, file or run is named {str(name)!r}; near: {', '.join(near) or 'none'}")


def brings_weights(name: str | Path) -> bool:
    """Whether a name is a run's folder or a model file, rather than a config that needs weights beside it."""
    return Path(name).is_dir() or is_hub_name(name) or is_model_file(name)


def get_config(name: str | Path, overrides: Sequence[str] = ()) -> DictConfig:
    """The LazyConfig of ``name``; see :func:`config_path` and :func:`polydet.engine.load_config`."""
    return load_config(config_path(name), overrides)


def get_model_config(name: str | Path, overrides: Sequence[str] = (), weights: str | Path | None = None) -> DictConfig:
    """The config of one model whose weights are known: a run's folder, a model file, or a config with ``weights``.

    Raises:
        ConfigError: a config of several stages, or one without weights.
    """
    cfg = _of_one_model(get_config(name, overrides))
    if weights is None and not brings_weights(name):
        raise ConfigError(f"{name} is a config, which has no weights: name them with --weights, or name a run's folder")
    return cfg


def get(
    name: str | Path,
    weights: str | Path | None = None,
    device: str = "cpu",
    vocabulary: Sequence[str] | None = None,
    overrides: Sequence[str] = (),
    operating: bool = False,
) -> nn.Module:
    """The model of a config, in eval mode.

    Args:
        name: zoo name, config file, model file, run folder or ``hf://owner/name``.
        weights: checkpoint, or ``"best"`` for a run folder's best; None takes a run folder's final weights (of one that
            is not finished the newest), and for a config what its backbone starts from.
        device: where the model goes.
        vocabulary: words to detect, for open-vocabulary models.
        overrides: ``key=value`` on the config.
        operating: keep of each class only detections from its operating score on, where the model file holds them.

    Raises:
        polydet.engine.CheckpointError: weights that cannot be read or do not fit.
    """
    path, file = _source(name, weights)
    cfg = _config(path, file, overrides)
    model = _build(cfg, bool(file), vocabulary)
    if file:
        _load(model, file, cfg)
    model.__dict__["origin"] = cfg, read_header(path) if is_model_file(path) else {}  # for `save`
    if operating:
        apply_operating_points(model, _operating_points(path), _classes(cfg, vocabulary))
    return model.to(device).eval()


def get_cfg(
    name: str | Path,
    weights: str | Path | None = None,
    device: str = "cpu",
    vocabulary: Sequence[str] | None = None,
    overrides: Sequence[str] = (),
    operating: bool = False,
) -> CfgNode:
    """A yacs config that Detectron2's ``DefaultPredictor`` takes as it is; arguments as :func:`get`.

    Test size and channel order come from the config's test mapper; ``DATASETS.TEST`` names metadata with the classes.
    The weights are in ``POLYDET.WEIGHTS`` and loaded as :func:`get` loads them, where the model is built:
    ``MODEL.WEIGHTS`` is empty, since what it names would be unpickled, and loaded without regard to what is missing.

    Raises:
        ConfigError: an unknown name.
    """
    path, file = _source(name, weights)
    lazy = _config(path, file, overrides)
    cfg = detectron2_cfg()
    cfg.MODEL.META_ARCHITECTURE = PolydetLazyModel.__name__
    cfg.MODEL.DEVICE = device
    cfg.POLYDET = CfgNode()
    cfg.POLYDET.CONFIG_FILE = str(path)
    cfg.POLYDET.WEIGHTS = file
    cfg.POLYDET.OVERRIDES = list(overrides)
    cfg.POLYDET.VOCABULARY = list(vocabulary or [])
    cfg.POLYDET.OPERATING = operating
    own = thresholds_in(lazy.model)
    cfg.POLYDET.THRESHOLDS = list(astuple(own))
    _set_thresholds(cfg, own)
    short, longest = test_size(lazy)
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = short, longest
    cfg.INPUT.FORMAT = lazy.model.get("input_format", "RGB") or "RGB"
    cfg.DATASETS.TEST = (_metadata(_classes(lazy, vocabulary)),)
    return cfg


def save(
    model: nn.Module,
    path: str | Path,
    operating: Mapping[str, float] | None = None,
    licence: str = "",
    provenance: Mapping[str, Any] | None = None,
) -> Path:
    """Write a model of :func:`get` as one file, which :func:`get` and :func:`get_cfg` take by itself.

    Args:
        model: with the weights that it has now.
        path: of the file, ``.safetensors``.
        operating: class name -> score from which on a detection counts; None keeps those of the file it came from.
        licence: terms of the weights.
        provenance: what else is to be known of them; plain values.

    Raises:
        ConfigError: a model that :func:`get` did not build, a path of another kind, or a config a file cannot say.
    """
    origin = getattr(model, "origin", None)
    if origin is None:
        raise ConfigError("model_zoo.save takes a model of model_zoo.get: any other comes without its config")
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ConfigError(f"{path}: a model file is named FILE.safetensors")
    cfg, header = origin
    kept = {key: header.get(key) for key in ("operating", "licence", "provenance")}
    save_model_file(
        cfg,
        model,
        path,
        operating=operating or kept["operating"],
        licence=licence or kept["licence"] or "",
        provenance={**(kept["provenance"] or {}), **(provenance or {})},
    )
    return path


@META_ARCH_REGISTRY.register()
def PolydetLazyModel(cfg: CfgNode) -> nn.Module:  # Detectron2 builds a model by this name
    """The model of ``cfg.POLYDET.CONFIG_FILE`` with its weights; what ``detectron2.modeling.build_model`` calls.

    Raises:
        ConfigError: ``cfg.MODEL.WEIGHTS`` is set.
    """
    if cfg.MODEL.WEIGHTS:
        raise ConfigError(
            f"cfg.MODEL.WEIGHTS is {cfg.MODEL.WEIGHTS!r}, which Detectron2 would load past every check: give it as "
            f"model_zoo.get_cfg(..., weights={cfg.MODEL.WEIGHTS!r}), or set cfg.POLYDET.WEIGHTS"
        )
    lazy = _config(Path(cfg.POLYDET.CONFIG_FILE), cfg.POLYDET.WEIGHTS, cfg.POLYDET.OVERRIDES)
    words = cfg.POLYDET.VOCABULARY or None
    model = _build(lazy, bool(cfg.POLYDET.WEIGHTS), words)
    if cfg.POLYDET.WEIGHTS:
        _load(model, cfg.POLYDET.WEIGHTS, lazy)
    apply_thresholds(model, _thresholds(cfg), Thresholds(*cfg.POLYDET.THRESHOLDS))
    if cfg.POLYDET.OPERATING:
        apply_operating_points(model, _operating_points(Path(cfg.POLYDET.CONFIG_FILE)), _classes(lazy, words))
    _follow_words(model, cfg.DATASETS.TEST[0])
    model.register_forward_pre_hook(_check_pictures)
    return model.to(cfg.MODEL.DEVICE)


def _set_thresholds(cfg: CfgNode, thresholds: Thresholds) -> None:
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = float(thresholds.score)
    cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST = float(thresholds.nms)
    cfg.TEST.DETECTIONS_PER_IMAGE = int(thresholds.detections)


def _thresholds(cfg: CfgNode) -> Thresholds:
    heads = cfg.MODEL.ROI_HEADS
    return Thresholds(heads.SCORE_THRESH_TEST, heads.NMS_THRESH_TEST, cfg.TEST.DETECTIONS_PER_IMAGE)


def _operating_points(path: Path) -> dict[str, float]:
    points = read_header(path).get("operating") if is_model_file(path) else None
    if not points:
        raise ConfigError(
            f"{path} holds no operating points; tools/operating_points.py chooses them on validation data"
        )
    return points


def _follow_words(model: nn.Module, metadata: str) -> None:
    """Keep Detectron2's metadata, by which predictions are drawn, at the words that the model is asked for."""
    if not is_open_vocabulary(model):
        return
    set_words = model.set_vocabulary

    def follow(names_or_vocabulary: Any) -> None:
        set_words(names_or_vocabulary)  # type: ignore[operator]
        _name_classes(metadata, current_names(model, ()))

    model.set_vocabulary = follow  # type: ignore[assignment]


def _check_pictures(model: nn.Module, inputs: tuple[Any, ...]) -> None:
    """What Detectron2's predictor passes on of any array must be a picture of eight bits: it converts nothing."""
    for item in inputs[0] if not model.training else ():
        image = item["image"]
        low, high = (float(image.min()), float(image.max())) if image.numel() else (0.0, 0.0)
        what = ""
        if image.dim() != 3 or image.shape[0] != 3 or not image.numel():
            what = f"a tensor of shape {tuple(image.shape)}, not 3 channels"
        elif not (low >= 0 and high <= 255):
            what = f"samples from {low:g} to {high:g}, not 0 to 255"
        elif image.is_floating_point() and 0 < high <= 1 and bool((image != image.round()).any()):
            what = f"samples from {low:g} to {high:g}, floats in 0..1 it seems, not 0 to 255"
        if what:
            remedy = "make a uint8 RGB array of it by polydet.data.to_picture, or use model_zoo.Predictor, which does"
            raise DatasetError(f"the picture is {what}", file=item.get("file_name", "predictor"), remedy=remedy)


def _load(model: nn.Module, file: str | Path, cfg: DictConfig) -> None:
    """All of the model must be in the file: a detector that is random in part looks like one that works."""
    checkpoint = read_checkpoint(file)
    if is_model_file(file):
        refuse_differences(model, checkpoint["model"], file)
    pair = names_by_name(checkpoint, cfg, model)
    load_file(model, file, checkpoint=checkpoint, names=closed_names(cfg, model), class_names=pair)


def _config(path: Path, file: str, overrides: Sequence[str]) -> DictConfig:
    """The config of one model; a card that is not known here has the classes that the checkpoint was trained on."""
    cfg = _of_one_model(load_config(path, overrides))
    unknown = [name for name in cards_of(cfg) if not is_known(name)]
    if unknown and file:
        labels = read_checkpoint(file).get("labels") or {"datasets": []}
        made = stand_in_cards({name: names for name, names in labels["datasets"] if name in unknown})
        if made:
            logger.info("no card is named %s here: its classes are those in %s", ", ".join(made), file)
    return cfg


def _of_one_model(cfg: DictConfig) -> DictConfig:
    if "model" not in cfg:
        folders = [
            f"{cfg.train.output_dir}/{name}" for name, stage in cfg.get("stages", {}).items() if "model" in stage
        ]
        raise ConfigError(
            f"{cfg.source.file} has no model of its own"
            + (f" but stages: name the folder of one that was run, {' or '.join(folders)}" if folders else "")
        )
    return cfg


def _build(cfg: DictConfig, weights_follow: bool, vocabulary: Sequence[str] | None) -> nn.Module:
    if weights_follow:
        skip_published_weights(cfg.model)
    model = instantiate(cfg.model)
    if not vocabulary and is_open_vocabulary(model) and not current_names(model, ()):
        model.set_vocabulary(trained_words(cfg))
    if vocabulary:
        if not is_open_vocabulary(model):
            raise ConfigError(f"{type(model).__name__} has a closed set of classes; it takes no vocabulary")
        model.set_vocabulary(list(vocabulary))
    return model


def _source(name: str | Path, weights: str | Path | None) -> tuple[Path, str]:
    """(config, checkpoint or ""); a model file is both."""
    folder = Path(name)
    best = weights == "best" and folder.is_dir()
    if weights is not None:
        plain = folder / "config.yaml"  # other weights than the final ones, whose config the model file has
        path = plain if plain.is_file() else config_path(name)
        return path, str(weights_in(folder, best)) if best else str(weights)
    path = config_path(name)
    if is_model_file(path):
        return path, str(path)
    if not folder.is_dir():
        return path, ""
    found = weights_in(folder)
    if found is None:
        raise CheckpointError(f"the run in {folder} has no checkpoint yet; name weights=FILE, or the config itself")
    return path, str(found)


def _classes(cfg: DictConfig, vocabulary: Sequence[str] | None) -> tuple[str, ...]:
    """Names that ``pred_classes`` index: the words that are asked for, else what the model was trained on."""
    if vocabulary:
        return tuple(vocabulary)
    if "vocabulary" in cfg.model:  # a model that is asked for words only
        return tuple(cfg.model.vocabulary) or trained_words(cfg)
    space = label_space(cfg)
    return space.names if space is not None else ()


_METADATA = itertools.count()


def _metadata(names: Sequence[str]) -> str:
    """A name of its own for each predictor, whose words may change."""
    key = f"polydet_{next(_METADATA)}"
    _name_classes(key, names)
    return key


def _name_classes(key: str, names: Sequence[str]) -> None:
    metadata = MetadataCatalog.get(key)
    metadata.__dict__.pop("thing_classes", None)  # Detectron2's refuses another value
    metadata.thing_classes = list(names)
