"""Two networks beside each other: what they share, how strong each is in a block, and how much they pull the same way."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from lib_lycoris.networks.layer import Layer
from lib_lycoris.tools.inspect import Report, report_on
from lib_lycoris.tools.names import Key, block_name, block_order
from lib_lycoris.tools.products import dense_delta, dense_shape, exact_product, only_bias
from lib_lycoris.tools.source import layers_by_target, open_source

OnStep = Callable[[int, int], None]
_TOLD = ("ss_sd_model_name", "ss_resolution", "ss_num_train_images", "ss_steps", "ss_learning_rate", "ss_unet_lr", "ss_text_encoder_lr", "ss_optimizer",
         "ss_lr_scheduler", "ss_clip_skip", "ss_seed", "ss_network_alpha")


@dataclass(frozen=True)
class Comparison:
    """Two networks in plain values.

    Attributes:
        first, second: the reports on each.
        common: layers that both have; only_first, only_second: that one has.
        alikeness: by block the cosine between both ΔW, all layers of the block as one vector: 1 the same way, 0 nothing in common, -1 opposite;
            None where a ΔW needs the base weight, or one of them is nothing.
        training: settings of the training that differ, {key: (first's, second's)}.
    """

    first: Report
    second: Report
    common: int
    only_first: int
    only_second: int
    alikeness: dict[str, float | None]
    training: dict[str, tuple[str, str]]

    def as_json(self) -> dict[str, object]:
        """All of it; each report without its metadata and per-layer lists."""
        left_out = ("metadata", "ranks", "alphas", "tags", "training")
        brief = [{key: value for key, value in report.as_json().items() if key not in left_out} for report in (self.first, self.second)]
        ranks = [Counter(report.ranks.values()).most_common(1) for report in (self.first, self.second)]
        for each, common in zip(brief, ranks, strict=True):
            each["rank"] = common[0][0] if common else None
        return {"first": brief[0], "second": brief[1], "common": self.common, "only_first": self.only_first, "only_second": self.only_second,
                "alikeness": self.alikeness, "training": {key: list(pair) for key, pair in self.training.items()}}


def compare(first: str | os.PathLike[str], second: str | os.PathLike[str], on_step: OnStep | None = None) -> Comparison:
    """Two network files beside each other.

    Args:
        first, second: files or PEFT folders.
        on_step: told how much is done.

    Raises:
        NetworkFileError: one can't be used.
    """
    networks = open_source(first), open_source(second)
    layers = [layers_by_target(network) for network in networks]
    shared = [key for key in layers[0] if key in layers[1]]
    total = len(layers[0]) + len(layers[1]) + len(shared)
    told = _Told(on_step, total)
    reports = [report_on(network, told.part()) for network in networks]
    alike = _alikeness({key: (layers[0][key], layers[1][key]) for key in shared}, reports, told.part())
    metadata = [network.metadata for network in networks]
    training = {key: pair for key in _TOLD if (pair := (metadata[0].get(key, "–"), metadata[1].get(key, "–")))[0] != pair[1]}
    return Comparison(*reports, len(shared), len(layers[0]) - len(shared), len(layers[1]) - len(shared), alike, training)


class _Told:
    """One count over several stretches of work."""

    def __init__(self, on_step: OnStep | None, total: int) -> None:
        self._on_step, self._total, self._done = on_step, total, 0

    def part(self) -> OnStep:
        def tell(done: int, total: int) -> None:
            self._done += 1
            if self._on_step is not None:
                self._on_step(self._done, self._total)

        return tell


def _alikeness(pairs: dict[Key, tuple[Layer, Layer]], reports: list[Report], on_step: OnStep) -> dict[str, float | None]:
    products: dict[str, float | None] = {}
    for place, (key, (left, right)) in enumerate(pairs.items(), start=1):
        block, product = block_name(key), inner_product(left, right)
        before = products.get(block, 0.0)
        products[block] = None if product is None or before is None else before + product
        on_step(place, len(pairs))
    return {block: _cosine(products[block], *(report.norms.get(block) for report in reports)) for block in sorted(products, key=block_order)}


def _cosine(product: float | None, left: float | None, right: float | None) -> float | None:
    return product / (left * right) if product is not None and left and right else None


def inner_product(left: Layer, right: Layer) -> float | None:
    """⟨ΔWₗ, ΔWᵣ⟩ (Frobenius) at strength 1; 0 for layers of different shapes; None where one needs the base weight.

    For ΔW = U·D it is the sum over (Uₗᵀ·Uᵣ) ∘ (Dₗ·Dᵣᵀ), so that no dense matrix is made.
    """
    if getattr(left, "weight_dependent", False) or getattr(right, "weight_dependent", False):
        return None
    products = exact_product(left), exact_product(right)
    if products[0] is not None and products[1] is not None:
        (up, down), (other_up, other_down) = products
        if up.shape[0] != other_up.shape[0] or down.shape[1] != other_down.shape[1]:
            return 0.0
        return float(((up.double().T @ other_up.double()) * (down.double() @ other_down.double().T)).sum())
    if not _has_delta(left) or not _has_delta(right):
        return 0.0
    deltas = [dense_delta(layer, "") for layer in (left, right)]
    if math.prod(deltas[0].shape) != math.prod(deltas[1].shape):
        return 0.0
    return float((deltas[0].double().flatten() * deltas[1].double().flatten()).sum())


def _has_delta(layer: Layer) -> bool:
    return not only_bias(layer) and dense_shape(layer) is not None
