"""METR with a collaborator of Co-DETR: language says what to look for, and ATSS on the encoder trains what is seen.

On ShapeWorld as the quickstarts: two datasets with different label spaces at once.
"""

from detectron2.config import LazyCall as L

from codetr import Collaborators

from ..quickstart.metr import dataloader, lr_multiplier, model, optimizer, train

model.auxiliary = [
    L(Collaborators)(
        heads=[dict(name="atss", options=dict(channels=64))],
        in_strides=[8, 16, 32, 64],
        num_classes="${model.label_space}",
        dim="${model.dim}",
        lambda_1=1.0,
        lambda_2=2.0,
        query_feature=False,
    )
]
train.output_dir = "./output/co_metr"
