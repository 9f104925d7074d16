"""The fit of a gradient by the parts of the exact gradient at each time lag."""

import numpy as np

from jaxrnn.tree import length
from jaxrnn.verification.report import LagProfile

# A coefficient that rounding alone may have changed by more than this is not shown.
UNSURE = 1e-3


def lag_profile(name: str, g: np.ndarray, parts: np.ndarray, rounding: float) -> LagProfile:
    """Compute the least-squares fit g ≈ Σ_k c_k G_k of one leaf.

    Args:
        name: the name of the leaf.
        g: the candidate's gradient of the leaf.
        parts: the parts G_k of the exact gradient, with a leading axis of lags.
        rounding: the relative error that g may have from rounding alone.
    """
    lags, unit = len(parts), length(g) or 1.0
    g, columns = g.reshape(-1) / unit, parts.reshape(lags, -1).T / unit
    sizes = np.linalg.norm(columns, axis=0)
    nonzero = sizes > 0
    u, s, vt = np.linalg.svd(columns[:, nonzero] / sizes[nonzero], full_matrices=False)
    large = s > 1e-10 * s.max(initial=0.0)
    u, s, vt = u[:, large], s[large], vt[large]
    inner = u.T @ g
    residual = float(np.linalg.norm(g - u @ inner))
    coefficients = np.full(lags, np.nan)
    coefficients[nonzero] = (vt.T @ (inner / s)) / sizes[nonzero]
    uncertainty = np.sqrt(np.square(vt / s[:, None]).sum(0)) * rounding / sizes[nonzero]
    undetermined = 1 - np.square(vt).sum(0) > 1e-6
    coefficients[np.flatnonzero(nonzero)[(uncertainty > UNSURE) | undetermined]] = np.nan
    return LagProfile(name, tuple(map(float, coefficients)), residual)
