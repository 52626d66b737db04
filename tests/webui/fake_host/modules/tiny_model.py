"""A model with SD 1's module tree (LDM's names and numbers of blocks), a few channels wide, and just enough of its arithmetic."""

import zlib

import torch
from torch import nn
from torch.nn import functional

from modules import sd_hijack

WIDTH, CONTEXT, TOKENS = 8, 16, 6


class ResBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.in_layers = nn.Sequential(nn.GroupNorm(2, WIDTH), nn.SiLU(), nn.Conv2d(WIDTH, WIDTH, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        self.out_layers = nn.Sequential(nn.GroupNorm(2, WIDTH), nn.SiLU(), nn.Identity(), nn.Conv2d(WIDTH, WIDTH, 3, padding=1))

    def forward(self, x, time, context):
        return x + self.out_layers(self.in_layers(x) + self.emb_layers(time)[:, :, None, None])


class Attention(nn.Module):
    def __init__(self, context):
        super().__init__()
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, WIDTH, bias=False) for width in (WIDTH, context, context))
        self.to_out = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Identity())

    def forward(self, x, context):
        weights = torch.softmax(self.to_q(x) @ self.to_k(context).transpose(1, 2), -1)
        return self.to_out(weights @ self.to_v(context))


class TransformerBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(WIDTH) for _ in range(3))
        self.attn1, self.attn2 = Attention(WIDTH), Attention(CONTEXT)
        self.ff = nn.Module()
        self.ff.net = nn.Sequential(nn.Module(), nn.Identity(), nn.Linear(WIDTH, WIDTH))
        self.ff.net[0].proj = nn.Linear(WIDTH, 2 * WIDTH)

    def forward(self, x, context):
        x = x + self.attn1(self.norm1(x), self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        value, gate = self.ff.net[0].proj(self.norm3(x)).chunk(2, -1)
        return x + self.ff.net[2](value * functional.gelu(gate))


class SpatialTransformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.GroupNorm(2, WIDTH)
        self.proj_in, self.proj_out = nn.Conv2d(WIDTH, WIDTH, 1), nn.Conv2d(WIDTH, WIDTH, 1)
        self.transformer_blocks = nn.ModuleList([TransformerBlock()])

    def forward(self, x, time, context):
        y = self.proj_in(self.norm(x))
        rows = self.transformer_blocks[0](y.flatten(2).transpose(1, 2), context)
        return x + self.proj_out(rows.transpose(1, 2).reshape(y.shape))


class Downsample(nn.Module):
    def __init__(self):
        super().__init__()
        self.op = nn.Conv2d(WIDTH, WIDTH, 3, stride=2, padding=1)

    def forward(self, x, time, context):
        return self.op(x)


class Upsample(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)

    def forward(self, x, time, context):
        return self.conv(functional.interpolate(x, scale_factor=2))


class Sequence(nn.Sequential):
    def forward(self, x, time, context):
        for part in self:
            x = part(x) if isinstance(part, nn.Conv2d) else part(x, time, context)
        return x


def blocks(letters):
    """One block for each word: r a residual block, a an attention, d and u down and up, c the first convolution."""
    parts = {"r": ResBlock, "a": SpatialTransformer, "d": Downsample, "u": Upsample, "c": lambda: nn.Conv2d(4, WIDTH, 3, padding=1)}
    return [Sequence(*(parts[letter]() for letter in word)) for word in letters.split()]


class TinyUNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.time_embed = nn.Sequential(nn.Linear(2, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        self.input_blocks = nn.ModuleList(blocks("c ra ra d ra ra d ra ra d r r"))
        self.middle_block = blocks("rar")[0]
        self.output_blocks = nn.ModuleList(blocks("r r ru ra ra rau ra ra rau ra ra ra"))
        self.out = nn.Sequential(nn.GroupNorm(2, WIDTH), nn.SiLU(), nn.Conv2d(WIDTH, 4, 3, padding=1))

    def forward(self, x, t, context):
        time = self.time_embed(torch.stack((torch.sin(t), torch.cos(t)), -1))
        kept = []
        for block in self.input_blocks:
            x = block(x, time, context)
            kept.append(x)
        x = self.middle_block(x, time, context)
        for block in self.output_blocks:
            x = block(x + kept.pop(), time, context)
        return self.out(x)


class TextLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(CONTEXT), nn.LayerNorm(CONTEXT)
        self.self_attn, self.mlp = nn.Module(), nn.Module()
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            setattr(self.self_attn, name, nn.Linear(CONTEXT, CONTEXT))
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(CONTEXT, 2 * CONTEXT), nn.Linear(2 * CONTEXT, CONTEXT)

    def forward(self, x):
        attention, y = self.self_attn, self.layer_norm1(x)
        weights = torch.softmax(attention.q_proj(y) @ attention.k_proj(y).transpose(1, 2), -1)
        x = x + attention.out_proj(weights @ attention.v_proj(y))
        return x + self.mlp.fc2(functional.gelu(self.mlp.fc1(self.layer_norm2(x))))


class Autoencoder(nn.Module):
    """Eight pixels become one cell, as they are in the mean."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.AvgPool2d(8), nn.Conv2d(3, 8, 1))
        self.quant_conv = nn.Conv2d(8, 8, 1)


class Texts(nn.Module):
    """The host's wrapper round a text encoder."""

    width = CONTEXT

    def tokenize(self, prompts):
        """A token for each word, two for those with a z: they are in no vocabulary, so that embeddings may have their names."""
        pieces = [[part for word in prompt.lower().split() for part in ((word[:3], word[3:]) if "z" in word else (word,))] for prompt in prompts]
        return [[zlib.crc32(part.encode()) % 96 + 1 for part in each] for each in pieces]

    def forward(self, prompts):
        """[B, T, CONTEXT]: T is the number of TOKENS that the longest needs, in whole multiples."""
        text = self.wrapped.transformer.text_model
        rows = [self.rows(tokens, text.embeddings.token_embedding) for tokens in self.tokenize(prompts)]
        length = max(1, *(-(-len(each) // TOKENS) for each in rows)) * TOKENS
        filling = text.embeddings.token_embedding(torch.tensor([0]))
        x = torch.stack([torch.cat([each, filling.expand(length - len(each), -1)]) for each in rows])
        for layer in text.encoder.layers:
            x = layer(x)
        return text.final_layer_norm(x)


    @staticmethod
    def rows(tokens, table):
        """The table's rows, those of embeddings in the place of their names'."""
        found, place = [torch.zeros(0, CONTEXT)], 0
        while place < len(tokens):
            embedding, length = sd_hijack.model_hijack.embedding_db.find_embedding_at_position(tokens, place)
            found.append(table(torch.tensor(tokens[place : place + 1])) if embedding is None else embedding.vec)
            place += length or 1
        return torch.cat(found)


class TinyModel(nn.Module):
    is_sdxl = is_sd3 = lowvram = False
    parameterization, scale_factor = "eps", 0.18215

    def __init__(self):
        super().__init__()
        self.model = nn.Module()
        self.model.diffusion_model = TinyUNet()
        text = nn.Module()
        text.embeddings = nn.Module()
        text.embeddings.token_embedding = nn.Embedding(97, CONTEXT)
        text.embeddings.token_embedding.textual_inversion_key, text.embeddings.token_embedding.wrapped = "clip_l", None
        text.encoder = nn.Module()
        text.encoder.layers = nn.ModuleList([TextLayer(), TextLayer()])
        text.final_layer_norm = nn.LayerNorm(CONTEXT)
        self.first_stage_model = Autoencoder()
        self.cond_stage_model = Texts()
        self.cond_stage_model.wrapped = nn.Module()
        self.cond_stage_model.wrapped.transformer = nn.Module()
        self.cond_stage_model.wrapped.transformer.text_model = text

    def get_learned_conditioning(self, prompts):
        return self.cond_stage_model(prompts)

    def apply_model(self, x, t, cond):
        return self.model.diffusion_model(x, t, cond)
