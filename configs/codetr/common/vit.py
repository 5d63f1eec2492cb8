"""How Co-DINO trains on ViT-L (tables 5 and 6): layer-wise decay of the learning rate."""

from omegaconf import DictConfig


def layer_decay(optimizer: DictConfig, decay: float = 0.8, layers: int = 24) -> DictConfig:
    """Each block learns `decay` times slower than the next; the pyramid after them learns at the full rate."""
    optimizer.params.update(layer_decay=decay, num_layers=layers, weight_decay_norm=0.0, weight_decay_bias=0.0)
    optimizer.params.lr_factors = {r"^backbone\.scales\.": decay ** -(layers + 1)}
    return optimizer
