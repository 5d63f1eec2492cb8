"""What METR's weights start in other members of the DETR family (sec. 4.2, table 3), and how fast they learn then.

Parts have the same names in every member of `polydet.detr`, so a key map chooses and never renames. Each is a
``train.init.key_map`` of a config; the load ledger then says, module by module, what came from METR and what is new.

==========================  =============  =============  =============  =============
part                        Deformable     DAB-Def.       DN-DAB-Def.    DINO
==========================  =============  =============  =============  =============
backbone, projections       loaded         loaded         loaded         loaded
level embedding             loaded         loaded         loaded         loaded
encoder layers              loaded         loaded         loaded         loaded
decoder layers              loaded         loaded         loaded         loaded
decoder norm                has none       has none       has none       loaded
anchor position head        has none       loaded         loaded         loaded
content scale of positions  has none       new            new            has none
encoder output projection   has none       has none       has none       loaded
queries, class, box heads   new            new            new            new
==========================  =============  =============  =============  =============

Deformable-DETR's feed-forward blocks are 1024 wide, METR's 2048: both its rows are built with 2048.
"""

from __future__ import annotations

from torch import Tensor

StateDict = dict[str, Tensor]

SHARED = ("backbone.", "level_embed", "encoder.", "decoder.layers.")
ANCHORS = ("decoder.query_position.position_head.",)
TWO_STAGE = ("decoder.norm.", "queries.token_proj.", "queries.token_norm.")

# learning rates as factors of the base rate, by part: supplementary table 2 (backbone, encoder, decoder)
BACKBONE, ENCODER, DECODER = r"^backbone\.bottom_up\.", r"^encoder\.", r"^decoder\."
LR_STRATEGIES: dict[str, dict[str, float]] = {
    "default": {BACKBONE: 0.1},
    "S1": {BACKBONE: 0.1, ENCODER: 0.2, DECODER: 0.2},
    "S2": {BACKBONE: 0.1, ENCODER: 0.2, DECODER: 0.4},
    "S3": {BACKBONE: 0.1, ENCODER: 0.4, DECODER: 0.2},
}


class Parts:
    """A key map that keeps the tensors whose keys start with one of ``prefixes``.

    Attributes:
        fresh: modules of the other member that may start afresh (the table above).
    """

    fresh = ("queries", "class_heads", "box_heads", "denoising")

    def __init__(self, *prefixes: str) -> None:
        self.prefixes = prefixes

    def __call__(self, state: StateDict) -> StateDict:
        """The tensors that are kept. Raises ValueError if there are none."""
        kept = {key: value for key, value in state.items() if key.startswith(self.prefixes)}
        if not kept:
            raise ValueError(f"no key of the checkpoint starts with one of {self.prefixes}: it is not one of METR")
        return kept


to_deformable_detr = Parts(*SHARED)
to_dab_deformable_detr = Parts(*SHARED, *ANCHORS)
to_dn_dab_deformable_detr = Parts(*SHARED, *ANCHORS)
to_dino = Parts(*SHARED, *ANCHORS, *TWO_STAGE)
