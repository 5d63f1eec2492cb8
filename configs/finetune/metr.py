"""METR on your own cards, labels read as words: `dataloader.train.datasets=[...] dataloader.test_datasets=[...]`."""

from detectron2.config import LazyCall as L

from polydet.text import MiniLMEncoder

from ..common.models.metr import model
from .common.detr import AUTO, dataloader, fit, lr_multiplier, optimizer, train

recipe = fit(model, federated="model.federated", labels_per_image="model.top_k")
model.update(top_k=AUTO, text_scale=20.0, mask_foreign=True, federated=AUTO)
model.text_encoder = L(MiniLMEncoder)()
model.on_vocabulary_mismatch = "transfer"  # train.init_checkpoint may know other words
model.cem.ffn_dim = "${model.encoder.layer.ffn_dim}"
