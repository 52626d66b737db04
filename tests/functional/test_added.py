"""Products that are added in training, and weights that are made anew: their gradients against finite differences and against plain autograd."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from lib_lycoris.functional.added import add_made_product, add_product, pulled
from lib_lycoris.functional.added_kronecker import add_kronecker_product
from lib_lycoris.functional.kept import recipe
from lib_lycoris.functional.rebuilt import rebuilt_output

LINEAR = {"x": (2, 3, 5), "down": (2, 5), "up": (4, 2), "output": (2, 3, 4), "geometry": None}
CONVOLUTIONS = {
    "one picture": {"x": (1, 3, 5, 4), "down": (2, 3, 3, 3), "up": (4, 2), "output": (1, 4, 3, 2), "geometry": ((2, 2), (1, 1), (1, 1))},
    "a batch": {"x": (2, 3, 5, 4), "down": (2, 3, 1, 1), "up": (4, 2), "output": (2, 4, 5, 4), "geometry": ((1, 1), (0, 0), (1, 1))},
    "one dimension": {"x": (2, 3, 7), "down": (2, 3, 3), "up": (4, 2), "output": (2, 4, 5), "geometry": ((1,), (1,), (2,))},
}
MANY_PLACES = {
    "many rows": {"x": (2, 13, 2), "down": (2, 2), "up": (4, 2), "output": (2, 13, 4), "geometry": None},
    "many pixels": {"x": (1, 2, 5, 6), "down": (2, 2, 1, 1), "up": (4, 2), "output": (1, 4, 5, 6), "geometry": ((1, 1), (0, 0), (1, 1))},
}
MANY_OUTPUTS = {"many outputs": {"x": (1, 3, 2), "down": (2, 2), "up": (16, 2), "output": (1, 3, 16), "geometry": None}}
CASES = {"linear": LINEAR, **CONVOLUTIONS, **MANY_PLACES, **MANY_OUTPUTS}
every_case = pytest.mark.parametrize("name", CASES)


def draw(case, *names, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(case[name], generator=generator, dtype=dtype).requires_grad_(True) for name in names]


def slow(output, x, down, up, scale, values, geometry):
    weight = torch.einsum("or,r,r...->o...", up, torch.ones(up.shape[1], dtype=up.dtype) if values is None else values, down) * scale
    convolutions = {3: F.conv1d, 4: F.conv2d}
    return output + (F.linear(x, weight) if geometry is None else convolutions[x.ndim](x, weight, None, *geometry))


def made(function, *parameters):
    def make():
        values = function()
        return values, pulled(values if isinstance(values, tuple) else [values], parameters)

    return make


@every_case
@pytest.mark.parametrize("with_values", [False, True])
def test_an_added_product_and_its_gradients_are_right(name, with_values):
    case = CASES[name]
    output, x, down, up = draw(case, "output", "x", "down", "up")
    values = torch.randn(2, dtype=torch.float64).requires_grad_(True) if with_values else None
    torch.testing.assert_close(add_product(output, x, down, up, 0.7, values, case["geometry"]), slow(output, x, down, up, 0.7, values, case["geometry"]))
    assert torch.autograd.gradcheck(lambda *given: add_product(*given[:4], 0.7, given[4], case["geometry"]), (output, x, down, up, values))


@pytest.mark.parametrize(("name", "kept"), [("linear", True), ("one picture", True), ("many rows", False), ("many pixels", False), ("many outputs", False)])
def test_what_lies_between_the_factors_is_kept_only_where_it_is_not_much_larger_than_they_are(name, kept):
    case = CASES[name]
    output, x, down, up = draw(case, "output", "x", "down", "up")
    total = add_product(output, x, down, up, 1.0, None, case["geometry"])
    between = total.numel() // len(up) * len(down)
    assert any(value is not None and value.numel() == between and value is not x for value in total.grad_fn.saved_tensors[1:2]) == kept


@pytest.mark.parametrize("name", CASES)
def test_a_layers_fresh_output_is_added_to_where_it_is_and_nobody_elses_is(name):
    case = CASES[name]
    x, down, up = draw(case, "x", "down", "up")
    weight = torch.randn(case["output"][-1 if case["geometry"] is None else 1], *down.shape[1:], dtype=torch.float64)
    convolutions = {3: F.conv1d, 4: F.conv2d}

    def layer(x):
        return F.linear(x, weight) if case["geometry"] is None else convolutions[x.ndim](x, weight, None, *case["geometry"])

    wanted = slow(layer(x), x, down, up, 0.7, None, case["geometry"])
    output = layer(x)
    total = add_product(output, x, down, up, 0.7, None, case["geometry"])
    assert total.data_ptr() == output.data_ptr()
    torch.testing.assert_close(total, wanted)
    for one, other in zip(torch.autograd.grad(total.sum(), (x, down, up)), torch.autograd.grad(wanted.sum(), (x, down, up)), strict=True):
        torch.testing.assert_close(one, other)
    held = layer(x.detach())
    before = held.clone()
    torch.testing.assert_close(add_product(held, x, down, up, 0.7, None, case["geometry"]), wanted)
    assert torch.equal(held, before), "without a history it may be anybody's"


def test_who_needs_the_output_as_it_was_is_told():
    x, down, up = draw(LINEAR, "x", "down", "up")
    output = F.linear(x, torch.randn(4, 5, dtype=torch.float64))
    squared = output.square()
    add_product(output, x, down, up)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        squared.sum().backward()


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_layouts_of_memory_change_nothing(name):
    case = CASES[name]
    output, x, down, up = draw(case, "output", "x", "down", "up")
    plain = add_product(output, x, down, up, 1.0, None, case["geometry"])
    seed = torch.randn_like(plain)
    wanted = torch.autograd.grad(plain, (output, x, down, up), seed)
    turned = (tensor.movedim(1, -1).contiguous().movedim(-1, 1) for tensor in (output, x))
    other = add_product(*turned, down, up, 1.0, None, case["geometry"])
    torch.testing.assert_close(other, plain)
    for gradient, expected in zip(torch.autograd.grad(other, (output, x, down, up), seed.movedim(1, -1).contiguous().movedim(-1, 1)), wanted, strict=True):
        torch.testing.assert_close(gradient, expected)


@every_case
def test_factors_that_are_made_anew_get_their_gradients_through_what_makes_them(name):
    case = CASES[name]
    output, x, down, up = draw(case, "output", "x", "down", "up")

    def run(output, x, down, up):
        return add_made_product(output, x, made(lambda: (up.sin(), down * up.sum()), down, up), (down, up), 0.7, case["geometry"])

    torch.testing.assert_close(run(output, x, down, up), slow(output, x, down * up.sum(), up.sin(), 0.7, None, case["geometry"]))
    assert torch.autograd.gradcheck(run, (output, x, down, up))


@every_case
def test_a_weight_that_is_made_anew_and_its_gradients_are_right(name):
    case = CASES[name]
    x, down, up = draw(case, "x", "down", "up")
    bias = torch.randn(len(up), dtype=torch.float64).requires_grad_(True)

    def run(x, bias, down, up):
        return rebuilt_output(x, bias, made(lambda: torch.einsum("or,r...->o...", up, down).square(), down, up), (down, up), case["geometry"])

    weight = torch.einsum("or,r...->o...", up, down).square()
    convolutions = {3: F.conv1d, 4: F.conv2d}
    torch.testing.assert_close(run(x, bias, down, up), F.linear(x, weight, bias) if case["geometry"] is None else
                               convolutions[x.ndim](x, weight, bias, *case["geometry"]))
    assert torch.autograd.gradcheck(run, (x, bias, down, up))


@every_case
def test_a_merged_product_gives_its_factors_the_same_gradients_as_one_beside(name):
    case = CASES[name]
    x, down, up = draw(case, "x", "down", "up")
    bias = torch.randn(len(up), dtype=torch.float64).requires_grad_(True)
    base = torch.randn(len(up), *down.shape[1:], dtype=torch.float64)
    convolutions = {3: F.conv1d, 4: F.conv2d}

    def run(x, bias, down, up):
        def make():
            return base + torch.einsum("or,r...->o...", up, down * 0.7).detach(), None

        return rebuilt_output(x, bias, make, (down, up), case["geometry"], factors=made(lambda: (up * 0.7, down.clone()), down, up))

    own = F.linear(x, base, bias) if case["geometry"] is None else convolutions[x.ndim](x, base, bias, *case["geometry"])
    torch.testing.assert_close(run(x, bias, down, up), slow(own, x, down, up, 0.7, None, case["geometry"]))
    assert torch.autograd.gradcheck(run, (x, bias, down, up))
    kept = run(x, bias, down, up).grad_fn.saved_tensors
    assert [tensor.data_ptr() for tensor in kept] == [tensor.data_ptr() for tensor in (x, down, up)], "neither weight nor what lies between the factors"


def test_grouped_convolutions_with_a_weight_that_is_made_anew():
    x, weight = torch.randn(2, 4, 5, 5, dtype=torch.float64, requires_grad=True), torch.randn(6, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    geometry = ((1, 1), (1, 1), (1, 1))

    def run(x, weight):
        return rebuilt_output(x, None, made(weight.exp, weight), (weight,), geometry, groups=2)

    torch.testing.assert_close(run(x, weight), F.conv2d(x, weight.exp(), None, *geometry, 2))
    assert torch.autograd.gradcheck(run, (x, weight))


def test_half_precision_rounds_the_factors_not_their_product():
    output, x, down, up = (tensor.detach().bfloat16() for tensor in draw(LINEAR, "output", "x", "down", "up"))
    made = add_product(torch.zeros_like(output), x, down * 1e-3, up * 1e-3)
    exact = slow(torch.zeros_like(output).double(), x.double(), (down * 1e-3).double(), (up * 1e-3).double(), 1.0, None, None)
    assert made.dtype == torch.bfloat16 and (made.double() - exact).norm() < 0.01 * exact.norm()


def produced(kind, width=6):
    torch.manual_seed(0)
    source = torch.randn(3, width, requires_grad=True)
    if kind == "gate":
        return source, source * F.gelu(source)
    norm = nn.LayerNorm(width, elementwise_affine=kind != "bare norm")
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.normal_()
    norm.requires_grad_(False)
    if kind == "norm without shift":
        norm.bias = None
    return source, norm(source)


@pytest.mark.parametrize("kind", ["gate", "norm", "bare norm", "norm without shift"])
def test_an_input_is_made_anew_from_what_its_producer_keeps(kind):
    _, x = produced(kind)
    make = recipe(x)
    if make is None:
        pytest.skip("this torch does not tell whether others look after what is kept")
    torch.testing.assert_close(make(), x.detach(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["gate", "norm"])
def test_gradients_through_an_input_that_is_not_kept(kind):
    up = torch.randn(4, 2, requires_grad=True)
    down = torch.randn(2, 6, requires_grad=True)
    gradients = []
    for run in (lambda x: add_product(torch.zeros(3, 4), x, down, up), lambda x: (x @ down.T) @ up.T):
        source, x = produced(kind)
        gradients.append(torch.autograd.grad(run(x).square().sum(), (source, down, up)))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_an_input_that_can_be_made_anew_is_not_held():
    _, x = produced("norm")
    if recipe(x) is None:
        pytest.skip("this torch does not tell whether others look after what is kept")
    down, up = torch.randn(2, 6, requires_grad=True), torch.randn(4, 2, requires_grad=True)
    total = add_product(torch.zeros(3, 4), x, down, up)
    gone = weakref.ref(x)
    del x
    gc.collect()
    assert gone() is None and total.requires_grad


def test_within_checkpointing_inputs_are_kept_as_usual():
    down, up = torch.randn(2, 6, requires_grad=True), torch.randn(4, 2, requires_grad=True)
    norm = nn.LayerNorm(6).requires_grad_(False)

    def block(source):
        x = norm(source)
        return add_product(add_product(torch.zeros(3, 4), x, down, up), x, down, up)

    gradients = []
    for run in (block, lambda source: checkpoint(block, source, use_reentrant=False)):
        source = torch.linspace(-1, 2, 18).reshape(3, 6).requires_grad_(True)
        gradients.append(torch.autograd.grad(run(source).square().sum(), (source, down, up)))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_an_input_that_several_layers_share_is_made_anew_once():
    _, x = produced("norm")
    first, second = recipe(x), recipe(x)
    if first is None:
        pytest.skip("this torch does not tell whether others look after what is kept")
    made = first()
    assert second() is made
    again = first()
    assert again is not made, "nobody holds it after the last one has asked"
    torch.testing.assert_close(again, x.detach())


def test_an_input_that_was_changed_in_place_is_not_made_anew_as_it_was_before():
    source, x = produced("gate")
    recipe(x)
    x *= torch.full_like(x, 3.0).requires_grad_(True)
    make = recipe(x)
    if make is None:
        pytest.skip("this torch does not tell whether others look after what is kept")
    torch.testing.assert_close(make(), (3 * source * F.gelu(source)).detach())


@pytest.mark.parametrize("kind", ["gate", "norm"])
@pytest.mark.parametrize("with_values", [False, True])
def test_under_autocast_an_input_is_made_anew_in_the_precision_that_it_had(kind, with_values):
    values = torch.rand(2, requires_grad=True) if with_values else None
    gradients = []
    for precise in (False, True):
        torch.manual_seed(1)
        down, up, base = torch.randn(2, 6, requires_grad=True), torch.randn(4, 2, requires_grad=True), torch.randn(3, 4)
        if precise:
            total = add_product(base, produced(kind)[1], down, up, 1.0, values)
        else:
            with torch.autocast("cpu", torch.bfloat16):
                x = produced(kind)[1]
                x = x.bfloat16() if kind == "gate" else x
                total = add_product(base.bfloat16(), x, down, up, 1.0, values)
        gradients.append(torch.autograd.grad(total.float().square().sum(), (down, up)))
    for one, other in zip(*gradients, strict=True):
        assert (one - other).norm() < 0.05 * other.norm()


KRONECKER = {
    "linear": {"x": (2, 3, 6), "w1": (2, 3), "w2": (4, 2), "output": (2, 3, 8), "geometry": None},
    "one picture": {"x": (1, 6, 5, 4), "w1": (2, 3), "w2": (2, 2, 3, 3), "output": (1, 4, 3, 2), "geometry": ((2, 2), (1, 1), (1, 1))},
    "a batch": {"x": (2, 4, 5, 4), "w1": (3, 2), "w2": (2, 2, 1, 1), "output": (2, 6, 5, 4), "geometry": ((1, 1), (0, 0), (1, 1))},
    "one dimension": {"x": (2, 4, 7), "w1": (2, 2), "w2": (3, 2, 3), "output": (2, 6, 5), "geometry": ((1,), (1,), (2,))},
}


@pytest.mark.parametrize("name", KRONECKER)
def test_an_added_kronecker_product_and_its_gradients_are_right(name):
    case = KRONECKER[name]
    output, x, w1, w2 = draw(case, "output", "x", "w1", "w2")

    def whole(w1, w2):
        return torch.einsum("ac,bd...->abcd...", w1, w2).flatten(0, 1).flatten(1, 2)

    def ours(output, x, w1, w2):
        return add_kronecker_product(output, x, made(lambda: (w1.sin(), w2.exp()), w1, w2), (w1, w2), 0.7, case["geometry"])

    convolutions = {3: F.conv1d, 4: F.conv2d}
    weight = 0.7 * whole(w1.sin(), w2.exp())
    wanted = output + (F.linear(x, weight) if case["geometry"] is None else convolutions[x.ndim](x, weight, None, *case["geometry"]))
    torch.testing.assert_close(ours(output, x, w1, w2), wanted)
    assert torch.autograd.gradcheck(ours, (output, x, w1, w2))
    held = ours(output, x, w1, w2).grad_fn.saved_tensors
    assert all(any(value is one for one in (x, w1, w2)) for value in held)


def test_a_kronecker_product_adds_to_outputs_in_any_layout():
    case = KRONECKER["a batch"]
    output, x, w1, w2 = draw(case, "output", "x", "w1", "w2")
    given = w1, made(lambda: (w1, w2), w1, w2)
    plain = add_kronecker_product(output, x, given[1], (w1, w2), 1.0, case["geometry"])
    turned = add_kronecker_product(output.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last), given[1], (w1, w2), 1.0,
                                   case["geometry"])
    torch.testing.assert_close(turned, plain)
    gradient = torch.randn(plain.shape, dtype=plain.dtype)
    wanted = torch.autograd.grad(plain, (output, x, w1, w2), gradient)
    for one, other in zip(torch.autograd.grad(turned, (output, x, w1, w2), gradient.to(memory_format=torch.channels_last)), wanted, strict=True):
        torch.testing.assert_close(one, other)
