"""Networks trained in the WebUI: the same picture through our tag and through the built-in extension's own, for each kind that it knows."""

from __future__ import annotations

import json

import pytest

from .reply import distance
from .test_pictures import CHANGED, ROUNDING
from .test_training import PROMPT, config, finished, folder

__all__ = ["folder"]

RATES = {"norm": 0.1, "full": 0.002, "ia3": 0.1, "adalora": 0.1}
KINDS = {
    "lora": {"kind": "lora"},
    "locon": {"kind": "locon", "conv_rank": 2},
    "locon tucker": {"kind": "locon", "tucker": True},
    "locon rs": {"kind": "locon", "rs_lora": True},
    "locon dora": {"kind": "locon", "dora": True, "dora_on_output": False},
    "loha": {"kind": "loha"},
    "loha tucker": {"kind": "loha", "tucker": True},
    "loha dora": {"kind": "loha", "dora": True, "dora_on_output": False},
    "lokr": {"kind": "lokr", "factor": 2},
    "lokr in parts": {"kind": "lokr", "factor": 4, "decompose_both": True, "rank": 1},
    "lokr full": {"kind": "lokr", "full_matrix": True},
    "adalora": {"kind": "adalora", "init_rank": 6, "target_rank": 3},
    "full": {"kind": "full"},
    "norm": {"kind": "norm"},
    "ia3": {"kind": "ia3"},
}


@pytest.mark.webui
@pytest.mark.parametrize("name", KINDS)
def test_the_built_in_extension_makes_the_same_picture_of_a_network_trained_here(real_webui, folder, name):
    webui = real_webui
    plain = webui.picture(PROMPT, checkpoint=webui.base)
    settings = config(folder, f"trained {name}", network=KINDS[name], training={"learning_rate": RATES.get(name, 0.02), "steps": 8})
    if name == "adalora":
        del settings["network"]["rank"]
    assert finished(webui, settings)["phase"] == "done"
    webui.ask("/sdapi/v1/refresh-loras", {})
    ours, theirs = (webui.picture(f"{PROMPT} <{tag}:trained {name}:0.8>") for tag in ("lyco", "lora"))
    print(json.dumps({"kind": name, "changed": distance(ours, plain), "apart": distance(ours, theirs)}))
    assert distance(ours, plain) > CHANGED
    assert distance(ours, theirs) <= ROUNDING
