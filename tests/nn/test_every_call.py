"""Every public layer in every way of calling a module: the reference's results, or a helpful error.

Tests of several processes are in `test_every_process.py`.
"""

import copy
import os
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

import hibana as hb
from conformance.suite import CELLS
from every_layer import CASES, LAYERS, Above, build, near, reference

pytestmark = [
    pytest.mark.cover(1),
    pytest.mark.filterwarnings(
        "ignore::torch.jit.TracerWarning",
        "ignore::DeprecationWarning",
        "ignore:.*torch.jit.* is deprecated:FutureWarning",  # from the calls of torch.jit in this file
    ),
]


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor]:
    return build(request.param)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_gradient_modes(case: tuple[nn.Module, Tensor], mode: Callable[[], torch.no_grad]) -> None:
    layer, x = case
    with mode():
        near(layer(x), reference(layer, x))


def test_every_neuron_has_a_layer() -> None:
    assert {kind.__name__.removesuffix("Cell") for kind in CELLS} <= set(LAYERS)


LINEAR = ("Linear", "Conv1d", "Conv2d", "Window", "DelayedLinear")


@pytest.mark.parametrize("name", [f"{kind} {how}" for kind in LINEAR for how in ("of spikes", "above IF")])
def test_products_with_spikes_are_added_per_spike(name: str) -> None:
    layer, x = build(name)
    layer(x.requires_grad_())
    assert getattr(layer, "layer", layer).explain().startswith("events")


def test_gradients(case: tuple[nn.Module, Tensor]) -> None:
    layer, x = case
    x.requires_grad_()
    differentiated = [x, *(p for p in layer.parameters())]
    for grad, expected in zip(
        torch.autograd.grad(layer(x).square().sum(), differentiated),
        torch.autograd.grad(reference(layer, x).square().sum(), differentiated),
        strict=True,
    ):
        near(grad, expected)


IMAGE_LAYERS = (
    "Conv1d",
    "Conv2d",
    "MaxPool2d",
    "Flatten",
)  # the batch is their first axis; for neurons it is the second
ONE_BATCH = [case for case in CASES if case not in {f"{name} above IF" for name in IMAGE_LAYERS}]


@pytest.mark.parametrize("name", ONE_BATCH)
def test_an_empty_batch(name: str) -> None:
    layer, x = build(name)
    batch_first = x.ndim > 3 or name.startswith("Conv1d")  # else the second axis
    empty = (x[:0] if batch_first else x[:, :0]).requires_grad_()
    outputs, expected_shape = layer(empty), list(layer(x).shape)
    expected_shape[not batch_first] = 0
    assert list(outputs.shape) == expected_shape
    differentiated = [empty, *(p for p in layer.parameters())]
    grads = torch.autograd.grad(outputs.sum(), differentiated)
    assert [grad.shape for grad in grads] == [p.shape for p in differentiated]
    assert not any(grad.any() for grad in grads)


