"""Which blocks and layers of a model a network acts on, and how strongly: lbw=, lbwe=, only=, except=, layers=."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from lib_lycoris.errors import RequestError, shown

from .schedule import parse_number, render_number

BLOCKS = ("BASE", *(f"IN{number:02}" for number in range(12)), "M00", *(f"OUT{number:02}" for number in range(12)))
"""The 26 blocks in order. BASE is the text encoders; the numbers are those of LDM's input and output blocks, in SD 1, SD 2 and SDXL alike."""


def _listed(count: int) -> tuple[str, ...]:
    names = {
        12: "BASE IN04 IN05 IN07 IN08 M00 OUT00 OUT01 OUT02 OUT03 OUT04 OUT05",
        17: "BASE IN01 IN02 IN04 IN05 IN07 IN08 M00 OUT03 OUT04 OUT05 OUT06 OUT07 OUT08 OUT09 OUT10 OUT11",
        20: "BASE IN00 IN01 IN02 IN03 IN04 IN05 IN06 IN07 IN08 M00 OUT00 OUT01 OUT02 OUT03 OUT04 OUT05 OUT06 OUT07 OUT08",
    }
    return BLOCKS if count == 26 else tuple(names[count].split())


VECTORS = {count: _listed(count) for count in (12, 17, 20, 26)}
"""The blocks that a vector of so many values lists: 12 for a LoRA of SDXL, 17 of SD 1 and 2, 20 for a LoCon of SDXL, 26 for all of SD 1 and 2.

Source: hako-mikan/sd-webui-lora-block-weight, scripts/lora_block_weight.py (facts)."""


def _regions(*names: str) -> str:
    """The 26 values that are 1 in these blocks and ranges of blocks, else 0."""
    chosen = {block for name in names for block in block_range(name)}
    return ",".join("1" if block in chosen else "0" for block in BLOCKS)


def block_range(text: str) -> tuple[str, ...]:
    """The blocks from one to another, in either order: "IN05-OUT05", or just one.

    Raises:
        RequestError: there is no such block.
    """
    ends = [end.strip() for end in text.split("-")]
    if len(ends) > 2 or any(end not in BLOCKS for end in ends):
        raise RequestError(f"{shown(text, 40)!r} is no block, nor a range of blocks; blocks are BASE, IN00 to IN11, M00, OUT00 to OUT11")
    first, last = sorted((BLOCKS.index(ends[0]), BLOCKS.index(ends[-1])))
    return BLOCKS[first:last + 1]


PRESETS: Mapping[str, str] = {
    "NONE": ",".join("0" * 26),
    "ALL": ",".join("1" * 26),
    "INS": _regions("BASE", "IN00-IN04"),
    "IND": _regions("BASE", "IN05-IN11"),
    "INALL": _regions("BASE", "IN00-IN11"),
    "MIDD": _regions("BASE", "IN05-OUT06"),
    "OUTD": _regions("BASE", "OUT00-OUT06"),
    "OUTS": _regions("BASE", "OUT07-OUT11"),
    "OUTALL": _regions("BASE", "OUT00-OUT11"),
    "ALL0.5": ",".join(["0.5"] * 26),
    "ATTNDEEPON": "IN05-OUT05:attn:1",
    "ATTNDEEPOFF": "IN05-OUT05:attn:0",
    "PROJDEEPOFF": "IN05-OUT05:proj:0",
}
"""Names for `lbw=` (values) and for `lbwe=` (blocks:elements:weight). On a LoRA of SD 1 they are lora-block-weight's; here they reach all 26 blocks."""


@dataclass(frozen=True)
class Element:
    """A weight for the layers of some blocks whose names hold some text; it replaces the block's own.

    Attributes:
        blocks: names; empty for all.
        not_blocks: all but these blocks.
        texts: any of these within the layer's name in LDM's words; empty for all.
        not_texts: none of these.
        weight: of the layers that are meant.
    """

    blocks: tuple[str, ...]
    not_blocks: bool
    texts: tuple[str, ...]
    not_texts: bool
    weight: float

    def matches(self, block: str, name: str) -> bool:
        """Whether the layer with this LDM-like name, in this block ("" for none), is meant."""
        if self.blocks and (block in self.blocks) == self.not_blocks:
            return False
        return not self.texts or any(text in name + block for text in self.texts) != self.not_texts


