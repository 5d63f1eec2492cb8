"""Eqs. 3 to 9 of the paper written out element by element in float64, with every matrix in full."""

import torch
import torch.nn.functional as F


def similarity(text):
    """Eqs. 3 and 4."""
    n = len(text)
    cosine = torch.zeros(n, n, dtype=torch.float64)
    for i in range(n):
        for j in range(n):
            cosine[i, j] = (text[i] @ text[j]) / (text[i].norm() * text[j].norm())
    rows = []
    for i in range(n):
        alpha, beta = cosine[i].min(), cosine[i, i]
        rows.append((cosine[i] - alpha) / (beta - alpha))
    return torch.stack(rows)


def cosines(visual, text):
    """Eq. 5."""
    return torch.stack([F.cosine_similarity(v[None], text) for v in visual])


def hard(cosine, labels, tau=0.02, bias=0.0, counted=None):
    """Eq. 6: binary cross-entropy against the one-hot row, summed over labels, mean over regions."""
    n = cosine.shape[1]
    target = torch.zeros_like(cosine)
    for i, label in enumerate(labels.tolist()):
        if label < n:
            target[i, label] = 1
    logits = cosine / tau + bias
    log_p, log_not_p = F.logsigmoid(logits), F.logsigmoid(-logits)  # 1 - sigmoid(50) is 0 even in float64
    loss = -(target * log_p + (1 - target) * log_not_p)
    if counted is not None:
        loss = loss * counted
    return loss.sum() / len(labels)


def soft(cosine, labels, matrix, background="ignore"):
    """Eq. 7: mean squared error over labels, mean over the regions that count."""
    rows = []
    n = cosine.shape[1]
    for i, label in enumerate(labels.tolist()):
        if label < n:
            rows.append(((cosine[i] - matrix[label]) ** 2).mean())
        elif background == "zero":
            rows.append((cosine[i] ** 2).mean())
    return torch.stack(rows).mean() if rows else cosine.sum() * 0
