"""Laws of every kind of network layer. A new kind adds its rows to EXAMPLES (or VECTORS); a kind that can be trained, one to FRESH."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lib_lycoris.errors import ConfigError, NetworkFileError
from lib_lycoris.files.safetensors import read_tensors, write_tensors
from lib_lycoris.networks.adalora import AdaLoRALayer
from lib_lycoris.networks.dora import DecomposedLayer
from lib_lycoris.networks.full import FullLayer
from lib_lycoris.networks.ia3 import IA3Layer
from lib_lycoris.networks.kinds import KINDS, build_layer
from lib_lycoris.networks.layer import Layer
from lib_lycoris.networks.loha import LohaLayer
from lib_lycoris.networks.lokr import LokrLayer
from lib_lycoris.networks.low_rank import LowRankLayer
from lib_lycoris.networks.norm import NormLayer

from . import examples
from . import examples_on_weights as on_weights

Tensors = dict[str, Tensor]

# What a file may hold for a weight of a shape, (shape, rank) → tensors: {name of the form: maker}
EXAMPLES: dict[str, Callable[[tuple[int, ...], int], Tensors]] = {
    "lora": examples.lora,
    "lora, Tucker": examples.lora_tucker,
    "lora, with bias": examples.lora_with_bias,
    "lora, with sparse values": examples.lora_with_sparse_values,
    "loha": examples.loha,
    "loha, 4-D": examples.loha_tall,
    "loha, Tucker": examples.loha_tucker,
    "lokr": examples.lokr,
    "lokr, w1 in parts": examples.lokr_both_in_parts,
    "lokr, both whole": examples.lokr_whole,
    "lokr, both whole, flat": examples.lokr_whole_flat,
    "lokr, Tucker": examples.lokr_tucker,
    "full": examples.full,
    "full, with bias": examples.full_with_bias,
    "full, bias alone": examples.full_bias_alone,
    "full, replacing": examples.full_replacing,
    "adalora": on_weights.adalora,
    "adalora, pruned": on_weights.adalora_pruned,
    "ia3, outputs": on_weights.ia3_on_outputs,
    "ia3, inputs": on_weights.ia3_on_inputs,
    "ia3, PEFT": on_weights.ia3_peft,
    "ia3, PEFT, feed-forward": on_weights.ia3_peft_feedforward,
    "glora": on_weights.glora,
    "glora, Tucker": on_weights.glora_tucker,
    "glora, old": on_weights.glora_old,
    "oft": on_weights.oft,
    "oft, constrained": on_weights.oft_constrained,
    "oft, rescaled": on_weights.oft_rescaled,
    "oft, rotation itself": on_weights.oft_rotation,
    "oft of inputs": on_weights.oft_v2,
    "oft of inputs, shared": on_weights.oft_v2_shared,
    "oft of inputs, scaled": on_weights.oft_v2_scaled,
    "boft": on_weights.boft,
    "boft, constrained and rescaled": on_weights.boft_constrained_and_rescaled,
    "boft, PEFT": on_weights.boft_peft,
    "dora, outputs": on_weights.dora_on_outputs,
    "dora, inputs": on_weights.dora_on_inputs,
    "dora, PEFT": on_weights.dora_peft,
    "dora, with bias": on_weights.dora_with_bias,
}
# The same for the weight of a normalisation, of one dimension
VECTORS: dict[str, Callable[[tuple[int, ...], int], Tensors]] = {
    "norm": examples.norm,
    "norm, weight alone": examples.norm_weight_alone,
    "norm, bias alone": examples.norm_bias_alone,
    "full": examples.full,
    "full, with bias": examples.full_with_bias,
    "full, replacing": examples.full_replacing,
}
# What is tested elsewhere: an embedding table is no layer of these
OTHERS = ("lora_embedding_A", "lora_embedding_B")
FRESH: dict[str, Callable[..., nn.Module]] = {
    "lora": LowRankLayer.create,
    "loha": LohaLayer.create,
    "loha, Tucker": lambda *arguments: LohaLayer.create(*arguments, tucker=True),
    "lokr": LokrLayer.create,
    "lokr, small factors of 2": lambda *arguments: LokrLayer.create(*arguments, factor=2),
    "lokr, both in parts": lambda target, rank, alpha: LokrLayer.create(target, 1, alpha, decompose_both=True, tucker=True),
    "lokr, whole": lambda *arguments: LokrLayer.create(*arguments, full_matrix=True),
    "full": FullLayer.create,
    "adalora": AdaLoRALayer.create,
    "ia3, outputs": lambda target, rank, alpha: IA3Layer.create(target),
    "ia3, inputs": lambda target, rank, alpha: IA3Layer.create(target, on_input=True),
    "dora, outputs": lambda target, *arguments: DecomposedLayer.create(target, LowRankLayer.create(target, *arguments)),
    "dora, inputs": lambda target, *arguments: DecomposedLayer.create(target, LohaLayer.create(target, *arguments), on_output=False),
    "dora, exact gradient": lambda target, *arguments: DecomposedLayer.create(target, LokrLayer.create(target, *arguments), exact_gradient=True),
}
FRESH_VECTORS: dict[str, Callable[..., nn.Module]] = {"norm": NormLayer.create, "full": FullLayer.create}
MODULES = {
    "linear": lambda: nn.Linear(6, 5),
    "conv 1×1": lambda: nn.Conv2d(6, 5, 1),
    "conv 3×3": lambda: nn.Conv2d(6, 5, 3, padding=1),
    "conv 3×3, strided": lambda: nn.Conv2d(6, 5, 3, stride=2, padding=1, bias=False),
    "conv 3×3, dilated": lambda: nn.Conv2d(6, 5, 3, padding="same", dilation=2),
    "conv 3×3, tiled": lambda: nn.Conv2d(6, 5, 3, padding=1, padding_mode="circular"),
    "conv in groups": lambda: nn.Conv2d(6, 4, 3, groups=2),
    "conv 1-D": lambda: nn.Conv1d(6, 5, 3),
    "linear, large": lambda: nn.Linear(48, 40),
    "conv 3×3, large": lambda: nn.Conv2d(24, 32, 3, padding=1),
}
NORMS = {
    "layer norm": lambda: nn.LayerNorm(6),
    "group norm": lambda: nn.GroupNorm(2, 6),
}


def shape_of(module: nn.Module) -> tuple[int, ...]:
    return tuple(module.weight.shape)


def is_possible(make: Callable, new: Callable[[], nn.Module]) -> bool:
    """Whether the form can be had for the module's weight; a fresh layer can for every one."""
    try:
        make in FRESH.values() or make(shape_of(new()), 3)
    except on_weights.NoSuchForm:
        return False
    return True


