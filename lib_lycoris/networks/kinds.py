"""The ordered table of kinds: by which parameter names each is recognised, and who builds it. A new kind is a new file and a row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from lib_lycoris.errors import NetworkFileError, shown
from lib_lycoris.functional.finite import is_finite
from lib_lycoris.networks import embedding, full, loha, lokr, low_rank, norm, sparse
from lib_lycoris.networks.hints import NONE, Hints
from lib_lycoris.networks.layer import Layer


@dataclass(frozen=True)
class Kind:
    """One row of the table.

    Attributes:
        title: the kind's name for users.
        marks: the names of parameters of which any gives it away.
        build: from a layer's name, its tensors and hints to the layer; None: known, but not supported yet.
        others: the names of its other parameters.
    """

    title: str
    marks: tuple[str, ...]
    build: Callable[[str, Mapping[str, Tensor], Hints], Layer] | None = None
    others: tuple[str, ...] = ()


# The first row with a mark among a layer's parameters wins: a decomposition (DoRA) stands before what it decomposes, AdaLoRA's third factor before LoRA.
KINDS = (
    Kind("DoRA", ("dora_scale", "lora_magnitude_vector")),
    Kind("AdaLoRA", ("lora_E", "ranknum")),
    Kind("an embedding LoRA", embedding.MARKS, embedding.build),
    Kind("a LoRA extracted with sparse values", sparse.MARKS, sparse.build),
    Kind("LoHa", loha.MARKS, loha.build),
    Kind("LoKr", lokr.MARKS, lokr.build, ("lokr_t1",)),
    Kind("GLoRA", ("a1.weight", "a2.weight", "b1.weight", "b2.weight"), others=("bm.weight",)),
    Kind("BOFT", ("boft_R", "boft_s")),
    Kind("OFT", ("oft_blocks", "oft_diag", "oft_R.weight"), others=("rescale", "oft_R.scaled_oft")),
    Kind("(IA)³", ("on_input", "ia3_l")),
    Kind("a norm network", norm.MARKS, norm.build),
    Kind("a full difference", full.MARKS, full.build),
    Kind("LoRA", low_rank.MARKS, low_rank.build),
)

_PARAMETERS = {"alpha", "scale", *(name for kind in KINDS for name in (*kind.marks, *kind.others))}


def is_parameter(name: str) -> bool:
    """Whether some kind has a parameter of this name."""
    return name in _PARAMETERS


def build_layer(name: str, tensors: Mapping[str, Tensor], hints: Hints = NONE) -> Layer:
    """The layer that `tensors` (by parameter name, as kohya and LyCORIS spell it) and `hints` describe; `name` is for messages alone.

    Raises:
        NetworkFileError: no kind has such parameters, the kind is not supported yet, values are not finite, or shapes don't fit each other.
    """
    kind = _recognise(name, tensors)
    if kind.build is None:
        marks = [mark for mark in kind.marks if mark in tensors]
        raise NetworkFileError(f"layer {shown(name)} is {kind.title} ({marks[0]} …), which is not supported yet; convert the file to LoRA or LoCon first")
    for parameter, tensor in tensors.items():
        if parameter in ("alpha", "scale") and tensor.numel() != 1:
            raise NetworkFileError(f"layer {shown(name)}: {parameter} has {tensor.numel()} values instead of one; the file is damaged, get it again")
        if not is_finite(tensor):
            raise NetworkFileError(f"layer {shown(name)}: {parameter} holds values that are not finite (NaN or infinite); train it again at a lower rate")
    return kind.build(name, tensors, hints)


def _recognise(name: str, tensors: Mapping[str, Tensor]) -> Kind:
    for kind in KINDS:
        if any(mark in tensors for mark in kind.marks):
            return kind
    held = ", ".join(shown(parameter, 40) for parameter in list(tensors)[:5])
    raise NetworkFileError(f"layer {shown(name)} has only {held}: no known kind of network, or an incomplete file; get it again")
