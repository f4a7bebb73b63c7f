"""Principal components of role vectors, layer by layer; it knows nothing of what they are worth."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

COMPONENTS = 16


def principal_components(role_vectors: Tensor, axis: Tensor) -> tuple[Tensor, Tensor]:
    """PCA of role vectors `[roles, layers, hidden]` at every layer: components `[layers, k, hidden]` and shares of the
    variance `[layers, n]`. PC1's sign is set so that its cosine with the axis `[layers, hidden]` is ≥ 0.

    >>> components, shares = principal_components(torch.randn(6, 2, 8), torch.randn(2, 8))
    >>> components.shape, [round(float(share), 3) for share in shares.sum(1)]
    (torch.Size([2, 6, 8]), [1.0, 1.0])
    """
    components, shares = [], []
    for layer in range(role_vectors.shape[1]):
        vectors = role_vectors[:, layer].double().numpy()
        _, singular, directions = np.linalg.svd(vectors - vectors.mean(0), full_matrices=False)
        # A component's sign is free: its largest entry is positive, so that the same vectors are drawn the same way round.
        largest = np.abs(directions).argmax(1)
        directions *= np.sign(directions[np.arange(len(directions)), largest])[:, None]
        first = torch.from_numpy(directions[:COMPONENTS]).float()
        if first[0] @ axis[layer] < 0:
            first[0] = -first[0]
        variance = singular**2
        components.append(first)
        shares.append(torch.from_numpy(variance / max(variance.sum(), np.finfo(float).tiny)).float())
    return torch.stack(components), torch.stack(shares)