def test_autocast(case: tuple[nn.Module, Tensor]) -> None:
    layer, x = case
    with torch.autocast("cpu", torch.bfloat16):
        outputs, expected = layer(x), reference(layer, x)
    assert outputs.dtype in (expected.dtype, torch.float32)
    near(outputs.to(expected.dtype), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(case: tuple[nn.Module, Tensor], dtype: torch.dtype) -> None:
    layer, x = case
    is_loop = isinstance(layer, hb.OverTime | hb.Recurrent | hb.DelayedRecurrent)
    if not is_loop or dtype == torch.float64:
        layer = layer.to(dtype)
    elif isinstance(layer, hb.Recurrent | hb.DelayedRecurrent):
        layer.recurrent.to(dtype)
    near(layer(x.to(dtype)), reference(layer, x.to(dtype)))


def test_another_default_dtype(case: tuple[nn.Module, Tensor]) -> None:
    layer, x = case
    expected = reference(layer, x)
    torch.set_default_dtype(torch.float64)
    try:
        near(layer(x), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_another_default_device(case: tuple[nn.Module, Tensor]) -> None:
    layer, x = case
    expected = reference(layer, x)
    with torch.device("meta"):
        near(layer(x), expected)


@pytest.mark.parametrize("frozen", [False, True])
def test_jit_trace(case: tuple[nn.Module, Tensor], frozen: bool, tmp_path: Path) -> None:
    layer, x = case
    layer.requires_grad_(not frozen)
    x.requires_grad_(not frozen)
    traced = torch.jit.trace(layer, (x,))
    other = (2 * torch.rand(x.shape)).requires_grad_(not frozen)
    near(traced(other), reference(layer, other))
    traced.save(str(tmp_path / "traced.pt"))
    loaded = torch.jit.load(str(tmp_path / "traced.pt"))
    near(loaded(other), reference(layer, other))
    if not frozen:
        (grad,) = torch.autograd.grad(loaded(other).square().sum(), other)
        near(grad, torch.autograd.grad(reference(layer, other).square().sum(), other)[0])


def test_fx(case: tuple[nn.Module, Tensor]) -> None:
    layer, x = case
    traced = torch.fx.symbolic_trace(nn.Sequential(nn.Identity(), layer))
    traced_into = {Above: ["1.neurons", "1.layer"], hb.Normalized: ["1.0", "1.1"]}
    parts = traced_into.get(type(layer), ["1"])
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == ["0", *parts]
    near(traced(x), reference(layer, x))


def test_functional_call(case: tuple[nn.Module, Tensor]) -> None:
    layer, x = case
    near(torch.func.functional_call(layer, dict(layer.named_parameters()), (x,)), reference(layer, x))


FUNCTIONS: dict[str, Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]] = {
    "grad": lambda f, x: torch.func.grad(lambda x: f(x).square().sum())(x),
    "vmap": lambda f, x: torch.vmap(f)(torch.stack([x, 0.5 * x])),
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (x.cos(),))[1],
    "jacrev": lambda f, x: torch.func.jacrev(lambda x: f(x).sum(-1))(x),
    "jacfwd": lambda f, x: torch.func.jacfwd(lambda x: f(x).sum(-1))(x),
    "hessian": lambda f, x: torch.func.hessian(lambda x: f(x).square().sum())(x),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_transforms(case: tuple[nn.Module, Tensor], name: str) -> None:
    layer, x = case
    near(FUNCTIONS[name](layer, x), FUNCTIONS[name](lambda x: reference(layer, x), x))


def test_forward_mode(case: tuple[nn.Module, Tensor]) -> None:
    layer, x = case
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, x.cos())
        result, expected = (forward_ad.unpack_dual(f(dual)) for f in (layer, lambda x: reference(layer, x)))
        near(result.primal, expected.primal)
        assert result.tangent is not None
        near(result.tangent, expected.tangent)


def test_a_second_derivative(case: tuple[nn.Module, Tensor]) -> None:
    layer, x = case
    x.requires_grad_()

    def second_gradient(run: Callable[[Tensor], Tensor]) -> Tensor:
        (grad,) = torch.autograd.grad((run(x) * x.mean()).square().sum(), x, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), x)[0]

    expected = second_gradient(lambda x: reference(layer, x))
    parts = list(layer.modules())
    if any(map(lacks_second_derivative, parts)):
        with pytest.raises(RuntimeError, match=r'backend = "reference"|mode = "dense"'):
            second_gradient(layer)
    for part in parts:
        if isinstance(part, hb.OverTime | hb.Recurrent | hb.DelayedRecurrent):
            part.backend = "reference"
        elif isinstance(part, hb.events.MaxPool2d):
            part.__class__ = nn.MaxPool2d
        elif getattr(part, "mode", "") in ("auto", "events"):
            part.mode = "dense"
    near(second_gradient(layer), expected)


def lacks_second_derivative(part: nn.Module) -> bool:
    over_time = isinstance(part, hb.OverTime | hb.Recurrent | hb.DelayedRecurrent)
    return over_time or getattr(part, "mode", "") == "events"


