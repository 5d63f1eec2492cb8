"""ScaleDet on your own cards, from ImageNet: `dataloader.train.datasets=[...] dataloader.test_datasets=[...]`."""

from detectron2.config import LazyCall as L

from polydet.text import MiniLMEncoder

from ..common.models.centernet2 import model
from .common.run import AUTO, dataloader, lr_multiplier, optimizer, pyramid, recipe_of, train

_stage1, _stage2 = "model.proposal_generator", "model.roi_heads"
_keys = dict(
    levels=f"{_stage1}.in_features",
    strides=f"{_stage1}.strides",
    num_levels=f"{_stage1}.head.num_levels",
    tower_convs=f"{_stage1}.head.num_convs",
    sizes_of_interest=f"{_stage1}.sizes_of_interest",
    box_bias=f"{_stage1}.head.box_bias",
    candidates=f"{_stage1}.pre_nms_topk",
    proposals=f"{_stage1}.post_nms_topk",
    roi_levels=f"{_stage2}.in_features",
    roi_strides=f"{_stage2}.strides",
    pooler=f"{_stage2}.pooler_resolution",
    fc_dims=f"{_stage2}.fc_dims",
    rois=f"{_stage2}.batch_size_per_image",
    detections=f"{_stage2}.test_topk_per_image",
    soft_weight=f"{_stage2}.label_loss.soft_weight",
    hl_scope=f"{_stage2}.label_loss.hl_scope",
    federated=f"{_stage2}.label_loss.federated",
)
model.proposal_generator.head.update(num_levels=AUTO, num_convs=AUTO, box_bias=AUTO)
model.proposal_generator.update(
    in_features=AUTO, strides=AUTO, sizes_of_interest=AUTO, pre_nms_topk=AUTO, post_nms_topk=AUTO
)
model.roi_heads.update(
    in_features=AUTO,
    strides=AUTO,
    pooler_resolution=AUTO,
    fc_dims=AUTO,
    batch_size_per_image=AUTO,
    test_topk_per_image=AUTO,
    use_bias=-4.6,
)
model.roi_heads.label_loss.update(soft_weight=AUTO, hl_scope=AUTO, federated=AUTO)
model.text_encoder = L(MiniLMEncoder)()
model.on_vocabulary_mismatch = "transfer"  # train.init_checkpoint may know other words
model.templates = "a"
train.init.fresh = [f"roi_heads.box_predictor.{i}.cls_score" for i in range(3)]  # weights of another text encoder

recipe = recipe_of(lr=(1e-3, 2e-4), visits=345, keys={**pyramid(model), **_keys})
