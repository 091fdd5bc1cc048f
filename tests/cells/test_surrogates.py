"""Every surrogate; they are discovered, so a new one needs only an entry in PRIMITIVES."""

import dataclasses
import inspect
import math
import pickle
import re

import pytest
import torch

import hibana as hb
from hibana import surrogate
from hibana.cells.surrogate import Formula, Surrogate


def gaussian_like(x):
    return torch.exp(-(x * x))


def subclasses(root=Surrogate):
    for kind in root.__subclasses__():
        if not inspect.isabstract(kind):
            yield kind
        yield from subclasses(kind)


KINDS = sorted((k for k in set(subclasses()) if k.__module__ == surrogate.__name__), key=lambda k: k.__name__)


def instances():
    for kind in KINDS:
        if kind is Formula:
            yield Formula(gaussian_like)
            continue
        yield kind()
        for field in dataclasses.fields(kind):
            yield kind(**{field.name: 0.7})


ALL = [pytest.param(each, id=re.sub(" at 0x[0-9a-f]+", "", repr(each))) for each in instances()]
each_surrogate = pytest.mark.parametrize("function", ALL)


def points(dtype=torch.float64):
    return torch.cat([torch.linspace(-3.001, 3.002, 400, dtype=dtype), torch.randn(400, dtype=dtype) / 10])


def test_all_are_public_and_have_a_name():
    assert len(KINDS) >= 13
    for kind in KINDS:
        assert kind.__name__ in surrogate.__all__
        if kind is not Formula:
            assert surrogate.named(kind.__name__.upper()) == kind()


def triangle(x):
    inner = x.clamp(-1, 1)
    return inner - inner * inner.abs() / 2


PRIMITIVES = {
    surrogate.ATan: lambda f, x: torch.atan(x * (math.pi / 2 * f.alpha)) / math.pi,
    surrogate.Box: lambda f, x: (x / f.width).clamp(-0.5, 0.5),
    surrogate.Erfc: lambda f, x: torch.erfc(-x * f.alpha) / 2,
    surrogate.FastSigmoid: lambda f, x: x / (x.abs() * f.slope + 1),
    surrogate.Gaussian: lambda f, x: torch.erfc(-x / (f.sigma * math.sqrt(2))) / 2,
    surrogate.LeakyReLU: lambda f, x: torch.nn.functional.leaky_relu(x, f.leak),
    surrogate.PiecewiseExponential: lambda f, x: x.sign() * (1 - torch.exp(x.abs() * -f.alpha)) / 2,
    surrogate.PiecewiseQuadratic: lambda f, x: triangle(x * f.alpha),
    surrogate.Sigmoid: lambda f, x: torch.sigmoid(x * f.alpha),
    surrogate.Step: lambda f, x: torch.relu(x),
    surrogate.StraightThrough: lambda f, x: x.clone(),
    surrogate.Triangle: lambda f, x: triangle(x / f.width) * f.height * f.width,
    Formula: lambda f, x: torch.erf(x) * math.sqrt(math.pi) / 2,
}
"""A function with the derivative of each surrogate."""


@each_surrogate
def test_the_derivative_is_that_of_a_primitive(function):
    x = points().requires_grad_()
    (expected,) = torch.autograd.grad(PRIMITIVES[type(function)](function, x).sum(), x)
    torch.testing.assert_close(function.derivative(x.detach()), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.cover(1)
@each_surrogate
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_backward_multiplies_by_the_derivative_in_the_dtype_of_the_input(function, dtype):
    x = points(dtype).requires_grad_()
    spikes = function(x)
    assert spikes.dtype == dtype
    assert torch.equal(spikes, (x > 0).to(dtype))
    grad_output = torch.randn_like(x)
    spikes.backward(grad_output)
    assert x.grad.dtype == dtype
    assert torch.equal(x.grad, grad_output * function.derivative(x.detach()))
    assert x.grad.isfinite().all()


@each_surrogate
def test_the_derivative_is_finite_far_from_the_threshold(function):
    for dtype in (torch.float32, torch.float64):
        far = torch.tensor([-1e30, -1e4, 0.0, 1e4, 1e30], dtype=dtype)
        assert function.derivative(far).isfinite().all()


@each_surrogate
def test_round_trip_through_pickle_and_torch_save(function, tmp_path):
    assert pickle.loads(pickle.dumps(function)) == function
    torch.save(function, tmp_path / "surrogate.pt")
    assert torch.load(tmp_path / "surrogate.pt", weights_only=False) == function


@each_surrogate
def test_one_instance_may_serve_two_layers(function):
    inputs = torch.rand(9, 3, 5)

    def gradients(first, second):
        torch.manual_seed(1)
        below, above = torch.nn.Linear(5, 4), torch.nn.Linear(4, 4)
        hidden, _ = hb.unroll(hb.IFCell(surrogate=first), below(inputs), backend="reference")
        outputs, _ = hb.unroll(hb.IFCell(0.3, surrogate=second), above(hidden), backend="reference")
        outputs.square().sum().backward()
        return [parameter.grad for layer in (below, above) for parameter in layer.parameters()]

    before = dict(vars(function))
    shared = gradients(function, function)
    assert vars(function) == before
    separate = gradients(function, pickle.loads(pickle.dumps(function)))
    assert all(torch.equal(a, b) for a, b in zip(shared, separate, strict=True))


@each_surrogate
def test_immutable(function):
    for name in [field.name for field in dataclasses.fields(function)] or ["anything"]:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(function, name, 2.0)


def test_step_is_the_articles_derivative():
    x = torch.randn(100, requires_grad=True)
    spikes = hb.Heaviside.apply(x)
    spikes.sum().backward()
    assert torch.equal(x.grad, spikes.detach())


@pytest.mark.parametrize("kind", [k for k in KINDS if k is not Formula and dataclasses.fields(k)])
def test_shape_parameters_must_be_positive_and_finite(kind):
    name = dataclasses.fields(kind)[0].name
    for value in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=f"{name} must be positive and finite, got {value!r}"):
            kind(**{name: value})
    for value in ("2", None, True):
        with pytest.raises(TypeError, match=f"{name} must be a float, got {value!r}"):
            kind(**{name: value})


def test_invalid_surrogates_are_refused():
    with pytest.raises(ValueError, match=r"surrogate must be one of Step, ATan, .*; got 'relu'"):
        surrogate.named("relu")
    with pytest.raises(TypeError, match="formula must be callable"):
        Formula(3.0)
    with pytest.raises(TypeError, match=r"surrogate must be a hibana.surrogate.Surrogate or its name, got 3"):
        hb.IFCell(surrogate=3)
