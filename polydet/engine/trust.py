"""What a config that is data may call.

A Python LazyConfig is a program: who names one with ``--config-file`` runs it.  A yaml config, the header of a model
file and whatever else comes out of a folder or a file is data, and may only call the constructors that configs of this
house are made of.  It cannot name a shell command, a loader of other configs, a download or a hook of its own.
"""

import inspect
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from detectron2.data.transforms import Augmentation, Transform
from detectron2.utils.registry import _convert_target_to_string, locate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn
from torch.optim import Optimizer

from polydet.engine.errors import ConfigError

__all__ = ["ConfigDumper", "allow_calls", "check_trusted", "objects_in", "plain_config", "read_yaml_config", "refusal"]

# modules, optimisers and augmentations: any that these packages define
HOUSE = ("polydet", "scaledet", "metr", "codetr", "aligndet", "detclipv2")
_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(HOUSE, (nn.Module, Augmentation, Transform)),
    "detectron2.modeling": (nn.Module,),
    "detectron2.layers": (nn.Module,),
    "detectron2.data.transforms": (Augmentation, Transform),
    "torch.nn": (nn.Module,),
    "torch.optim": (Optimizer,),
}
# builds whatever another registry has
_REFUSED = {"detectron2.modeling.mmdet_wrapper.MMDetBackbone", "detectron2.modeling.mmdet_wrapper.MMDetDetector"}

# functions, and classes of no such kind, one by one
_CALLS = {
    "aligndet.detectors.fcos_head",
    "aligndet.detectors.num_classes_of",
    "aligndet.detectors.retinanet_head",
    "aligndet.low_data.build_low_data_loader",
    "aligndet.pretrainer.MomentumLength",
    "aligndet.proposal_data.build_pretrain_loader",
    "aligndet.views.TwoViewMapper",
    "codetr.BoxVotingTTA",
    "detclipv2.CaptionConcepts",
    "detclipv2.ConceptDictionary",
    "detclipv2.DetectionConcepts",
    "detclipv2.FileDefinitions",
    "detclipv2.GroundingConcepts",
    "detclipv2.NounPhrases",
    "detclipv2.RegionSelection",
    "detclipv2.StoredDefinitions",
    "detclipv2.WordNetDefinitions",
    "detclipv2.WordRegionLoss",
    "detectron2.layers.ShapeSpec",
    "detectron2.modeling.ResNet.make_default_stages",
    "detectron2.modeling.box_regression.Box2BoxTransform",
    "detectron2.modeling.matcher.Matcher",
    "polydet.backbones.fpn",
    "polydet.backbones.fpn_p3_p7",
    "polydet.data.ClassAwareSampler",
    "polydet.data.DetectionMapper",
    "polydet.data.FixedRatioSampler",
    "polydet.data.RepeatFactorSampler",
    "polydet.data.SubsetSampler",
    "polydet.data.UniformSampler",
    "polydet.data.augmentations.detr_multi_scale",
    "polydet.data.augmentations.fixed_resize",
    "polydet.data.augmentations.large_scale_jitter",
    "polydet.data.augmentations.resize_shortest_edge",
    "polydet.data.build_mixed_loader",
    "polydet.data.build_test_loader",
    "polydet.data.build_train_loader",
    "polydet.data.class_image_counts",
    "polydet.data.copy_paste.CanvasMapper",
    "polydet.data.copy_paste.CopyPasteMapper",
    "polydet.data.copy_paste.canvas_jitter",
    "polydet.data.copy_paste.canvas_resize",
    "polydet.data.label_space_of",
    "polydet.dense.FlooredMatcher",
    "polydet.dense.postprocess.DenseInference",
    "polydet.engine.optim.lr_schedule",
    "polydet.engine.optim.param_groups",
    "polydet.engine.plateau.PlateauSchedule",
    "polydet.text.LabelSpace",
    "polydet.text.MiniLMEncoder",
    "polydet.text.OpenClipEncoder",
    "polydet.text.StoredEncoder",
    "polydet.text.stored_label_space",
    "scaledet.embedding_dim",
    "scaledet.joint_image_counts",
}
_KEY_MAPS = {
    *(f"aligndet.transfer:{kind}" for kind in ("FCOS", "RETINANET", "MASK_RCNN", "CASCADE", "DETR")),
    *(f"aligndet.transfer:FASTER_RCNN{modules}" for modules in ("", "_NECK", "_NECK_RPN", "_NECK_HEAD")),
    "codetr.checkpoint:from_mmdet",
    "metr.transfer:to_dab_deformable_detr",
    "metr.transfer:to_deformable_detr",
    "metr.transfer:to_dino",
    "metr.transfer:to_dn_dab_deformable_detr",
    "polydet.detr.checkpoint_maps:convert",
}
_allowed: set[str] = set()


