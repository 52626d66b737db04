"""Where and in what the model computes."""

import torch

cpu = device = device_interrogate = torch.device("cpu")
dtype = torch.float32


def torch_gc():
    """Nothing to collect on a CPU."""
