"""The losses of DetCLIPv2 written as the paper prints them: loops over pairs, float64."""

import math

import torch


def similarity(regions, concepts, side, matching, temperature=0.1):
    """s(image, text): `regions` [k, D] of one image, `concepts` [M, D] of one text, the caption first."""
    if matching == "largest_box":
        return regions[0] @ concepts[0]
    if side == "image_to_text":
        return torch.stack([max((r @ t for t in concepts), key=lambda s: s.item()) for r in regions]).mean()
    values = []
    for t in concepts:
        scores = torch.stack([r @ t for r in regions])
        values.append(scores.max() if matching == "closest" else ((scores / temperature).softmax(0) * scores).sum())
    return torch.stack(values).mean()


def contrastive(images, texts, tau, smoothing, side, norm_axis, matching):
    """Eq. 5 over a batch: image i belongs to text i."""
    if side == "both":
        both = [contrastive(images, texts, tau, smoothing, s, norm_axis, matching) for s in _SIDES]
        return (both[0] + both[1]) / 2
    n = len(images)
    s = [[similarity(images[i], texts[j], side, matching) / tau for j in range(n)] for i in range(n)]
    over_texts = (norm_axis == "texts") != (side == "image_to_text")
    total = 0
    for i in range(n):
        row = torch.stack([s[i][j] if over_texts else s[j][i] for j in range(n)])
        log_p = row - torch.logsumexp(row, 0)
        total = total - (1 - smoothing) * log_p[i] - smoothing * log_p.mean()
    return total / n


_SIDES = ("text_to_image", "image_to_text")


def alignment(regions, concepts_of, boxes_of, matches, embedding, scale, bias, alpha=0.25, gamma=2.0):
    """Focal loss of every (anchor, concept of the batch): 1 where the anchor's box carries the concept.

    regions [B][N, D]; concepts_of [B] lists of strings; boxes_of [B] lists of sets of strings; matches [B][N] index of
    a box, -1 background, -2 ignored; embedding: string -> [D].
    """
    everything = sorted({name for names in concepts_of for name in names})
    total, positives = 0, 0
    for rows, boxes, match in zip(regions, boxes_of, matches):
        positives += max(sum(m >= 0 for m in match), 1)  # as in mmdetection's ATSS
        for row, m in zip(rows, match):
            if m == -2:
                continue
            for name in everything:
                logit = scale * (row @ embedding[name]) + bias
                p = torch.sigmoid(logit)
                if m >= 0 and name in boxes[m]:
                    total = total - alpha * (1 - p) ** gamma * torch.nn.functional.logsigmoid(logit)
                else:
                    total = total - (1 - alpha) * p**gamma * torch.nn.functional.logsigmoid(-logit)
    return total / positives


def focal_scalar(logit, target, alpha=0.25, gamma=2.0):
    """One term in plain floats."""
    p = 1 / (1 + math.exp(-logit))
    return -alpha * (1 - p) ** gamma * math.log(p) if target else -(1 - alpha) * p**gamma * math.log(1 - p)