@dataclass(frozen=True)
class BlockWeights:
    """A factor for each layer of a model, by which its strength is multiplied.

    Attributes:
        preset: name of a vector that is still to be looked up; "" for none.
        vector: 12, 17, 20 or 26 values in the order of VECTORS; empty for all 1.
        x: what "X" in the preset's vector stands for.
        element_preset: name of elements that are still to be looked up; "" for none.
        elements: the last one that matches replaces the vector's factor.
        layers: (pattern, weight): the last that matches multiplies; see `pattern_matches`.
        only: patterns; where there are any, a layer that none matches gets 0.

    Raises:
        RequestError: a vector of another length.
    """

    preset: str = ""
    vector: tuple[float, ...] = ()
    x: float = 1.0
    element_preset: str = ""
    elements: tuple[Element, ...] = ()
    layers: tuple[tuple[str, float], ...] = ()
    only: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.vector and len(self.vector) not in VECTORS:
            raise RequestError(f"a block vector of {len(self.vector)} values; give 12 (SDXL LoRA), 17 (SD 1 LoRA), 20 (SDXL LoCon) or 26 (all blocks)")
        for pattern in (*self.only, *(pattern for pattern, _ in self.layers)):
            _pattern(pattern)

    def resolve(self, presets: Mapping[str, str]) -> BlockWeights:
        """The same with every name looked up.

        Raises:
            RequestError: a name is not among the presets, or a preset's text can't be read.
        """
        found = self
        if self.preset:
            found = replace(found, preset="", x=1.0, vector=parse_vector(_look_up(self.preset, presets, "lbw"), self.x))
        if self.element_preset:
            found = replace(found, element_preset="", elements=parse_elements(_look_up(self.element_preset, presets, "lbwe")))
        return found

    def factor(self, component: str, name: str) -> float:
        """The factor for a layer.

        Args:
            component: "unet", "te1" or "te2".
            name: the module's path in diffusers' naming with "_" for ".".

        Blocks that a short vector does not list get 0, and what is outside of all blocks (time and size embeddings, the last norm and convolution) 1, as
        in lora-block-weight; but where all values of the vector are one, that value holds everywhere.

        Raises:
            RequestError: a preset was not resolved.
        """
        if self.preset or self.element_preset:
            raise RequestError(f"block preset {shown(self.preset or self.element_preset, 40)!r} was not looked up; resolve it first")
        block = block_of(component, name)
        factor = self._by_vector(block)
        ldm = _ldm_like(name)
        for element in self.elements:
            if element.matches(block, ldm):
                factor = element.weight
        text = _searched(component, name)
        if self.only and not any(pattern_matches(pattern, text) for pattern in self.only):
            return 0.0
        weights = [weight for pattern, weight in self.layers if pattern_matches(pattern, text)]
        return factor * weights[-1] if weights else factor

    def idle_patterns(self, layers: Iterable[tuple[str, str]]) -> list[str]:
        """The patterns that none of these layers, each (component, name), matches."""
        texts = [_searched(*layer) for layer in layers]
        patterns = dict.fromkeys((*self.only, *(pattern for pattern, _ in self.layers)))
        return [pattern for pattern in patterns if not any(pattern_matches(pattern, text) for text in texts)]

    def _by_vector(self, block: str) -> float:
        if not self.vector:
            return 1.0
        if len(set(self.vector)) == 1:
            return self.vector[0]
        return dict(zip(VECTORS[len(self.vector)], self.vector, strict=True)).get(block, 0.0) if block else 1.0


def _searched(component: str, name: str) -> str:
    """The text of a layer in which patterns are looked for."""
    return f"{'' if component == 'unet' else 'te_'}{component}_{block_of(component, name)}_{name}"


def block_of(component: str, name: str) -> str:
    """The block of BLOCKS that a layer belongs to, or "" for none."""
    if component != "unet":
        return "BASE"
    if name.startswith("conv_in"):
        return "IN00"
    if name.startswith("mid_block"):
        return "M00"
    found = re.match(r"(down|up)_blocks_(\d+)_(resnets|attentions|downsamplers|upsamplers)_(\d+)", name)
    if not found:
        return ""
    level, kind, index = int(found[2]), found[3], int(found[4])
    if found[1] == "down":
        number = 3 * level + (3 if kind == "downsamplers" else 1 + index)
        return f"IN{number:02}"
    return f"OUT{3 * level + (2 if kind == 'upsamplers' else index):02}"


_LDM_WORDS = {"norm1": "in_layers_0", "conv1": "in_layers_2", "time_emb_proj": "emb_layers_1", "norm2": "out_layers_0", "conv2": "out_layers_3",
              "conv_shortcut": "skip_connection"}


def _ldm_like(name: str) -> str:
    """The name with a residual block's parts in LDM's words, where elements are looked for; the rest of the two namings agrees in what matters."""
    head, middle, rest = name.partition("_resnets_")
    number, _, part = rest.partition("_")
    return f"{head}{middle}{number}_{_LDM_WORDS.get(part, part)}" if middle else name


def pattern_matches(pattern: str, text: str) -> bool:
    """Whether whole words of a layer's text (words end at "_") are what the pattern says; * is any text and ? any letter.

    The text is component, block and name: unet_IN04_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k, or te_te1_BASE_text_model_…
    """
    return fnmatchcase(f"_{text}_", f"*_{pattern}_*")


def read_patterns(text: str) -> tuple[str, ...]:
    """The patterns in a list with "," between; "." counts as "_".

    Raises:
        RequestError: one is empty or holds a letter that no layer's name has.
    """
    return tuple(_pattern(entry) for entry in text.split(","))


