"""A model of a few small layers in diffusers' naming that fulfils the Backbone contract, and folders of pictures to train it on."""

from __future__ import annotations

import contextlib

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

WIDTH = 8
LENGTH = 12
"""Tokens of a caption."""


class Attention(nn.Module):
    def __init__(self, context):
        super().__init__()
        self.to_q, self.to_k, self.to_v = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(context, WIDTH, bias=False), nn.Linear(context, WIDTH, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(WIDTH, WIDTH), nn.Identity()])

    def forward(self, x, context):
        return self.to_out[0](F.scaled_dot_product_attention(self.to_q(x), self.to_k(context), self.to_v(context)))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm2, self.attn2 = nn.LayerNorm(WIDTH), Attention(WIDTH)

    def forward(self, x, context):
        return x + self.attn2(self.norm2(x), context)


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.proj_in, self.proj_out = nn.Conv2d(WIDTH, WIDTH, 1), nn.Conv2d(WIDTH, WIDTH, 1)
        self.transformer_blocks = nn.ModuleList([Block()])

    def forward(self, x, context):
        y = self.proj_in(x)
        tokens = self.transformer_blocks[0](y.flatten(2).transpose(1, 2), context)
        return x + self.proj_out(tokens.transpose(1, 2).reshape(y.shape))


class Resnet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.time_emb_proj, self.conv2 = nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.Linear(4, WIDTH), nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.norm1, self.dropout = nn.GroupNorm(2, WIDTH), nn.Dropout(0.5)

    def forward(self, x, time):
        return x + self.conv2(self.dropout(F.silu(self.conv1(self.norm1(x)) + self.time_emb_proj(time)[:, :, None, None])))


class Level(nn.Module):
    def __init__(self):
        super().__init__()
        self.resnets, self.attentions = nn.ModuleList([Resnet()]), nn.ModuleList([Transformer()])

    def forward(self, x, time, context):
        return self.attentions[0](self.resnets[0](x, time), context)


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv_in, self.conv_out = nn.Conv2d(4, WIDTH, 3, padding=1), nn.Conv2d(WIDTH, 4, 3, padding=1)
        self.down_blocks, self.up_blocks = nn.ModuleList([Level()]), nn.ModuleList([Level()])

    def forward(self, x, t, context):
        time = torch.stack([torch.sin(t / 50), torch.cos(t / 50), t / 1000, 1 - t / 1000], 1).float()
        x = self.conv_in(x)
        for level in [*self.down_blocks, *self.up_blocks]:
            x = level(x, time, context)
        return self.conv_out(x)


class SelfAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x):
        return self.out_proj(F.scaled_dot_product_attention(self.q_proj(x), self.k_proj(x), self.v_proj(x)))


class EncoderLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(WIDTH)
        self.self_attn, self.mlp = SelfAttention(), nn.ModuleDict({"fc1": nn.Linear(WIDTH, 2 * WIDTH), "fc2": nn.Linear(2 * WIDTH, WIDTH)})

    def forward(self, x):
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](x)))


class TextEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embeddings = Rows()
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList([EncoderLayer()])})
        self.final_layer_norm = nn.LayerNorm(WIDTH)

    def forward(self, ids):
        return self.final_layer_norm(self.encoder["layers"][0](self.embeddings(ids)))


class TextModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.text_model = TextEncoder()

    def forward(self, ids):
        return self.text_model(ids)


class Rows(nn.Embedding):
    """A table of tokens, the bytes of a text, where some rows of the answer may be others."""

    def __init__(self):
        super().__init__(256, WIDTH)
        self.others = []

    def forward(self, ids):
        rows = super().forward(ids)
        others, self.others = self.others, []
        if not others:
            return rows
        return torch.stack([row if other is None else torch.cat([row[: other[0]], other[1], row[other[0] + len(other[1]) :]])
                            for row, other in zip(rows, others, strict=True)])


class FakeBackbone:
    """The contract over these modules; it notes what it was asked."""

    base_model = "sd_v1"
    checkpoint_name = "/somewhere/private/tiny.safetensors"
    checkpoint_hash = "ab" * 32

    def __init__(self, prediction="eps"):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.unet, text = UNet(), TextModel()
        self.text_encoders = (text,)
        self.device = torch.device("cpu")
        self.prediction = prediction
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
        self.alphas_cumprod = torch.cumprod(1 - betas, 0)
        self.captions = []
        self.put_on = {}
        self.inputs = []
        self.in_training = False
        self.poison_at = None

    def encode_pictures(self, pictures, generator=None):
        return F.avg_pool2d(torch.cat([pictures, pictures.mean(1, keepdim=True)], 1), 8) + 0.01 * torch.randn(1, 4, 1, 1, generator=generator)

    def encode_captions(self, captions):
        self.captions += captions
        found = [self._find(caption.encode()) for caption in captions]
        if any(place is not None for _, place in found):
            self.table.others = [place for _, place in found]
        return self.text_encoders[0](torch.tensor([list(text.ljust(LENGTH)[:LENGTH]) for text, _ in found]))

    @property
    def table(self):
        return self.text_encoders[0].text_model.embeddings

    def _find(self, text):
        """(the text with blanks where a word's vectors go, (where they go, the vectors)); the word counts once, at the beginning of what fits."""
        for word, vectors in self.put_on.items():
            place = text.lower().find(word.lower().encode())
            if 0 <= place <= LENGTH - len(vectors["clip_l"]):
                return text[:place] + b" " * len(vectors["clip_l"]) + text[place + len(word) :], (place, vectors["clip_l"])
        return text, None

    @contextlib.contextmanager
    def words(self, vectors):
        before, self.put_on = self.put_on, {**self.put_on, **vectors}
        try:
            yield
        finally:
            self.put_on = before

    def word_rows(self, text):
        return {"clip_l": self.table.weight.detach()[list(text.encode())].clone()}

    def word_statistics(self):
        table = self.table.weight.detach()
        return {"clip_l": (table.mean(0), table.std(0), float(table.norm(dim=1).median()))}

    def predict(self, x_t, t, conditioning):
        assert self.in_training
        self.inputs.append((x_t.detach().clone(), t.clone()))
        output = self.unet(x_t, t, conditioning)
        return output * float("nan") if self.poison_at is not None and len(self.inputs) > self.poison_at else output

    def preview(self, prompt, seed, **settings):
        return torch.zeros(64, 64, 3, dtype=torch.uint8).numpy()

    @contextlib.contextmanager
    def training(self):
        self.in_training = True
        try:
            yield
        finally:
            self.in_training = False


def make_pictures(folder, count=3, size=(64, 64), captions=True):
    """Pictures of one colour each, with captions; gives the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.new("RGB", size, (60 * number, 200 - 50 * number, 90)).save(folder / f"{number}.png")
        if captions:
            (folder / f"{number}.txt").write_text(f"colour {number}, plain", encoding="utf-8")
    return folder
