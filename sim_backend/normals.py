"""Normal random numbers from raw bits, for many streams at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from testbed.core.types import F32

_STEP = np.float32(2.0**-32)


def normals(bits: NDArray[np.uint32]) -> F32:
    """Return (…, n) standard normal numbers from as many random words (…, n), n even.

    Box and Muller's transform (Ann. Math. Stat. 29, 1958) in single precision: the first half of each row gives the
    distances from the origin, the second half the angles; the result has the first coordinates, then the second ones.
    With n words, generators take two to five times as long, because they reject some and go word by word.
    """
    half = bits.shape[-1] // 2
    out = np.empty(bits.shape, np.float32)
    first, second = out[..., :half], out[..., half:]
    distance = bits[..., :half].astype(np.float32)
    distance += np.float32(0.5)  # its logarithm must be finite
    distance *= _STEP
    np.log(distance, out=distance)
    distance *= np.float32(-2.0)
    np.sqrt(distance, out=distance)
    angle = bits[..., half:].astype(np.float32)
    angle *= np.float32(2 * np.pi) * _STEP
    np.cos(angle, out=first)
    np.sin(angle, out=second)
    first *= distance
    second *= distance
    return out
