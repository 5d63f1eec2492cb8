"""Box-domain contrastive loss (AlignDet eqs. 2 to 4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BACKGROUND = -1


def box_contrastive_loss(
    online: Tensor,
    online_labels: Tensor,
    target: Tensor,
    target_labels: Tensor,
    temperature: float = 0.5,
) -> Tensor:
    """Pull boxes of one proposal together across the two views, push all others away.

    Every online box with a label is a query. Its positives are the target view's boxes of the same label (eq. 3
    prints the query's own view; figure 3 and the published code are cross-view); where the target view has none, the
    online boxes of that label. Its negatives are all boxes of other labels and of the background in both views,
    without gradient. One cross entropy per (query, positive) pair with the other positives left out, averaged over
    the pairs of a label, then over labels.

    Args:
        online: ``[n1, D]`` embeddings of the online detector's boxes, any scale.
        online_labels: int64 ``[n1]`` index of the assigned proposal, unique over the images of this process;
            -1 for background.
        target: ``[n2, D]`` embeddings of the momentum detector's boxes.
        target_labels: int64 ``[n2]``.
        temperature: tau of eq. 4.

    Returns:
        0-d float32; zero, still attached to ``online``, if no online box has a label.
    """
    device_type = online.device.type
    with torch.autocast(device_type, enabled=False):
        queries = F.normalize(online.float(), dim=1)
        keys = F.normalize(target.detach().float(), dim=1)
        chosen = (online_labels != BACKGROUND).nonzero().squeeze(1)
        if len(chosen) == 0:
            return queries.sum() * 0.0
        labels = online_labels[chosen]
        queries_own = queries[chosen]
        cross = queries_own @ keys.t() / temperature  # [q, n2]
        within = queries_own @ queries.detach().t() / temperature  # [q, n1]
        same_cross = labels[:, None] == target_labels[None]
        same_within = labels[:, None] == online_labels[None]
        # a finite filler: a query without any negative has loss 0 and gradient 0, not NaN
        filler = -1e9
        negatives = torch.cat([cross.masked_fill(same_cross, filler), within.masked_fill(same_within, filler)], 1)
        negative_mass = negatives.logsumexp(1)  # [q]

        unique, group = labels.unique(return_inverse=True)
        has_key = same_cross.any(1)
        rows, columns = same_cross.nonzero(as_tuple=True)
        pair_loss = F.softplus(negative_mass[rows] - cross[rows, columns])
        own_rows, own_columns = (same_within & ~has_key[:, None]).nonzero(as_tuple=True)
        own_similarity = (queries_own[own_rows] * queries[own_columns]).sum(1) / temperature
        own_loss = F.softplus(negative_mass[own_rows] - own_similarity)

        losses = torch.cat([pair_loss, own_loss])
        groups = torch.cat([group[rows], group[own_rows]])
        total = losses.new_zeros(len(unique)).index_add(0, groups, losses)
        pairs = losses.new_zeros(len(unique)).index_add(0, groups, torch.ones_like(losses))
        return (total / pairs).mean()
