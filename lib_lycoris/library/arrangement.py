"""A file's keys put in order: which module each belongs to, as what, and where that module stands in a model."""

from __future__ import annotations

from dataclasses import dataclass, field

from lib_lycoris.files.cloneofsimo import is_numbered, place_tensors
from lib_lycoris.files.keys import split_key
from lib_lycoris.files.reader import TensorFile
from lib_lycoris.files.spelling import normal_name
from lib_lycoris.networks.kinds import KINDS, is_parameter

BUNDLE = "bundle_emb."
_EMBED_FLAG = "<embed>"

_MARKS = frozenset(mark for kind in KINDS for mark in kind.marks)
# A LoRA of loralib's, which spells its factors as its AdaLoRA does, without "weight".
_LORALIB = {"lora_A": "lora_down.weight", "lora_B": "lora_up.weight"}


@dataclass
class Arrangement:
    """A file's keys by module.

    Attributes:
        layers: {module path as the file spells it: {parameter as kohya spells it: key}}, of those modules alone that some kind of network recognises.
        homes: by module path the (component, name) in diffusers' words.
        unused: keys that are no layer's.
        embeddings: {a packed embedding's name: {part: key}}; these keys are among the unused.
    """

    layers: dict[str, dict[str, str]] = field(default_factory=dict)
    homes: dict[str, tuple[str, str]] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)
    embeddings: dict[str, dict[str, str]] = field(default_factory=dict)


def arrange(file: TensorFile) -> Arrangement:
    """The file's keys by module.

    Raises:
        NetworkFileError: a numbered file (cloneofsimo's) fits no order that is known.
    """
    arranged = Arrangement()
    numbered = place_tensors(file.shapes, file.metadata) if is_numbered(file.names) else {}
    for key in file.names:
        place = numbered.get(key)
        parts = place[:2] if place else None if numbered else split_key(key)
        taken = arranged.layers.setdefault(parts[0], {}) if parts else {}
        # a raw dump may hold several adapters of one layer: the first counts
        if parts is None or not is_parameter(parts[1]) or parts[1] in taken:
            arranged.unused.append(key)
            _note_embedding(arranged, file, key)
            continue
        taken[parts[1]] = key
        if place:
            arranged.homes[place.module] = place.home
    _keep_known(arranged)
    for module in arranged.layers:
        if module not in arranged.homes:
            arranged.homes[module] = normal_name(module)
    return arranged


def _keep_known(arranged: Arrangement) -> None:
    for module, parameters in list(arranged.layers.items()):
        if parameters.keys() & _LORALIB.keys() and not parameters.keys() & {"lora_E", "ranknum"}:
            parameters = arranged.layers[module] = {_LORALIB.get(name, name): key for name, key in parameters.items()}
        if _MARKS.isdisjoint(parameters):
            arranged.unused.extend(parameters.values())
            del arranged.layers[module]


def _note_embedding(arranged: Arrangement, file: TensorFile, key: str) -> None:
    if key.startswith(BUNDLE):
        name, _, part = key[len(BUNDLE) :].partition(".")
        arranged.embeddings.setdefault(name, {})[part] = key
    elif file.metadata.get(key) == _EMBED_FLAG:  # cloneofsimo's
        arranged.embeddings.setdefault(key, {})["emb_params"] = key
