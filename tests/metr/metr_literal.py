"""Equations 1 to 3, algorithm 1 and the asymmetric loss, element by element in float64."""

import numpy as np


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def linear(x, weight, bias):
    return x @ weight.T + bias


def layer_norm(x, weight, bias):
    mean = x.mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(((x - mean) ** 2).mean(-1, keepdims=True) + 1e-5) * weight + bias


def attention(query, key, value, state, heads, padding):
    """Multi-head attention of one image: query [n, C], key and value [S, C], padding [S] bool."""
    weight, bias = state["in_proj_weight"], state["in_proj_bias"]
    dim = query.shape[1]
    q = linear(query, weight[:dim], bias[:dim])
    k = linear(key, weight[dim : 2 * dim], bias[dim : 2 * dim])
    v = linear(value, weight[2 * dim :], bias[2 * dim :])
    width = dim // heads
    out = np.zeros_like(q)
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        for i in range(len(q)):
            scores = np.array([q[i, part] @ k[j, part] for j in range(len(k))]) / np.sqrt(width)
            scores[padding] = -np.inf
            weights = np.exp(scores - scores.max())
            out[i, part] = (weights / weights.sum()) @ v[:, part]
    return linear(out, state["out_proj.weight"], state["out_proj.bias"])


def cem(e, bias, tokens, position, padding, state, layers, heads):
    """Eqs. 1 to 3 for one image: logits [n] and E^(N_L) [n, C]."""
    x = e
    for layer in range(layers):
        of = {k.removeprefix(f"layers.{layer}."): v for k, v in state.items() if k.startswith(f"layers.{layer}.")}
        attn = {k.removeprefix("cross_attn."): v for k, v in of.items() if k.startswith("cross_attn.")}
        x = layer_norm(
            x + attention(x, tokens + position, tokens, attn, heads, padding), of["norm1.weight"], of["norm1.bias"]
        )
        hidden = np.maximum(linear(x, of["ffn.linear1.weight"], of["ffn.linear1.bias"]), 0)
        fed = linear(hidden, of["ffn.linear2.weight"], of["ffn.linear2.bias"])
        x = layer_norm(x + fed, of["norm2.weight"], of["norm2.bias"])
    projected = linear(x, state["head.linear.weight"], state["head.linear.bias"])
    logits = np.array([projected[i] @ e[i] / np.sqrt(e.shape[1]) + bias[i] for i in range(len(e))])
    return logits, x


def head(q, e, weight, bias, b):
    """Line 4 of algorithm 1 for one query of category e."""
    return linear(q, weight, bias) @ e / np.sqrt(len(e)) + b


def asl(logits, target, gamma_pos, gamma_neg, margin):
    """Ridnik et al., eqs. 4 to 7: L = -y (1-p)^g+ log p - (1-y) p_m^g- log(1 - p_m), p_m = max(p - m, 0)."""
    loss = np.zeros_like(logits)
    for index, x in np.ndenumerate(logits):
        p = sigmoid(x)
        if target[index]:
            loss[index] = -((1 - p) ** gamma_pos) * np.log(p)
        else:
            shifted = max(p - margin, 0.0)
            loss[index] = -(shifted**gamma_neg) * np.log(1 - shifted)
    return loss
