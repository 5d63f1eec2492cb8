"""Perceptrons: the box and query heads, and the feed-forward block of a transformer layer."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

Activation = Literal["relu", "prelu", "gelu"]


def activation_module(name: Activation) -> nn.Module:
    """The module of an activation's name. Raises ValueError for a name it does not know."""
    modules: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "prelu": nn.PReLU, "gelu": nn.GELU}
    if name not in modules:
        raise ValueError(f"unknown activation {name!r}; use one of {sorted(modules)}")
    return modules[name]()


class MLP(nn.Module):
    """Linear layers with ReLU between them: ``[..., in_dim] -> [..., out_dim]``."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, num_layers: int) -> None:
        super().__init__()
        widths = [in_dim] + [hidden_dim] * (num_layers - 1) + [out_dim]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def zero_last(self) -> None:
        """Start as the zero function: a box head then keeps its reference."""
        last: Any = self.layers[-1]
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in_dim]`` to ``[..., out_dim]``."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


class FeedForward(nn.Module):
    """Two linear layers with an activation and dropout; residual and norm are the caller's."""

    def __init__(self, dim: int, hidden_dim: int = 2048, dropout: float = 0.0, activation: Activation = "relu") -> None:
        super().__init__()
        self.linear1 = nn.Linear(dim, hidden_dim)
        self.linear2 = nn.Linear(hidden_dim, dim)
        self.activation = activation_module(activation)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.linear2(self.dropout(self.activation(self.linear1(x)))))


def prior_bias(prior: float = 0.01) -> float:
    """Bias that makes a sigmoid start at `prior` (RetinaNet, sec. 4.1)."""
    return -math.log((1 - prior) / prior)


def xavier_reset(module: nn.Module) -> None:
    """Xavier-uniform for every matrix and zero for every linear bias, as the DETR family starts from."""
    for child in module.modules():
        if isinstance(child, nn.Linear):
            nn.init.xavier_uniform_(child.weight)
            nn.init.zeros_(child.bias)
        elif isinstance(child, nn.MultiheadAttention):
            nn.init.xavier_uniform_(child.in_proj_weight)
            nn.init.zeros_(child.in_proj_bias)
