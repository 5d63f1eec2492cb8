"""METR: DINO with category-assigned queries; ResNet-50, CLIP ViT-B/16 text, 100 queries for 20 categories."""

from detectron2.config import LazyCall as L

from metr import METR, CategoryExtraction, CategoryQuerySource, CategoryScores, GroupMatcher, LanguageDenoising
from polydet.data import label_space_of
from polydet.text import OpenClipEncoder

from .dino import model

model._target_ = METR
del model.num_classes
model.update(
    label_space=L(label_space_of)(datasets="${dataloader.train.datasets}", merge="${dataloader.train.merge}"),
    text_encoder=L(OpenClipEncoder)(model_name="ViT-B-16-quickgelu", pretrained="openai"),
    templates="photo",
    top_k=20,
    learnable_text=True,
    text_scale=1.0,
    cem=L(CategoryExtraction)(dim="${..dim}", num_layers=2, num_heads=8, ffn_dim=2048, levels=None),
    asl_weight=1.0,
    asl=dict(gamma_pos=0.0, gamma_neg=4.0, clip=0.05),
    mask_foreign=False,
    federated="none",
    on_vocabulary_mismatch="error",
    queries=L(CategoryQuerySource)(num_queries=100, dim="${..dim}", allocation="uniform", content_init="xavier"),
    denoising=L(LanguageDenoising)(
        dim="${..dim}", num_queries=100, label_noise=0.25, box_noise=0.4, normalizer="objects"
    ),
    postprocess=L(CategoryScores)(num=100, category_power=0.0),
)
model.criterion.matcher._target_ = GroupMatcher