def cases(matrices: dict, vectors: dict) -> pytest.MarkDecorator:
    """Every form on every module whose weight it can change."""
    found = {f"{form} on {module}": (matrices[form], new) for form in matrices for module, new in MODULES.items() if is_possible(matrices[form], new)}
    found.update({f"{form} on {module}": (vectors[form], NORMS[module]) for form in vectors for module in NORMS})
    return pytest.mark.parametrize(("make", "new"), found.values(), ids=found)


every_form = pytest.mark.parametrize("make", EXAMPLES.values(), ids=EXAMPLES)
every_case = cases(EXAMPLES, VECTORS)
every_fresh_case = cases(FRESH, FRESH_VECTORS)


@pytest.fixture(autouse=True)
def same_numbers_every_time() -> None:
    """Sums of random numbers nearly cancel now and then; a law that holds within a bound of rounding holds for these."""
    torch.manual_seed(1)


def inputs(module: nn.Module) -> Tensor:
    if isinstance(module, nn.GroupNorm):
        return torch.randn(2, module.num_channels, 4, 5)
    if isinstance(module, nn.LayerNorm):
        return torch.randn(2, 3, *module.normalized_shape)
    places = getattr(module, "kernel_size", ())
    return torch.randn(2, module.in_channels, *(7 + index for index in range(len(places)))) if places else torch.randn(2, 3, module.in_features)


