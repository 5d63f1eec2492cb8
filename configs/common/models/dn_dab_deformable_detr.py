"""DN-DAB-Deformable-DETR (Li et al., 2022): DAB-Deformable-DETR that also rebuilds noised objects in training."""

from detectron2.config import LazyCall as L

from polydet.detr import Denoising

from .dab_deformable_detr import model

model.queries.indicator = True
model.denoising = L(Denoising)(
    num_classes="${..num_classes}",
    dim="${..dim}",
    num_groups=5,
    label_noise=0.2,
    box_noise=0.4,
    contrastive=False,
    indicator=True,
    normalizer="local",
)
