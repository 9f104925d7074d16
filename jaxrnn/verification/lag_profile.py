"""Fit a gradient by the parts of the exact gradient at each time lag."""

import numpy as np

from jaxrnn.tree import length
from jaxrnn.verification.report import LagProfile

# A coefficient that rounding alone may have moved by more than this is not shown.
UNSURE = 1e-3


def lag_profile(name: str, g: np.ndarray, parts: np.ndarray, rounding: float) -> LagProfile:
    """Fit a leaf's gradient by least squares on its parts.

    Args:
        name: the leaf's.
        g: somebody's gradient of it.
        parts: G_k, with a leading K.
        rounding: the relative error that g may have from rounding alone.
    """
    lags, unit = len(parts), length(g) or 1.0
    g, columns = g.reshape(-1) / unit, parts.reshape(lags, -1).T / unit
    sizes = np.linalg.norm(columns, axis=0)
    seen = sizes > 0
    u, s, vt = np.linalg.svd(columns[:, seen] / sizes[seen], full_matrices=False)
    solid = s > 1e-10 * s.max(initial=0.0)
    u, s, vt = u[:, solid], s[solid], vt[solid]
    inner = u.T @ g
    residual = float(np.linalg.norm(g - u @ inner))
    coefficients = np.full(lags, np.nan)
    coefficients[seen] = (vt.T @ (inner / s)) / sizes[seen]
    moved = np.sqrt(np.square(vt / s[:, None]).sum(0)) * rounding / sizes[seen]
    undetermined = 1 - np.square(vt).sum(0) > 1e-6
    coefficients[np.flatnonzero(seen)[(moved > UNSURE) | undetermined]] = np.nan
    return LagProfile(name, tuple(map(float, coefficients)), residual)
