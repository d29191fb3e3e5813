"""CMMD (arXiv 2401.09603): the maximum mean discrepancy of CLIP embeddings under a Gaussian kernel."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

SIGMA = 10.0
SCALE = 1000.0
ROWS = 1024  # of a kernel matrix in memory

STAMP: dict[str, str | int | float] = {"kernel": "Gaussian, sigma 10", "scale": SCALE, "estimator": "V-statistic"}


def cmmd(found: npt.NDArray[np.floating], reference: npt.NDArray[np.floating]) -> float:
    """1000 times the squared discrepancy of embeddings (N, D) of unit length against (M, D).

    The mean over all pairs, a picture with itself among them, as the authors compute it.
    """
    own = _mean_kernel(found, found) + _mean_kernel(reference, reference)
    return SCALE * (own - 2 * _mean_kernel(found, reference))


def _mean_kernel(a: npt.NDArray[np.floating], b: npt.NDArray[np.floating]) -> float:
    """Mean of the kernel matrix (N, M), of which ``ROWS`` are in memory."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    length_a, length_b = np.square(a).sum(axis=1), np.square(b).sum(axis=1)
    rows = np.empty(len(a))
    for start in range(0, len(a), ROWS):
        chosen = slice(start, start + ROWS)
        part = -2 * a[chosen] @ b.T
        part += length_a[chosen, None]
        part += length_b
        np.clip(part, 0, None, out=part)
        part /= -2 * SIGMA**2
        np.exp(part, out=part)
        rows[chosen] = part.sum(axis=1)
    return float(rows.sum() / (len(a) * len(b)))