def test_a_missing_second_derivative_is_an_error() -> None:
    """Torch's once_differentiable drops it silently if the incoming gradient is a constant."""
    events = hb.Linear(4, 4)
    events.mode = "events"
    for layer in (hb.IF(surrogate=hb.surrogate.ATan()), events):
        weight, x = torch.rand(4, requires_grad=True), (torch.rand(3, 2, 4) > 0.5).float()
        inputs = x * weight if layer is not events else x + 0 * weight
        (grad,) = torch.autograd.grad(layer(inputs).sum(), inputs, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            torch.autograd.grad((grad * weight).sum(), weight)


def test_a_layer_takes_the_backend_as_an_argument() -> None:
    layer = hb.IF(0.5, backend="reference")
    assert layer.backend == pickle.loads(pickle.dumps(layer)).backend == "reference"
    assert "backend='reference'" in repr(layer)
    x = torch.rand(3, 2, requires_grad=True)
    assert type(layer(x).grad_fn).__name__ == "StackBackward0"
    assert type(hb.IF()(x).grad_fn).__name__ != "StackBackward0"
    with pytest.raises(ValueError, match="backend must be one of"):
        hb.LIF(backend="fast")


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint(case: tuple[nn.Module, Tensor], reentrant: bool) -> None:
    layer, x = case
    x.requires_grad_()
    outputs = checkpoint(layer, x, use_reentrant=reentrant)
    expected = reference(layer, x)
    near(outputs, expected)
    near(torch.autograd.grad(expected.square().sum(), x)[0], _gradient(outputs, x))


def _gradient(outputs: Tensor, x: Tensor) -> Tensor:
    x.grad = None
    outputs.square().sum().backward()
    assert x.grad is not None
    return x.grad


def test_meta_and_fake(case: tuple[nn.Module, Tensor]) -> None:
    layer, x = case
    shape = reference(layer, x).shape
    result = copy.deepcopy(layer).to("meta")(x.to("meta"))
    assert (result.shape, result.device.type) == (shape, "meta")
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert layer(mode.from_tensor(x)).shape == shape


@pytest.mark.parametrize("clone", [copy.copy, copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies(case: tuple[nn.Module, Tensor], clone: Callable[[nn.Module], nn.Module]) -> None:
    layer, x = case
    near(clone(layer)(x), reference(layer, x))


def test_threads(case: tuple[nn.Module, Tensor]) -> None:
    layer, x = case
    with ThreadPoolExecutor(4) as pool:
        for outputs in pool.map(layer, [x] * 16):
            near(outputs, reference(layer, x))


def test_threads_that_read_steps_at_once_do_not_turn_torch_compile_off() -> None:
    compiled = []
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: hb.LIF(tau=2 + i / 99)(torch.rand(3, 2)), range(99)))
    torch.compile(lambda x: x + 1, backend=lambda graph, _: compiled.append(graph) or graph)(torch.rand(2))
    assert compiled


def test_the_exporter_to_onnx_unrolls_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = hb.IF(), torch.rand(3, 2, 4)
    loops = lambda: [n for n in torch.export.export(layer, (x,)).graph.nodes if "hibana" in str(n.target)]  # noqa: E731
    assert loops()
    monkeypatch.setattr("torch.onnx.is_in_onnx_export", lambda: True)
    assert not loops()


class Random(hb.Cell):
    def forward(self, input_: Tensor, v: Tensor) -> tuple[Tensor]:  # type: ignore[override]
        return (v + input_ + torch.normal(input_, 0.5),)


def test_a_fallback_warns_once_with_its_reason() -> None:
    layer, x = hb.OverTime(Random()), torch.rand(3, 2)
    hb.compiler.checks._WARNED.clear()
    with pytest.warns(hb.SlowPathWarning, match="Random is run by the reference loop.*to fix it") as warned:
        layer(x)
    assert "draws random numbers" in str(warned[0].message)
    step = Random.forward.__code__
    assert (warned[0].filename, warned[0].lineno) == (step.co_filename, step.co_firstlineno)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer(x)
        hb.unroll(layer.cell, x, backend="reference")
        hb.IF()(x)


SCRIPT = """
import sys, torch, hibana as hb
sys.path.insert(0, {tests!r})
from every_layer import CASES, FEW, build, near, reference
folder, process, which = sys.argv[1:]
for name in FEW if which == "few" else CASES:
    layer, x = build(name)
    path = f"{{folder}}/{{name}}.pt2"
    if process == "second":
        with torch.no_grad():
            near(torch.export.load(path).module()(x), reference(layer, x))
        continue
    torch._dynamo.reset()
    x.requires_grad_()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    result, expected = compiled(x), reference(layer, x)
    near(result, expected)
    near(*(torch.autograd.grad(outputs.square().sum(), x)[0] for outputs in (result, expected)))
    with torch.no_grad():
        torch.export.save(torch.export.export(layer, (x.detach(),)), path)
"""


@pytest.mark.slow
@pytest.mark.parametrize("which", ["few", pytest.param("all", marks=pytest.mark.exhaustive)])
def test_compiled_exported_saved_and_loaded_elsewhere(which: str, tmp_path: Path) -> None:
    script = SCRIPT.format(tests=str(Path(__file__).parents[1]))
    for process in ("first", "second"):
        finished = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", script, str(tmp_path), process, which],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
            capture_output=True,
            text=True,
            timeout=3600,  # a machine may be busy
        )
        assert finished.returncode == 0, finished.stderr
