"""Names -> configs -> models.  A name is a config of ``configs/`` (without ``.py``), a file, or a run's folder."""

import difflib
from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode, instantiate
from detectron2.config import get_cfg as detectron2_cfg
from detectron2.data import MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY
from omegaconf import DictConfig, ListConfig
from torch import nn

from polydet.data import label_space_of
from polydet.engine.checkpoint import CheckpointError, load_weights, read_checkpoint
from polydet.engine.config import ConfigError, load_config
from polydet.engine.published import skip_published_weights
from polydet.engine.weights import weights_in
from polydet.files import text_digest


def config_root() -> Path:
    """The folder ``configs/``: inside the installed package, else beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "_configs"
    return installed if installed.is_dir() else package.parent / "configs"


def list_configs() -> list[str]:
    """Names of all configs that a run can take, sorted; the parts in ``common/`` are left out."""
    root = config_root()
    names = (path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.py"))
    return sorted(name for name in names if "common" not in name.split("/")[:-1])


def config_path(name: str | Path) -> Path:
    """The config file that ``name`` means: a zoo name, a file, or the folder of a run.

    Raises:
        ConfigError: nothing of that name, with near names.
    """
    path = Path(name)
    if path.is_dir() and (path / "config.yaml").is_file():
        return path / "config.yaml"
    if path.is_file():
        return path
    zoo = config_root() / f"{str(name).removesuffix('.py')}.py"
    if zoo.is_file():
        return zoo
    near = [file.parent.as_posix() for file in sorted(path.glob("*/config.yaml"))]  # a run of several stages
    near = near or difflib.get_close_matches(str(name), list_configs(), n=3, cutoff=0.4)
    raise ConfigError(f"no config, file or run is named {str(name)!r}; near: {', '.join(near) or 'none'}")


def get_config(name: str | Path, overrides: Sequence[str] = ()) -> DictConfig:
    """The LazyConfig of ``name``; see :func:`config_path` and :func:`polydet.engine.load_config`."""
    return load_config(config_path(name), overrides)


def get(
    name: str | Path,
    weights: str | Path | None = None,
    device: str = "cpu",
    vocabulary: Sequence[str] | None = None,
    overrides: Sequence[str] = (),
) -> nn.Module:
    """The model of a config, in eval mode.

    Args:
        name: zoo name, config file or run folder.
        weights: checkpoint, or ``"best"`` for a run folder's best; None takes a run folder's final weights (of one that
            is not finished the newest), and for a config what its backbone starts from.
        device: where the model goes.
        vocabulary: words to detect, for open-vocabulary models.
        overrides: ``key=value`` on the config.

    Raises:
        polydet.engine.CheckpointError: weights that cannot be read or do not fit.
    """
    cfg = _of_one_model(get_config(name, overrides))
    file = _weights_of(name, weights)
    model = _build(cfg, bool(file), vocabulary)
    if file:
        _load(model, file)
    return model.to(device).eval()


def get_cfg(
    name: str | Path,
    weights: str | Path | None = None,
    device: str = "cpu",
    vocabulary: Sequence[str] | None = None,
    overrides: Sequence[str] = (),
) -> CfgNode:
    """A yacs config that Detectron2's ``DefaultPredictor`` takes as it is; arguments as :func:`get`.

    Test size and channel order come from the config's test mapper; ``DATASETS.TEST`` names metadata with the classes.
    The weights are in ``POLYDET.WEIGHTS`` and loaded as :func:`get` loads them, where the model is built:
    ``MODEL.WEIGHTS`` is empty, since what it names would be unpickled, and loaded without regard to what is missing.

    Raises:
        ConfigError: an unknown name.
    """
    path = config_path(name)
    lazy = _of_one_model(load_config(path, overrides))
    cfg = detectron2_cfg()
    cfg.MODEL.META_ARCHITECTURE = PolydetLazyModel.__name__
    cfg.MODEL.DEVICE = device
    cfg.POLYDET = CfgNode()
    cfg.POLYDET.CONFIG_FILE = str(path)
    cfg.POLYDET.WEIGHTS = _weights_of(name, weights)
    cfg.POLYDET.OVERRIDES = list(overrides)
    cfg.POLYDET.VOCABULARY = list(vocabulary or [])
    short, longest = _test_size(lazy)
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = short, longest
    cfg.INPUT.FORMAT = lazy.model.get("input_format", "RGB") or "RGB"
    cfg.DATASETS.TEST = (_metadata(lazy, vocabulary),)
    return cfg


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
    lazy = load_config(cfg.POLYDET.CONFIG_FILE, cfg.POLYDET.OVERRIDES)
    model = _build(lazy, bool(cfg.POLYDET.WEIGHTS), cfg.POLYDET.VOCABULARY or None)
    if cfg.POLYDET.WEIGHTS:
        _load(model, cfg.POLYDET.WEIGHTS)
    return model.to(cfg.MODEL.DEVICE)


def _load(model: nn.Module, file: str | Path) -> None:
    """All of the model must be in the file: a detector that is random in part looks like one that works."""
    load_weights(model, read_checkpoint(file)["model"], min_coverage=0.99)


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
    if vocabulary:
        if not hasattr(model, "set_vocabulary"):
            raise ConfigError(f"{type(model).__name__} has a closed set of classes; it takes no vocabulary")
        model.set_vocabulary(list(vocabulary))
    return model


def _weights_of(name: str | Path, weights: str | Path | None) -> str:
    folder = Path(name)
    best = weights == "best" and folder.is_dir()
    if weights is not None and not best:
        return str(weights)
    if not folder.is_dir():
        return ""
    found = weights_in(folder, best)
    if found is None:
        raise CheckpointError(f"the run in {folder} has no checkpoint yet; name weights=FILE, or the config itself")
    return str(found)


def _test_size(cfg: DictConfig) -> tuple[int, int]:
    """(short side, longest side) of the test mapper's resize; (0, 0) when it does not resize."""
    augmentations = cfg.dataloader.test.mapper.get("augmentations", [])
    for node in augmentations if isinstance(augmentations, ListConfig) else [augmentations]:
        short = node.get("short", node.get("short_edge_length"))
        if short is not None:
            short = short[0] if isinstance(short, ListConfig) else short
            return int(short), int(node.get("max_size", 1333))
    return 0, 0


def _metadata(cfg: DictConfig, vocabulary: Sequence[str] | None) -> str:
    names = list(vocabulary or _trained_names(cfg))
    key = f"polydet_{text_digest(repr(names))[:12]}"
    MetadataCatalog.get(key).thing_classes = names
    return key


def _trained_names(cfg: DictConfig) -> Sequence[str]:
    train = cfg.dataloader.train
    return label_space_of(list(train.datasets), train.get("merge", "none")).names