def slow_output(module: nn.Module, weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    """The module's output with another weight and bias: the second implementation."""
    if isinstance(module, nn.LayerNorm):
        return F.layer_norm(x, module.normalized_shape, weight, bias, module.eps)
    if isinstance(module, nn.GroupNorm):
        return F.group_norm(x, module.num_groups, weight, bias, module.eps)
    return F.linear(x, weight, bias) if isinstance(module, nn.Linear) else module._conv_forward(x, weight, bias)


def changed_output(layer: Layer, module: nn.Module, x: Tensor, weight: Tensor | None = None) -> Tensor:
    """The module's output with the layer's deltas, made for the base `weight`, added to its own weight and bias."""
    own = layer.delta_bias(module.bias)
    bias = module.bias if own is None else own if module.bias is None else module.bias + own
    return slow_output(module, module.weight + layer.delta(module.weight if weight is None else weight), bias, x)


def test_every_kind_has_an_example():
    held = {name for make in EXAMPLES.values() for name in make((6, 6, 3, 3), 2)} | {name for make in VECTORS.values() for name in make((6,), 2)} | set(OTHERS)
    assert [kind.title for kind in KINDS if not held & set(kind.marks)] == []


@every_fresh_case
def test_a_fresh_layer_adds_exactly_zero(make, new):
    module = new()
    layer = make(module, 3, 1.5)
    assert all(parameter.requires_grad and parameter.dtype == torch.float32 for parameter in layer.parameters())
    assert torch.count_nonzero(layer.delta(module.weight)) == 0
    assert torch.count_nonzero(layer.delta_output(inputs(module), module)) == 0


@every_fresh_case
def test_gradients_beside_are_those_of_the_delta_in_the_weight(make, new):
    module = new().double().requires_grad_(False)
    layer = make(module, 3, 1.5)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    x = inputs(module).double().requires_grad_()
    sign = torch.randn(module(x).shape).double()
    beside, merged = (
        torch.autograd.grad((output * sign).sum(), [x, *layer.parameters()])
        for output in (module(x) + layer.delta_output(x, module), changed_output(layer, module, x))
    )
    for one, other in zip(beside, merged, strict=True):
        assert torch.count_nonzero(other)
        assert (one - other).norm() <= 1e-4 * other.norm()


@every_case
def test_the_output_beside_is_what_the_delta_in_the_weight_adds(make, new):
    module = new()
    layer, x = build_layer("x", make(shape_of(module), 3)), inputs(module)
    assert layer.fits(module.weight.shape)
    with torch.no_grad():
        added = changed_output(layer, module, x) - module(x)
        torch.testing.assert_close(layer.delta_output(x, module), added, atol=1e-4 * max(1, added.abs().max().item()), rtol=1e-4)


@every_case
def test_the_output_beside_is_made_for_the_base_weight_that_is_given(make, new):
    module = new()
    layer, x = build_layer("x", make(shape_of(module), 3)), inputs(module)
    base = torch.randn(shape_of(module))
    with torch.no_grad():
        added = changed_output(layer, module, x, base) - module(x)
        torch.testing.assert_close(layer.delta_output(x, module, base), added, atol=1e-4 * max(1, added.abs().max().item()), rtol=1e-4)
        assert torch.equal(layer.delta(module.weight), layer.delta(base)) != layer.weight_dependent


@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_adding_to_a_total_adds_the_delta_times_the_strength(make, new, dtype):
    module = new()
    layer, weight = build_layer("x", make(shape_of(module), 3)), module.weight.detach()
    total = torch.randn(weight.shape, dtype=dtype)
    expected = total + -0.75 * layer.delta(weight)
    assert layer.add_to(total, weight, -0.75) is None
    assert (total - expected).norm() <= 1e-5 * expected.norm()


@every_fresh_case
def test_gradients_flow_through_a_total(make, new):
    module = new().requires_grad_(False)
    layer = make(module, 3, 1.5)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    sign, total = torch.randn(module.weight.shape), module.weight.clone()
    layer.add_to(total, module.weight, 0.5)
    both = (total, 0.5 * layer.delta(module.weight))
    added, merged = (torch.autograd.grad((tensor * sign).sum(), [*layer.parameters()], allow_unused=True) for tensor in both)
    for one, other in zip(added, merged, strict=True):
        assert (one is None) == (other is None)
        assert one is None or (one - other).norm() <= 1e-4 * other.norm()


@every_fresh_case
def test_gradients_reach_float32_parameters_through_a_module_of_half_precision(make, new):
    module = new().bfloat16().requires_grad_(False)
    layer = make(module, 3, 1.5)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    x = inputs(module).bfloat16()
    output = layer.delta_output(x, module)
    assert output.dtype == torch.bfloat16
    output.float().square().sum().backward()
    for parameter in layer.parameters():
        assert parameter.grad.dtype == torch.float32 and parameter.grad.abs().sum() > 0


@every_case
def test_all_is_computed_where_the_weight_is(make, new):
    # torch's "meta" device stands for a GPU: it refuses to meet tensors of the CPU just so
    layer, module = build_layer("x", make(shape_of(new()), 3)), new().to("meta")
    x, total = inputs(new()).to("meta"), torch.empty(shape_of(module), device="meta")
    with torch.no_grad():
        layer.add_to(total, module.weight, 0.5)
        found = [layer.delta(module.weight), layer.delta_output(x, module), layer.delta_bias(total.reshape(len(total), -1)[:, 0])]
    assert all(tensor.device.type == "meta" for tensor in found if tensor is not None)


@every_case
def test_factors_multiply_to_the_delta(make, new):
    module = new()
    layer = build_layer("x", make(shape_of(module), 3))
    factors = layer.factors()
    if factors is not None:
        delta = layer.delta(module.weight)
        assert all(factor.dtype == torch.float32 and factor.ndim == 2 for factor in factors)
        assert ((factors[0] @ factors[1]).reshape(delta.shape) - delta).norm() <= 1e-5 * delta.norm()


@every_form
@settings(max_examples=15, deadline=None)
@given(out=st.integers(1, 6), into=st.integers(1, 6), kernel=st.sampled_from([(), (1, 1), (3, 3), (3, 1)]), rank=st.integers(1, 7))
def test_a_delta_is_float32_in_the_weights_shape_and_leaves_the_weight_alone(make, out, into, kernel, rank):
    shape = (out, into, *kernel)
    weight = torch.randn(shape).half()
    before = weight.clone()
    try:
        tensors = make(shape, rank)
    except on_weights.NoSuchForm:
        reject()
    delta = build_layer("x", tensors).delta(weight)
    assert delta.shape == weight.shape and delta.dtype == torch.float32
    assert torch.equal(weight, before)


@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_is_written_reads_back_equal(make, new, dtype, tmp_path):
    weight = new().weight.detach()
    layer = build_layer("x", {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in make(tuple(weight.shape), 2).items()})
    path = tmp_path / "a.safetensors"
    write_tensors(path, layer.tensors(), {})
    again = build_layer("x", read_tensors(path))
    assert torch.equal(again.delta(weight), layer.delta(weight))
    assert again.tensors().keys() == layer.tensors().keys()
    assert again.algorithm == layer.algorithm


@every_case
def test_half_precision_tensors_are_multiplied_in_float32(make, new):
    weight = new().weight.detach()
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in make(tuple(weight.shape), 3).items()}
    exact = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in half.items()}
    one, other = build_layer("x", half).delta(weight), build_layer("x", exact).delta(weight)
    assert (one - other).norm() <= 1e-6 * other.norm()


