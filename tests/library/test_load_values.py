from __future__ import annotations

import pytest
import torch

from lib_lycoris.errors import NetworkFileError
from lib_lycoris.files.safetensors import write_tensors
from lib_lycoris.library.load import open_network

NAMES = [f"lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_{part}" for part in ("to_k", "to_q")]


@pytest.mark.parametrize(
    ("tensors", "damage"),
    [
        ({"weight": torch.zeros(320), "on_input": torch.tensor(0)}, {"on_input": torch.tensor(7)}),
        ({"oft_blocks": torch.zeros(4, 80, 80)}, {"oft_blocks": torch.full((4, 80, 80), 1e6)}),
        ({"oft_R.weight": torch.zeros(80, 6)}, {"oft_R.weight": torch.full((80, 6), -1e6)}),
        ({name: torch.ones(size) for name, size in {"lora_A": (4, 320), "lora_B": (320, 4), "lora_E": (4, 1), "ranknum": (1,)}.items()}, {}),
    ],
)
def test_a_damaged_value_is_told_at_opening_also_behind_a_sound_layer_of_the_same_shapes(tensors, damage, tmp_path):
    sound, damaged = ({"ranknum": torch.tensor([4.0])} if "ranknum" in tensors else {}), damage or {"ranknum": torch.tensor([2.0])}
    path = tmp_path / "a.safetensors"
    named = [(NAMES[0], {**tensors, **sound}), (NAMES[1], {**tensors, **damaged})]
    write_tensors(path, {f"{module}.{name}": tensor for module, held in named for name, tensor in held.items()}, {})
    with pytest.raises(NetworkFileError, match=NAMES[1]):
        open_network(path)