def allow_calls(*names: str) -> None:
    """Let configs that are data call these too, in this process: for components of your own project.

    Args:
        names: ``package.module.callable``, or ``module:function`` for ``train.init.key_map``, as configs write them.
    """
    _allowed.update(names)


def read_yaml_config(path: str | os.PathLike[str]) -> DictConfig:
    """A config in yaml, without any object of Python's, whose calls are all allowed.

    Raises:
        ConfigError: the file cannot be read, is not a yaml mapping, or calls something that is not allowed.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))  # the C loader crashes on deep nesting
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {str(path)!r} cannot be read: {error}") from error
    except yaml.constructor.ConstructorError as error:
        raise ConfigError(
            f"config file {str(path)!r} holds an object of a program, where only values may be: {error}"
        ) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"config file {str(path)!r} is not valid yaml: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"config file {str(path)!r} is not a mapping of keys")
    return check_trusted(content, str(path))


def plain_config(cfg: DictConfig) -> dict[str, Any]:
    """A config as mappings, lists, texts and numbers: calls by name, interpolations as they are written.

    Other objects, which only a Python config can hold, stay what they are; see :func:`objects_in`.
    """
    content: Any = OmegaConf.to_container(cfg, resolve=False)
    for _, node, name in list(_places(content, "")):
        if name == "_target_" and not isinstance(node[name], str | dict):
            node[name] = _convert_target_to_string(node[name])
    return content


def objects_in(content: Any) -> list[str]:
    """Keys of what data cannot say, with the object."""
    plain = dict | list | str | int | float | None
    return [
        f"{key}={node[name]!r:.80}" for key, node, name in _places(content, "") if not isinstance(node[name], plain)
    ]


class ConfigDumper(yaml.SafeDumper):
    """Writes an object that is no value under a tag that no reader takes."""


ConfigDumper.add_multi_representer(object, lambda dumper, value: dumper.represent_scalar("!object", repr(value)))


def check_trusted(content: dict[str, Any], source: str) -> DictConfig:
    """The config that plain data describes.

    Args:
        content: mappings, lists, texts and numbers.
        source: the file that it comes from, for messages.

    Raises:
        ConfigError: naming source, key and remedy.
    """
    try:
        for key, node, name in _places(content, ""):
            problem = _problem(name, node[name])
            if problem:
                raise ConfigError(f"{source}: {key} {problem}")
        return OmegaConf.create(content, flags={"allow_objects": True})
    except (OmegaConfBaseException, RecursionError, TypeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{source} is not a config: {error}") from error


def _places(node: Any, prefix: str) -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, mapping or list, name in it) of every entry, groups included."""
    for name in node if isinstance(node, dict) else range(len(node)):
        key = f"{prefix}.{name}" if prefix else str(name)
        yield key, node, name
        if isinstance(node[name], dict | list):
            yield from _places(node[name], key)


_ENVIRONMENT = re.compile(r"\$\{oc\.env:[^${}]*\}")


def _problem(name: Any, value: Any) -> str | None:
    if isinstance(value, str) and re.search(r"\$\{.*:", _ENVIRONMENT.sub("", value), re.DOTALL):
        return f"is {value!r}: of OmegaConf's resolvers only oc.env may be used in a file"
    if name == "_target_":
        return refusal(value)
    if name == "key_map" and value and value not in _KEY_MAPS | _allowed:
        return (
            f"is {value!r}, not one of the maps that a config in a file may name ({', '.join(sorted(_KEY_MAPS))}). "
            f"If you trust it, polydet.engine.allow_calls({value!r}), or give it on the command line"
        )
    return None


def refusal(target: Any) -> str | None:
    """Why a config that is data may not have this ``_target_``; None where it may."""
    if isinstance(target, str) and (target in _allowed or target in _CALLS or _is_of_a_kind(target)):
        return None
    return (
        f"is {target!r:.120}, which a config in a file may not call: only the parts that configs of this project are "
        f"made of. If you trust it, polydet.engine.allow_calls({target!r:.120}), or name a Python config"
    )


def _is_of_a_kind(target: str) -> bool:
    package = next((name for name in _KINDS if target.startswith(f"{name}.")), None)
    if package is None or not re.fullmatch(r"[A-Za-z_][\w.]*", target) or "__" in target:
        return False
    try:
        found = locate(target)
        name = _convert_target_to_string(found)
    except Exception:  # whatever a module says that there is not
        return False
    if not f"{getattr(found, '__module__', '')}.".startswith(f"{package.split('.')[0]}.") or name in _REFUSED:
        return False
    return name in _CALLS or (inspect.isclass(found) and issubclass(found, _KINDS[package]))
