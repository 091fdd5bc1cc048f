"""What every backend must do: equal the reference, to the last bit forward, to float tolerance backward.

Cells and surrogates are discovered. A new backend is one more name in ``BACKENDS``.
"""

import inspect

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import hibana as hb
from comparison import Outcome, assert_same, outcome
from hibana import cells, surrogate
from hibana.loop import compiled

BACKENDS = ["cpu"]
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-10}

CELLS = [getattr(cells, name) for name in cells.__all__ if name != "Cell"]
SURROGATES = [
    kind()
    for name in surrogate.__all__
    if inspect.isclass(kind := getattr(surrogate, name))
    and issubclass(kind, surrogate.Surrogate)
    and kind not in (surrogate.Surrogate, surrogate.Formula)
]


def takes(cell: type[hb.Cell], name: str) -> bool:
    return name in inspect.signature(cell).parameters


def a_sequence(
    cell: type[hb.Cell] | hb.Cell, shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0
) -> Tensor:
    """Input that makes `cell` spike now and then, with values that hit a threshold of one exactly."""
    generator = torch.Generator().manual_seed(seed)
    kind = cell if isinstance(cell, type) else type(cell)
    scale = {cells.IzhikevichCell: 20.0, cells.PLIFCell: 2.0}.get(kind, 0.8)
    values = torch.rand(shape, generator=generator, dtype=dtype) * scale
    ties = torch.rand(shape, generator=generator) < 0.2
    return torch.where(ties, values.new_tensor(0.5 if scale < 1 else scale), values)


