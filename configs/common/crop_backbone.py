"""A backbone from object crops of another dataset, where ImageNet's cannot be had: a first stage of quickstarts."""

from detectron2.config import LazyCall as L
from omegaconf import DictConfig, OmegaConf

from polydet.engine.image_domain import pretrain_backbone


def crop_backbone(model_kwargs: DictConfig, root: str = "${train.output_dir}", **settings: int) -> dict:
    """The stage that writes ``backbone.safetensors`` into the folder of the stages; settings of `pretrain_backbone`."""
    settings = {"iterations": 300, **settings}
    output = f"{root}/backbone.safetensors"
    return dict(
        run=L(pretrain_backbone)(dataset="shapes_lvis_train", model_kwargs=model_kwargs, output=output, **settings)
    )


def after_crops(model: DictConfig, crops: dict[str, int] | None = None, **run: DictConfig) -> dict:
    """Stages ``backbone`` and ``train``, the latter `model` and the other parts of a config."""
    model.backbone.bottom_up.weights = "${train.output_dir}/../backbone.safetensors"
    stage = OmegaConf.create(dict(model=model, **run), flags={"allow_objects": True})
    return dict(backbone=crop_backbone(model.backbone.bottom_up.model_kwargs, **(crops or {})), train=stage)