@every_case
def test_the_output_beside_is_as_exact_under_autocast_as_the_inputs_dtype(make, new):
    module = new()
    layer, x = build_layer("x", make(shape_of(module), 3)), inputs(module)
    with torch.no_grad():
        exact = layer.delta_output(x, module)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = layer.delta_output(x, module)
        assert (rounded - exact).norm() <= 0.03 * exact.norm()


@every_case
def test_a_weight_of_another_shape_does_not_fit(make, new):
    shape = shape_of(new())
    layer = build_layer("x", make(shape, 3))
    for other in ((*(side + 35 for side in shape[:2]), *shape[2:]), (), (7 * shape[0],)):
        assert not layer.fits(other)
        with pytest.raises(NetworkFileError, match="another model"):
            layer.delta(torch.zeros(other))


@every_case
def test_a_layer_is_cut_to_its_first_ranks_or_says_that_it_has_none(make, new):
    weight = new().weight.detach()
    layer = build_layer("x", make(tuple(weight.shape), 3))
    try:
        cut = layer.truncated(1)
    except ConfigError as error:
        assert "dyn" in str(error)
    else:
        assert cut.algorithm == layer.algorithm and cut.delta(weight).shape == weight.shape
        torch.testing.assert_close(layer.truncated(3).delta(weight), layer.delta(weight))
        with pytest.raises(ConfigError):
            layer.truncated(0)


@every_form
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_refused_whichever_tensor_holds_it(make, value):
    tensors = make((6, 6, 3, 3), 3)
    for name in [name for name, tensor in tensors.items() if tensor.is_floating_point()]:
        damaged = {**tensors, name: tensors[name].clone()}
        damaged[name].view(-1)[-1] = value
        with pytest.raises(NetworkFileError, match=f"{name}.*not finite"):
            build_layer("x", damaged)