def read_layers(text: str) -> tuple[tuple[str, float], ...]:
    """The pairs in a list like "attn2=0.5,ff=0".

    Raises:
        RequestError: an entry is no pattern with a weight.
    """
    pairs = [entry.partition("=") for entry in text.split(",")]
    if not all(equals for _, equals, _ in pairs):
        raise RequestError(f"{shown(text, 60)!r} is no list of layers and weights; write layers=attn2=0.5,ff=0")
    return tuple((_pattern(pattern), parse_number(weight)) for pattern, _, weight in pairs)


def _pattern(text: str) -> str:
    pattern = text.strip().replace(".", "_")
    if not re.fullmatch(r"[\w*?]+", pattern):
        raise RequestError(f"{shown(text, 40)!r} is no pattern for layers; write words of their names, like attn2, down_blocks_1, IN04 or conv*")
    return pattern


def parse_vector(text: str, x: float = 1.0) -> tuple[float, ...]:
    """The values of a block vector.

    Args:
        text: values with "," between them; X, X+0.1 and X-0.1 stand for `x` and what is added.

    Raises:
        RequestError: a value is none, or there are not 12, 17, 20 or 26.
    """
    values = tuple(_value(entry.strip(), x) for entry in text.split(","))
    return BlockWeights(vector=values).vector


def _value(entry: str, x: float) -> float:
    if entry in ("R", "U"):
        raise RequestError(f"the random block value {entry} is not supported: no seed would bring the picture back; write a number")
    if entry.startswith("X"):
        return x + (parse_number(entry[1:]) if entry[1:] else 0.0)
    return parse_number(entry)


def parse_elements(text: str) -> tuple[Element, ...]:
    """The elements in a text "blocks:elements:weight", several with "," or a new line between them.

    Blocks and elements are lists with blanks between; blocks may be ranges; a list that begins with NOT means all others; an empty one means all.

    Raises:
        RequestError: it is none.
    """
    return tuple(_parse_element(entry) for entry in re.split(r"[,\n]", text) if entry.strip())


def _parse_element(text: str) -> Element:
    parts = text.split(":")
    if len(parts) != 3:
        raise RequestError(f"{shown(text, 60)!r} is no blocks:elements:weight; write it in quotes: lbwe=\"IN05-OUT05:attn:0\"")
    not_blocks, blocks = _negated(parts[0])
    not_texts, texts = _negated(parts[1])
    return Element(tuple(block for part in blocks for block in block_range(part)), not_blocks, tuple(texts), not_texts, parse_number(parts[2]))


def _negated(text: str) -> tuple[bool, list[str]]:
    words = text.split()
    return (True, words[1:]) if words[:1] == ["NOT"] and len(words) > 1 else (False, words)


def render_elements(elements: tuple[Element, ...]) -> str:
    """The text that parses to these elements."""
    return ",".join(":".join((_with_not(element.not_blocks, element.blocks), _with_not(element.not_texts, element.texts), render_number(element.weight)))
                    for element in elements)


def _with_not(negated: bool, words: tuple[str, ...]) -> str:
    return " ".join(("NOT", *words) if negated else words)


def parse_blocks(text: str, presets: Mapping[str, str] = PRESETS) -> BlockWeights:
    """The block weights of a vector or of a preset's name, ready for `factor`.

    Raises:
        RequestError: the text is neither.
    """
    return read_blocks(text).resolve(presets)


def read_blocks(text: str, x: float = 1.0) -> BlockWeights:
    """The block weights of what stands after lbw=: a vector, or a name that is looked up later.

    Raises:
        RequestError: the text is neither.
    """
    text = text.strip()
    if re.fullmatch(r"[^\W\d][^,:<>=\"]*", text) and text not in ("R", "U", "X"):
        return BlockWeights(preset=text, x=x)
    return BlockWeights(vector=parse_vector(text, x))


def parse_presets(text: str) -> dict[str, str]:
    """A user's presets: a line each, NAME:values for lbw= or NAME:blocks:elements:weight for lbwe=; "#" begins a remark.

    Raises:
        RequestError: a line is neither; the message names it.
    """
    found = {}
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.partition("#")[0].strip()
        if not line:
            continue
        name, colon, value = (part.strip() for part in line.partition(":"))
        try:
            if not colon or read_blocks(name).preset != name:
                raise RequestError("a preset is NAME:values, and the name begins with a letter")
            _ = parse_elements(value) if ":" in value else parse_vector(value)
        except RequestError as error:
            raise RequestError(f"line {number} of the block presets, {shown(line, 60)!r}: {error}") from None
        found[name] = value
    return found


def _look_up(name: str, presets: Mapping[str, str], argument: str) -> str:
    known = {key: text for key, text in presets.items() if (":" in text) == (argument == "lbwe")}
    if name not in known:
        raise RequestError(f"block preset {argument}={shown(name, 40)!r} is not known; known are {', '.join(known) or 'none'}, or write the values")
    return known[name]
