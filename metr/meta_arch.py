"""METR (Hao et al., 2023): a DINO whose queries are told by language which category to look for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from detectron2.modeling import META_ARCH_REGISTRY

from polydet.detr import Auxiliary, DatasetLabels, OpenDETR
from polydet.text import LabelSpace, TextEncoder

from .category_extraction import CategoryExtraction, CategoryLoss
from .denoising import LanguageDenoising
from .language import CategoryLabels, LanguageEmbeddings, category_key, check_distinct
from .matching import GroupMatcher
from .queries import CategoryQuerySource


@META_ARCH_REGISTRY.register()
class METR(OpenDETR):
    """DINO with category-assigned queries, composed of this paper's parts.

    The category extraction module says which categories are in an image; the best `top_k` of them share the queries
    (`CategoryQuerySource`), and each query answers only for its own (`CategoryLabels`). Objects meet queries of their
    category (`GroupMatcher`).

    Args:
        queries, criterion, postprocess, denoising: the parts of this paper; the criterion's matcher is a
            `GroupMatcher`.
        label_space: the joint labels of the training datasets (``merge="name"``).
        text_encoder: makes the language embeddings, and those of words given to `set_vocabulary`.
        cem: category extraction module; None (table 4): training takes the true categories and random others,
            inference looks for all categories.
        top_k: categories of an image.
        learnable_text, text_scale: see `LanguageEmbeddings`.
        asl_weight: mu of the asymmetric loss; `asl` its further arguments.
        mask_foreign, federated: see `DatasetLabels`.
        auxiliary: further parts of training.
        base: further arguments of `OpenDETR` and `DETR`.

    Raises:
        ValueError: two joint labels that mean the same, or a criterion without group matching.
    """

    # earlier checkpoints name beside the detector what label head and query source hold now
    renamed: Mapping[str, str] = {"language.": "class_heads.language.", "cem.": "queries.cem."}

    class_heads: CategoryLabels
    word_key = staticmethod(category_key)

    def __init__(
        self,
        *,
        label_space: LabelSpace,
        text_encoder: TextEncoder,
        queries: CategoryQuerySource,
        cem: CategoryExtraction | None,
        denoising: LanguageDenoising | None = None,
        top_k: int = 20,
        learnable_text: bool = True,
        text_scale: float = 1.0,
        asl_weight: float = 1.0,
        asl: dict[str, Any] | None = None,
        mask_foreign: bool = False,
        federated: Literal["none", "verified"] = "none",
        auxiliary: Sequence[Auxiliary] = (),
        **base: Any,
    ) -> None:
        check_distinct(label_space.names)
        queries.look_for(top_k, cem)
        heads: Sequence[str] = ("decoder", "encoder") if cem is None else ("decoder", "encoder", "cem")
        extraction = [] if cem is None else [CategoryLoss(asl_weight, **(asl or {}))]
        super().__init__(
            label_space=label_space,
            text_encoder=text_encoder,
            labels=CategoryLabels(heads, learnable_text, text_scale),
            label_scope=DatasetLabels(label_space, mask_foreign, federated),
            queries=queries,
            denoising=denoising,
            auxiliary=[*extraction, *auxiliary],
            **base,
        )
        if not isinstance(self.criterion.matcher, GroupMatcher):
            raise ValueError("METR needs a criterion with a GroupMatcher: its queries have one category each")

    @property
    def language(self) -> LanguageEmbeddings:
        """The embeddings of the categories."""
        return self.class_heads.language