def compare(
    cell: hb.Cell, inputs: Tensor, backend: str, begun: bool = False, through: str = "both"
) -> tuple[Outcome, Outcome]:
    generator = torch.Generator().manual_seed(2)
    shape, dtype = inputs.shape[1:], inputs.dtype
    state = [torch.rand(shape, generator=generator, dtype=dtype) for _ in cell.states] if begun else None
    found = outcome(cell, inputs, state, backend, through=through)
    wanted = outcome(cell, inputs, state, "reference", through=through)
    assert_same(found, wanted, TOLERANCE[dtype])
    return found, wanted


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("cell", CELLS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("smooth", [False, True], ids=["step", "smooth"])
def test_every_cell(cell: type[hb.Cell], smooth: bool, backend: str) -> None:
    if smooth and not takes(cell, "surrogate"):
        pytest.skip("it has no surrogate")
    made = cell(surrogate=surrogate.ATan()) if smooth else cell()
    found, _ = compare(made, a_sequence(cell, (12, 3, 21), torch.float32), backend, begun=True)
    assert bool(found.outputs.any())
    compare(made, a_sequence(cell, (1, 3, 21), torch.float32), backend)


@pytest.mark.parametrize("kind", SURROGATES, ids=lambda s: type(s).__name__)
def test_every_surrogate(kind: surrogate.Surrogate, backend: str) -> None:
    cell = hb.IFCell(surrogate=kind, detach_reset=True)
    compare(cell, a_sequence(hb.IFCell, (9, 67), torch.float32), backend)


@pytest.mark.parametrize("reset", [0.0, 0.25, "subtract"])
@pytest.mark.parametrize("detach", [False, True])
def test_every_reset(reset: float | str, detach: bool, backend: str) -> None:
    cell = hb.LIFCell(surrogate=surrogate.Box(), detach_reset=detach, reset=reset)
    compare(cell, a_sequence(hb.LIFCell, (9, 67), torch.float32), backend, begun=True)


@pytest.mark.parametrize("through", ["outputs", "state"])
def test_gradients_through_only_one_end(through: str, backend: str) -> None:
    cell = hb.IFCell()
    compare(cell, a_sequence(hb.IFCell, (9, 67), torch.float32), backend, begun=True, through=through)


@pytest.mark.parametrize(
    "cell", [hb.IFCell(surrogate=surrogate.ATan()), hb.EIFCell(surrogate=surrogate.Sigmoid())]
)
def test_float64(cell: hb.Cell, backend: str) -> None:
    compare(cell, a_sequence(cell, (9, 67), torch.float64), backend, begun=True)


@pytest.mark.parametrize(
    "cell",
    [
        hb.IFCell(threshold=nn.Parameter(torch.linspace(0.5, 1.5, 21)), surrogate=surrogate.ATan()),
        hb.IFCell(threshold=nn.Parameter(torch.tensor(0.9)), surrogate=surrogate.ATan()),
        hb.LIFCell(tau=torch.linspace(1.5, 4.0, 21), reset="subtract"),
        hb.LIFCell(tau=nn.Parameter(torch.full((3, 1), 2.5)), surrogate=surrogate.Triangle()),
    ],
    ids=["threshold per neuron", "one threshold", "tensor per neuron", "per sample"],
)
def test_parameters(cell: hb.Cell, backend: str) -> None:
    found, _ = compare(cell, a_sequence(cell, (7, 3, 21), torch.float32), backend)
    assert all(found.gradients[name] is not None for name, _ in cell.named_parameters())


@pytest.mark.parametrize("shape", [(5,), (3, 1), (3, 7), (2, 63), (2, 1025), (3, 2, 1500), (1000, 3), (4, 0)])
def test_shapes(shape: tuple[int, ...], backend: str) -> None:
    compare(hb.IFCell(detach_reset=True), a_sequence(hb.IFCell, shape, torch.float32), backend)


def test_layouts(backend: str) -> None:
    cell = hb.IFCell(detach_reset=True)
    batch_first = a_sequence(hb.IFCell, (4, 6, 9), torch.float32).transpose(0, 1)
    channels_last = a_sequence(hb.IFCell, (3, 2, 5, 5, 4), torch.float32).permute(0, 1, 4, 2, 3)
    sliced = a_sequence(hb.IFCell, (6, 20), torch.float32)[::2, ::3]
    for inputs in (batch_first, channels_last, sliced):
        found = hb.unroll(cell, inputs, backend=backend)
        wanted = hb.unroll(cell, inputs, backend="reference")
        assert torch.equal(found[0], wanted[0])
        assert all(torch.equal(a, b) for a, b in zip(found[1], wanted[1], strict=True))
        ours, theirs = (inputs.detach().requires_grad_() for _ in range(2))
        weights = torch.randn(inputs.shape)
        hb.unroll(cell, ours, backend=backend)[0].backward(weights)
        hb.unroll(cell, theirs, backend="reference")[0].backward(weights)
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_a_constant_current(backend: str) -> None:
    cell = hb.LIFCell(surrogate=surrogate.ATan())
    compare(cell, a_sequence(hb.LIFCell, (1, 3, 21), torch.float32).expand(6, 3, 21), backend)


@pytest.mark.parametrize("look", ["retain_grad", "hook", "grad", "leaf"])
def test_who_looks_at_each_step_of_a_constant_current_sees_it(look: str, backend: str) -> None:
    cell, seen = hb.IFCell(surrogate=surrogate.ATan()), {}
    for name in (backend, "reference"):
        inputs = a_sequence(hb.IFCell, (1, 21), torch.float32).requires_grad_().expand(6, 21)
        if look == "leaf":
            inputs = inputs.detach().requires_grad_()
        kept: list[Tensor] = []
        if look == "retain_grad":
            inputs.retain_grad()
        if look == "hook":
            inputs.register_hook(kept.append)
        outputs, _ = hb.unroll(cell, inputs, backend=name)
        if look == "grad":
            kept.append(torch.autograd.grad(outputs.sum(), inputs)[0])
        else:
            outputs.sum().backward()
        seen[name] = kept[0] if kept else inputs.grad
    torch.testing.assert_close(seen[backend], seen["reference"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_carries_state_in_float32(dtype: torch.dtype, backend: str) -> None:
    cell = hb.LICell(tau=3.0)
    inputs = torch.rand(9, 30).to(dtype)
    (found, (v,)), (wanted, (u,)) = (hb.unroll(cell, inputs, backend=b) for b in (backend, "reference"))
    assert found.dtype == dtype
    assert v.dtype == torch.float32
    assert torch.equal(found, wanted)
    assert torch.equal(v, u)


def test_not_a_number_and_infinity(backend: str) -> None:
    inputs = torch.tensor([[0.4, float("nan"), float("inf"), -float("inf"), 1e-42]]).repeat(5, 1)
    compare(hb.IFCell(surrogate=surrogate.ATan()), inputs, backend)


class Everything(hb.Cell):
    """Many words, two states, settings in a dictionary, a sub-module, an operation in place."""

    def __init__(self) -> None:
        super().__init__()
        self.settings = {"gain": 0.7, "bounds": [-2.0, 2.0]}
        self.squash = nn.Tanh()
        self.weight = nn.Parameter(torch.linspace(0.5, 1.0, 7))

    def forward(self, input_: Tensor, a: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        low, high = self.settings["bounds"]  # type: ignore[misc]
        x = torch.clamp(input_ * self.weight + a.abs() ** 0.5, low, high)
        x *= self.settings["gain"]  # type: ignore[arg-type]
        gate = (x > 0.1) & ~(h >= 0.9) | (a == 0)
        grown = torch.where(gate, torch.exp(-x), torch.minimum(x, h) ** 2)
        return torch.maximum(grown, a) / (1 + h**3).abs().clamp(min=0.5), self.squash(grown + h / 2)


def test_a_cell_of_ones_own(backend: str) -> None:
    cell = Everything()
    compare(cell, torch.randn(6, 3, 7), backend, begun=True)
    before, _ = hb.unroll(cell, torch.ones(4, 7), backend=backend)
    cell.settings["gain"] = 0.2
    found, _ = compare(cell, torch.ones(4, 7), backend)
    assert not torch.equal(before, found.outputs)


class NamedLikeARow(hb.Cell):
    """States whose names are those that a kernel uses for things of its own."""

    def forward(  # type: ignore[override]
        self,
        i: Tensor,
        x: Tensor,
        p0: Tensor,
        c: Tensor,
        x_grad: Tensor,
        kept0: Tensor,
        a_before: Tensor,
        n: Tensor,
    ) -> tuple[Tensor, ...]:
        new = i - x * 0.5 + torch.tanh(p0) * c
        spikes = surrogate.ATan()(new + a_before * x_grad - 0.3)
        return (
            new,
            i * x,
            p0 * 0.5 + i,
            c + x_grad,
            x - kept0 * kept0,
            a_before * 0.9 + new,
            spikes * (1 - n * 0.1),
        )


def test_a_state_may_have_any_name(backend: str) -> None:
    compare(NamedLikeARow(), torch.randn(6, 3, 7), backend, begun=True)


class Product(hb.Cell):
    def forward(self, input_: Tensor, v: Tensor) -> tuple[Tensor]:  # type: ignore[override]
        return (torch.tanh(v @ torch.eye(3) + input_),)


class Branch(hb.Cell):
    def forward(self, input_: Tensor, v: Tensor) -> tuple[Tensor]:  # type: ignore[override]
        return (v + input_ if bool((input_ > 0).all()) else v,)


class Noise(hb.Cell):
    def forward(self, input_: Tensor, v: Tensor) -> tuple[Tensor]:  # type: ignore[override]
        return (v + input_ * torch.rand_like(v),)


class Crowd(hb.Cell):
    def forward(self, input_: Tensor, v: Tensor) -> tuple[Tensor]:  # type: ignore[override]
        return (v - 0.1 * v.sum() + input_,)


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        (Product, "matmul|mm|cannot be multiplied"),
        (Branch, "looks at a value"),
        (Noise, "random"),
        (Crowd, "sum"),
    ],
)
def test_what_cannot_be_compiled(cell: type[hb.Cell], reason: str, backend: str) -> None:
    inputs = torch.rand(4, 2, 3)
    with pytest.raises(RuntimeError, match=reason):
        hb.unroll(cell(), inputs, backend=backend)
    torch.manual_seed(0)
    found, _ = hb.unroll(cell(), inputs)
    torch.manual_seed(0)
    wanted, _ = hb.unroll(cell(), inputs, backend="reference")
    assert torch.equal(found, wanted)


LEAVES = st.sampled_from(["x", "a", "h", "0.5", "2"])
UNARY = st.sampled_from(["torch.tanh({})", "{}.abs()", "torch.exp(-{}.abs())", "({} ** 2)", "(-{})"])
BINARY = st.sampled_from(
    ["({} + {})", "({} - {})", "({} * {})", "torch.maximum({}, {})", "torch.where({} > {}, x, h)"]
)


def trees(children: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    tensor = children.map(lambda text: f"(x * 0 + {text})")
    one = st.builds(lambda form, a: form.format(a), UNARY, tensor)
    return one | st.builds(lambda form, a, b: form.format(a, b), BINARY, tensor, tensor)


@given(first=st.recursive(LEAVES, trees, max_leaves=5), second=st.recursive(LEAVES, trees, max_leaves=5))
@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_cells_that_nobody_wrote(first: str, second: str) -> None:
    class Generated(hb.Cell):
        def forward(self, input_: Tensor, a: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            names = {"x": input_, "a": a, "h": h, "torch": torch}
            new = eval(f"0.5 * a + 0 * x + {first}", names)
            return torch.tanh(new), surrogate.ATan()(eval(f"0 * x + {second}", names) - 0.4)

    for backend in BACKENDS:
        compare(Generated(), torch.randn(5, 33), backend, begun=True)


@pytest.mark.parametrize(
    ("kind", "bits"),
    [(surrogate.Step(), 1), (surrogate.Box(), 2), (surrogate.ATan(), 32)],
    ids=["Step", "Box", "ATan"],
)
def test_what_the_backward_keeps(kind: surrogate.Surrogate, bits: int) -> None:
    kept: list[int] = []

    def count(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel() * tensor.element_size() * 8)
        return tensor

    inputs = torch.rand(25, 4096, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        hb.IF(surrogate=kind, detach_reset=True)(inputs)
    assert sum(kept) == bits * inputs.numel()


@pytest.mark.parametrize(
    "kind", [surrogate.Step(), surrogate.Box(), surrogate.Triangle()], ids=["Step", "Box", "Triangle"]
)
def test_support_is_where_the_derivative_is_not_zero(kind: surrogate.Surrogate) -> None:
    inputs = a_sequence(hb.IFCell, (6, 77), torch.float32)
    outputs = hb.IF(surrogate=kind, detach_reset=True)(inputs.requires_grad_())
    v = hb.record(hb.IFCell(detach_reset=True), inputs.detach())["v"]
    bits = outputs.grad_fn.support  # type: ignore[union-attr]
    places = torch.arange(77)
    found = (bits[:, places // 8] >> (places % 8)) & 1
    assert torch.equal(found.bool(), kind.derivative(v - 1.0) != 0)


def test_cells_alike_share_a_program_and_a_new_value_builds_nothing() -> None:
    shape, dtype = torch.Size([5]), torch.float32
    one = compiled.program(hb.LIFCell(3.0), "cpu", shape, dtype)
    assert compiled.program(hb.LIFCell(3.0), "cpu", torch.Size([9]), dtype) is one
    other = compiled.program(hb.LIFCell(4.0, threshold=0.7), "cpu", shape, dtype)
    for direction in ("forward", "backward"):
        assert other.kernels.source(direction) == one.kernels.source(direction)


def test_one_thread_gives_the_same_bits() -> None:
    inputs = torch.rand(50, 20_000, requires_grad=True)
    layer, threads, results = hb.LIF(surrogate=surrogate.ATan()), torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            outputs = layer(inputs)
            results.append((outputs, torch.autograd.grad(outputs.sum(), inputs)[0]))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_checkpointed() -> None:
    layer = hb.LIF(surrogate=surrogate.ATan())
    ours, theirs = (
        torch.rand(6, 40, generator=torch.Generator().manual_seed(0)).requires_grad_() for _ in range(2)
    )
    torch.utils.checkpoint.checkpoint(layer, ours, use_reentrant=False).sum().backward()
    layer(theirs).sum().backward()
    assert torch.equal(ours.grad, theirs.grad)  # type: ignore[arg-type]


def wrong(result: Outcome, how: str) -> Outcome:
    """`result` with one fault."""
    outputs, grads = result.outputs.clone(), dict(result.gradients)
    grad = grads["inputs"]
    assert grad is not None
    if how == "a flipped spike":
        outputs[2, 5] = 1 - outputs[2, 5]
    elif how == "NaN in what is emitted":
        outputs[2, 5] = float("nan")
    elif how == "a gradient off by 1%":
        grads["inputs"] = grad * 1.01
    elif how == "NaN in a gradient":
        grads["inputs"] = torch.where(grad == grad.max(), float("nan"), grad)
    else:
        grads["inputs"] = None
    return Outcome(outputs, result.state, grads)


@pytest.mark.parametrize(
    "how",
    ["a flipped spike", "NaN in what is emitted", "a gradient off by 1%", "NaN in a gradient", "no gradient"],
)
def test_the_comparison_itself_sees(how: str) -> None:
    cell = hb.IFCell(surrogate=surrogate.ATan())
    result = outcome(cell, a_sequence(hb.IFCell, (9, 67), torch.float32), None, "reference")
    assert_same(result, result, TOLERANCE[torch.float32])
    with pytest.raises(AssertionError):
        assert_same(wrong(result, how), result, TOLERANCE[torch.float32])
