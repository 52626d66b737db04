"""The ordered table of kinds: by which parameter names each is recognised, and who builds it. A new kind is a new file and a row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from lib_lycoris.errors import NetworkFileError, shown
from lib_lycoris.functional.finite import is_finite
from lib_lycoris.networks import adalora, boft, dora, embedding, full, glora, ia3, loha, lokr, low_rank, norm, oft, oft_v2, sparse
from lib_lycoris.networks.hints import NONE, Hints
from lib_lycoris.networks.layer import Layer


@dataclass(frozen=True)
class Kind:
    """One row of the table.

    Attributes:
        title: the kind's name for users.
        marks: the names of parameters of which any gives it away.
        build: from a layer's name, its tensors and hints to the layer.
        others: the names of its other parameters.
    """

    title: str
    marks: tuple[str, ...]
    build: Callable[[str, Mapping[str, Tensor], Hints], Layer]
    others: tuple[str, ...] = ()


def _build_decomposed(name: str, tensors: Mapping[str, Tensor], hints: Hints) -> Layer:
    rest = {part: tensor for part, tensor in tensors.items() if part not in dora.MARKS}
    if rest.keys() <= {"alpha", "scale"}:
        raise NetworkFileError(f"layer {shown(name)} has {', '.join(tensors)} without what it decomposes: the file is incomplete; get it again")
    return dora.build(name, tensors, _recognise(name, rest).build(name, rest, hints))


# The first row with a mark among a layer's parameters wins: a decomposition (DoRA) stands before what it decomposes, AdaLoRA's third factor before LoRA.
KINDS = (
    Kind("DoRA", dora.MARKS, _build_decomposed),
    Kind("AdaLoRA", adalora.MARKS, adalora.build, adalora.OTHERS),
    Kind("an embedding LoRA", embedding.MARKS, embedding.build),
    Kind("a LoRA extracted with sparse values", sparse.MARKS, sparse.build),
    Kind("LoHa", loha.MARKS, loha.build),
    Kind("LoKr", lokr.MARKS, lokr.build, ("lokr_t1",)),
    Kind("GLoRA", glora.MARKS, glora.build, glora.OTHERS),
    Kind("BOFT", boft.MARKS, boft.build_on_inputs),
    Kind("OFT", oft.MARKS, oft.build, oft.OTHERS),
    Kind("OFTv2", oft_v2.MARKS, oft_v2.build, oft_v2.OTHERS),
    Kind("(IA)³", ia3.MARKS, ia3.build, ia3.OTHERS),
    Kind("a norm network", norm.MARKS, norm.build),
    Kind("a full difference", full.MARKS, full.build),
    Kind("LoRA", low_rank.MARKS, low_rank.build),
)

_PARAMETERS = {"alpha", "scale", *(name for kind in KINDS for name in (*kind.marks, *kind.others))}


# Parameters whose values, not only shapes, decide whether a layer can be built.
_TOLD_BY_VALUE = {"on_input", "ranknum", "oft_blocks", "oft_diag", "oft_R.weight", "boft_R"}


def is_told_by_value(names: Iterable[str]) -> bool:
    """Whether a layer of these parameters can be refused for a value: what fits one such layer may not fit another of the same shapes."""
    return not _TOLD_BY_VALUE.isdisjoint(names)


def is_parameter(name: str) -> bool:
    """Whether some kind has a parameter of this name."""
    return name in _PARAMETERS


def build_layer(name: str, tensors: Mapping[str, Tensor], hints: Hints = NONE, checked: bool = False) -> Layer:
    """The layer that `tensors` (by parameter name, as kohya and LyCORIS spell it) and `hints` describe.

    `name` is for messages, and its spelling tells OneTrainer's OFT of convolutions from PEFT's. `checked`: whoever read the
    tensors has looked for values that are not finite, and it need not be done again.

    Raises:
        NetworkFileError: no kind has such parameters, values are not finite, or shapes don't fit each other.
    """
    for parameter, tensor in tensors.items():
        if parameter in ("alpha", "scale") and tensor.numel() != 1:
            raise NetworkFileError(f"layer {shown(name)}: {parameter} has {tensor.numel()} values instead of one; the file is damaged, get it again")
        if not checked and not is_finite(tensor):
            raise NetworkFileError(f"layer {shown(name)}: {parameter} holds values that are not finite (NaN or infinite); train it again at a lower rate")
    return _recognise(name, tensors).build(name, tensors, hints)


def _recognise(name: str, tensors: Mapping[str, Tensor]) -> Kind:
    for kind in KINDS:
        if any(mark in tensors for mark in kind.marks):
            return kind
    held = ", ".join(shown(parameter, 40) for parameter in list(tensors)[:5])
    raise NetworkFileError(f"layer {shown(name)} has only {held}: no known kind of network, or an incomplete file; get it again")
