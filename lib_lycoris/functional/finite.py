"""Whether numbers are numbers."""

from __future__ import annotations

import torch
from torch import Tensor


def is_finite(tensor: Tensor) -> bool:
    """True when no value of `tensor` is NaN or infinite.

    One pass without a mask in memory: a sum carries every NaN and infinity with it. Only where the sum itself is not finite (which finite values can bring
    about by overflow) every value is looked at.
    """
    if not tensor.is_floating_point():
        return True
    if tensor.element_size() == 1:  # torch has no sum over 8-bit floats
        tensor = tensor.float()
    total = tensor.sum(dtype=torch.promote_types(tensor.dtype, torch.float32))
    return bool(torch.isfinite(total)) or bool(torch.isfinite(tensor).all())
