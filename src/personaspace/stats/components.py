"""Principal components of role vectors, layer by layer; it knows nothing of what they are worth."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

COMPONENTS = 16


def principal_components(role_vectors: Tensor, axis: Tensor) -> tuple[Tensor, Tensor]:
    """PCA of role vectors `[roles, layers, hidden]` at every layer: components `[layers, k, hidden]` and shares of the
    variance `[layers, n]`. PC1's sign is set so that its cosine with the axis `[layers, hidden]` is ≥ 0."""
    from sklearn.decomposition import PCA  # takes seconds to import, and reading a space does not need it

    components, shares = [], []
    for layer in range(role_vectors.shape[1]):
        fitted = PCA(svd_solver="full").fit(role_vectors[:, layer].double().numpy())
        first = torch.from_numpy(fitted.components_[:COMPONENTS]).float()
        if first[0] @ axis[layer] < 0:
            first[0] = -first[0]
        components.append(first)
        shares.append(torch.from_numpy(np.nan_to_num(fitted.explained_variance_ratio_)).float())
    return torch.stack(components), torch.stack(shares)
