"""Co-DINO on EVA-02 ViT-L as released: windowed blocks of timm, an activated pyramid, a deeper R-CNN head."""

from detectron2.config import LazyCall as L

from polydet.backbones.eva_vit import EvaViT
from polydet.backbones.simple_fpn import SimpleFeaturePyramid

from .co_dino import model

model.backbone = L(SimpleFeaturePyramid)(
    bottom_up=L(EvaViT)(
        name="eva02_large_patch14_448.mim_m38m_ft_in22k_in1k",
        weights="timm",
        patch_size=16,
        window=24,
        global_blocks=[3, 7, 11, 15, 19, 23],
        canvas=None,
        out_norm=True,
        drop_path_rate=0.4,
        checkpointing=True,
    ),
    out_channels="${..dim}",
    strides=[4, 8, 16, 32, 64],
    activated=True,
    size_divisibility=32,
)
for part in (model.encoder, model.decoder):
    part.layer.num_levels = 5
model.encoder.checkpoint_layers = 6
model.queries.num_queries = 1500
model.postprocess.max_detections = 1000
model.denoising.update(num_queries=300, box_noise=0.4)
rcnn = dict(
    conv_dims=[256, 256, 256, 256],
    fc_dims=[1024],
    norm="GN",
    class_agnostic=True,
    delta_weights=[20.0, 20.0, 10.0, 10.0],
)
model.heads = [dict(name="faster_rcnn", options=rcnn), "atss"]
