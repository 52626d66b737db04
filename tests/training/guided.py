"""A small UNet in LDM's naming with the places that adapters' maps go to, and pictures whose control pictures tell what the captions don't."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from ..patching.trees import CONTEXT, SD1, SDXL, LdmUNet
from .fake import FakeBackbone


class GuidedBackbone(FakeBackbone):
    """FakeBackbone over a tree with all of SD's or SDXL's blocks."""

    def __init__(self, prediction="eps", layout="sd"):
        super().__init__(prediction)
        self.layout, self.base_model = layout, {"sd": "sd_v1", "sdxl": "sdxl_base_v1-0"}[layout]
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.unet = LdmUNet(**{"sd": SD1, "sdxl": SDXL}[layout]).eval()

    def predict(self, x_t, t, conditioning):
        assert self.in_training
        more = (torch.zeros(len(x_t), SDXL["vector"]),) if self.layout == "sdxl" else ()
        output = self.unet(x_t, t, conditioning[..., :CONTEXT], *more)
        self.inputs.append((x_t.detach().clone(), t.clone()))
        return output * float("nan") if self.poison_at is not None and len(self.inputs) > self.poison_at else output

    def preview(self, prompt, seed, width=64, height=64, **settings):
        """The UNet's answer to fixed noise, as a picture."""
        noise = torch.randn(1, 4, height // 8, width // 8, generator=torch.Generator().manual_seed(seed))
        before, self.in_training = self.in_training, True
        answer = self.predict(noise, torch.tensor([500]), self.encode_captions([prompt]))
        self.in_training = before
        return (answer[0, :3].permute(1, 2, 0) * 40 + 128).clamp(0, 255).to(torch.uint8).numpy().repeat(8, 0).repeat(8, 1)


def make_guided_pictures(folder, count=4, size=(64, 64)):
    """Pictures that are bright on one side, with control pictures that say on which; the captions do not. Gives the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        bright = np.zeros((size[1], size[0], 3), np.uint8)
        bright[:, : size[0] // 2] = 255
        bright = bright[:, ::-1] if number % 2 else bright
        Image.fromarray(np.ascontiguousarray(bright)).save(folder / f"{number}.cond.png")
        Image.fromarray(np.ascontiguousarray(bright // 2 + 10 * (number + 1))).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a wall, {number}", encoding="utf-8")
    return folder
