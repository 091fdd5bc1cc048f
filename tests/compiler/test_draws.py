"""Steps that draw random numbers: the same in the reference loop, in every backend and in the backward."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import hibana as hb
from conformance.compare import assert_same
from conformance.suite import SHAPE, each_backend
from hibana import convert
from hibana.cells.surrogate import ATan, Box
from hibana.compiler import draws
from hibana.compiler.generator import key_schedule, threefry
from hibana.compiler.graph.ops import Unsupported


class NoisyThreshold(hb.Cell):
    """Its backward needs only the mask of the surrogate."""

    def forward(self, input_, v, s):
        v = 0.9 * v * (1 - s) + input_
        return v, Box()(v - 1 - 0.4 * (torch.rand_like(v) - 0.5))


class Escape(hb.Cell):
    def forward(self, input_, v, s):
        v = 0.9 * v * (1 - s) + input_
        return v, hb.spike(torch.sigmoid((v - 1) / 0.2) - torch.rand_like(v), ATan())


class Diffusing(hb.Cell):
    """A learned standard deviation, whose gradient sums the numbers that the backward draws again."""

    def __init__(self):
        super().__init__()
        self.sigma = nn.Parameter(torch.tensor(0.3))

    def forward(self, input_, v, s):
        v = 0.9 * v * (1 - s) + input_ + self.sigma * torch.randn_like(v)
        return v, ATan()(v - 1)


class Dropped(hb.Cell):
    def forward(self, input_, v, s):
        v = 0.9 * v * (1 - s) + functional.dropout(input_, 0.3)
        return v, ATan()(v - 1)


class Several(hb.Cell):
    """Three draws, and a state that the backward recomputes from the draws of the step before."""

    def __init__(self, neurons=SHAPE[-1]):
        super().__init__()
        self.p = nn.Parameter(torch.linspace(0.1, 0.9, neurons), requires_grad=False)
        self.gain = nn.Parameter(torch.linspace(0.5, 2.0, neurons))

    def forward(self, input_, noise, v, s):
        other = torch.empty_like(v).uniform_(-0.5, 0.5)
        noise = 0.8 * noise + self.gain * torch.randn_like(v)
        v = 0.9 * v * (1 - s) + input_ * torch.bernoulli(self.p.expand_as(v)) + noise * other
        return noise, v, ATan()(v - 1)


CELLS = [NoisyThreshold, Escape, Diffusing, Dropped, Several]


def apply(cell, inputs, state=None, *, backend, seed=3, weights=None):
    """Outputs, last states, and the gradients of a loss of both, after seeding torch."""
    torch.manual_seed(seed)
    inputs = inputs.detach().requires_grad_()
    outputs, last = hb.unroll(cell, inputs, state, backend=backend)
    weights = torch.linspace(-1, 1, outputs.numel(), dtype=torch.float64).view(outputs.shape)
    loss = (weights * outputs).sum() + sum((weights[0] * value).sum() for value in last)
    parameters = [tensor for tensor in cell.parameters() if tensor.requires_grad]
    return outputs, last, torch.autograd.grad(loss, [inputs, *parameters])


def assert_equal(cell, inputs, state=None, *, backend="cpu", tolerance=1e-5):
    ours, theirs = (apply(cell, inputs, state, backend=one) for one in (backend, "reference"))
    assert_same(ours[0], theirs[0], f"{cell}: outputs")
    for one, other in zip(ours[1], theirs[1], strict=True):
        assert_same(one, other, f"{cell}: a last state")
    for one, other in zip(ours[2], theirs[2], strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * float(other.abs().max()))
    return theirs


def drive(shape=SHAPE, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0), (0, 0), (0x9D1C5EC6, 0x8BD50731)),
        ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0xFD36D048, 0x2D17272C)),
        ((0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xBA3E4725, 0xF27D669E)),
    ],
)
def test_the_bits_are_those_of_the_papers_implementation(counter, key, expected):
    """The known answers of Random123, the paper's library, for Threefry-2x32 of 13 rounds."""
    schedule = key_schedule(draws._TENSORS, *key)
    assert threefry(draws._TENSORS, schedule, counter) == expected


@each_backend
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_backends_draw_what_the_reference_draws(run, cell, dtype):
    if run.device != "cpu":
        pytest.skip("a device's functions are its own")
    cell = cell().to(dtype)
    spikes = assert_equal(cell, drive(dtype=dtype), backend=run.name)[0]
    assert 0.02 < spikes.mean() < 0.98
    torch.manual_seed(8)
    state = hb.unroll(cell, drive(dtype=dtype), backend="reference")[1]
    assert_equal(cell, drive(dtype=dtype), tuple(value.detach() for value in state), backend=run.name)


@pytest.mark.parametrize("name", ["rand", "randn", "normal_", "uniform_", "bernoulli_", "p", "dropout"])
def test_each_function_that_draws(name):
    draw = {
        "rand": lambda v: torch.rand(v.shape),
        "randn": lambda v: torch.randn(*v.shape, dtype=torch.float32),
        "normal_": lambda v: torch.empty_like(v).normal_(0.5, 2),
        "uniform_": lambda v: torch.zeros_like(v).uniform_(to=3.0),
        "bernoulli_": lambda v: torch.empty_like(v).bernoulli_(torch.sigmoid(v)),
        "p": lambda v: torch.bernoulli(v.detach(), 0.25) + torch.bernoulli(input=torch.sigmoid(v)),
        "dropout": lambda v: nn.Dropout(0.4, inplace=True)(v + 1),
    }[name]

    class Drawing(hb.Cell):
        def forward(self, input_, out):
            return (0.5 * out + input_ + draw(input_),)

    emitted = assert_equal(Drawing(), drive())[0]
    torch.manual_seed(2)  # another seed than the inputs'
    sample = draw(drive((400, 500)))  # drawn by torch

    class Once(Drawing):
        def forward(self, input_, out):
            return (draw(input_),)

    ours = hb.unroll(Once(), drive((400, 500)), backend="cpu")[0]
    assert abs(ours.mean() - sample.mean()) < 0.03
    assert abs(ours.std() - sample.std()) < 0.03
    assert emitted.isfinite().all()


@each_backend
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_draws_in_float32(run, dtype):
    if run.device != "cpu":
        pytest.skip("a device's functions are its own")
    assert_equal(Escape(), drive(dtype=dtype), backend=run.name, tolerance=1e-2)


@each_backend
@pytest.mark.parametrize("shape", [(1, 1), (5,), (7, 0), (3, 1, 5), (8, 64), (13, 2, 3, 70), (4, 4100)])
def test_shapes(run, shape):
    if run.device != "cpu" or (run.name == "triton" and math.prod(shape) > 3000):
        pytest.skip("a device's functions are its own, and the interpreter is slow")

    def emitted(backend):
        torch.manual_seed(0)
        return hb.unroll(Escape(), drive(shape), backend=backend)[0]

    assert_same(emitted(run.name), emitted("reference"), "outputs")


@pytest.mark.parametrize("cell", [Escape, Diffusing, Dropped])
def test_long_sequences(cell):
    assert_equal(cell(), drive((16, 70001)), tolerance=1e-4)


def test_memory_formats_draw_for_the_same_elements():
    inputs = drive((6, 2, 3, 5, 4))
    other = inputs.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    assert not other.is_contiguous()
    assert_same(
        apply(Escape(), other, backend="cpu")[0], apply(Escape(), inputs, backend="cpu")[0], "outputs"
    )


def test_inputs_that_are_constant_over_time():
    assert_equal(Escape(), drive((1, 3, 40)).expand(9, 3, 40))


def test_a_backend_that_draws_nothing_refuses_the_step(monkeypatch):
    monkeypatch.setattr(hb.compiler.cpu.kernels.CpuKernels, "takes_draws", False)

    class Unseen(hb.Cell):
        """A cell without a cached program."""

        def forward(self, input_, v):
            return (v + input_ * torch.rand_like(v) - input_ * v,)

    with pytest.raises(Unsupported, match="the step draws random numbers, and backend 'cpu' draws none"):
        hb.unroll(Unseen(), drive(), backend="cpu")


def test_threads_do_not_matter():
    inputs, before = drive((9, 9001)), torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        three = apply(Diffusing(), inputs, backend="cpu")
        torch.set_num_threads(1)
        one = apply(Diffusing(), inputs, backend="cpu")
    finally:
        torch.set_num_threads(before)
    assert_same(three[0], one[0], "outputs")


def test_a_matrix_beside_draws():
    class Fed(hb.Cell):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.eye(33).roll(1, 0) * 0.5)

        def forward(self, input_, v, s):
            v = 0.9 * v * (1 - s) + input_ + s @ self.weight
            return v, ATan()(v - 1 - 0.4 * torch.rand_like(v))

    assert_equal(Fed(), drive((9, 5, 33)), tolerance=1e-4)


def test_derivatives_that_may_be_infinite():
    class Rooted(hb.Cell):
        def forward(self, input_, v, s):
            v = 0.9 * v * (1 - s) + torch.sqrt(input_ * input_) * torch.rand_like(v)
            return v, ATan()(v - 1)

    cell, inputs = Rooted(), drive()
    assert_equal(cell, inputs)
    torch.manual_seed(3)
    leaf = inputs.clone().requires_grad_()
    loss = hb.unroll(cell, leaf, backend="cpu")[1][0].sum()  # the spikes have no gradient
    torch.manual_seed(3)
    other_leaf = inputs.clone().requires_grad_()
    expected = hb.unroll(cell, other_leaf, backend="reference")[1][0].sum()
    torch.testing.assert_close(
        torch.autograd.grad(loss, leaf), torch.autograd.grad(expected, other_leaf), rtol=1e-4, atol=1e-6
    )


# --- the seed -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_the_seed_of_torch_fixes_the_numbers_of_each_call(backend):
    cell, inputs = Escape(), drive()

    def emitted():
        return hb.unroll(cell, inputs, backend=backend)[0]

    torch.manual_seed(5)
    first, second = emitted(), emitted()
    assert not torch.equal(first, second)
    torch.manual_seed(5)
    assert torch.equal(emitted(), first)
    torch.manual_seed(5)
    draws.new_seed()
    assert torch.equal(emitted(), second)
    before = torch.get_rng_state()
    hb.unroll(hb.LIFCell(), inputs, backend=backend)
    assert torch.equal(torch.get_rng_state(), before)


def test_explain_draws_nothing():
    before = torch.get_rng_state()
    text = hb.explain(Several())
    assert "draws      3 random numbers per neuron and step" in text
    assert "draws" not in hb.explain(hb.LIFCell())
    assert torch.equal(torch.get_rng_state(), before)


def test_random_numbers_are_not_saved():
    for cell, saved in ((Diffusing(), "v after the step"), (Dropped(), "v after the step"), (Several(), "v")):
        report = hb.explain(cell)
        assert "none is stored" in report
        numbers = [line for line in report.splitlines() if line.strip().startswith("32 bits: ")]
        assert all("uniform" not in line and "normal" not in line for line in numbers)
        assert any(saved in line for line in numbers)


def test_outside_a_loop_a_step_draws_as_torch_does():
    cell, v = NoisyThreshold(), torch.full((2, 50), 0.9)
    torch.manual_seed(2)
    _, spikes = cell(torch.zeros(2, 50), v, torch.zeros(2, 50))
    torch.manual_seed(2)
    expected = (0.9 * v - 1 - 0.4 * (torch.rand_like(v) - 0.5) > 0).float()
    assert torch.equal(spikes, expected)


def test_each_piece_of_a_stream_draws_other_numbers():
    """Each call has a separate seed; the first piece equals the start of the full sequence."""
    net, inputs = hb.OverTime(Escape()), drive((8, 2, 30))
    torch.manual_seed(6)
    full = net(inputs)
    torch.manual_seed(6)
    first, states = hb.run(net, inputs[:4])
    second, _ = hb.run(net, inputs[4:], states)
    assert torch.equal(first, full[:4])
    assert not torch.equal(second, full[4:])


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_recomputed_checkpoint_draws_the_same_numbers(reentrant):
    net, inputs = nn.Sequential(hb.OverTime(Escape()), hb.OverTime(Diffusing())), drive().requires_grad_()

    def gradient(call):
        torch.manual_seed(9)
        outputs = call(inputs)
        return outputs, torch.autograd.grad((outputs * drive()).sum(), inputs)[0]

    outputs_, expected = gradient(net)
    recomputed, grad = (
        gradient(lambda x: checkpoint(net, x, use_reentrant=reentrant))
        if not reentrant
        else (_backward_gradient(net, inputs))
    )
    assert torch.equal(recomputed, outputs_)
    torch.testing.assert_close(grad, expected)


def _backward_gradient(net, inputs):
    torch.manual_seed(9)
    leaf = inputs.detach().requires_grad_()
    outputs = checkpoint(net, leaf, use_reentrant=True)
    (outputs * drive()).sum().backward()
    return outputs, leaf.grad


# --- the numbers --------------------------------------------------------------------------------------------


class Drawn(hb.Cell):
    """Emits what it draws."""

    def __init__(self, kind="rand_like", dtype=None):
        super().__init__()
        self.kind, self.dtype = kind, dtype

    def forward(self, input_, out):
        drawn = getattr(torch, self.kind)(input_, dtype=self.dtype)
        return (drawn.to(input_.dtype),)


def chi_square_deviation(counts):
    """Chi-square statistic of equally likely `counts`, in standard deviations above its mean."""
    expected = counts.sum() / counts.numel()
    statistic = ((counts - expected).square() / expected).sum()
    freedom = counts.numel() - 1
    # Wilson & Hilferty (1931): the cube root of chi-square over its freedom is nearly normal
    return ((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))


def cells_of(numbers, bins):
    return (numbers.double() * bins).long().clamp(0, bins - 1)


def assert_uniform(numbers, bins=64):
    """Numbers ``[T, neurons]``, and pairs of neighbours in time and in space, are uniform."""
    assert numbers.min() >= 0
    assert numbers.max() < 1
    cells = cells_of(numbers, bins)
    assert abs(chi_square_deviation(torch.bincount(cells.flatten(), minlength=bins).double())) < 4
    few = cells_of(numbers, 16)
    for one, other in ((few[:-1], few[1:]), (few[:, :-1], few[:, 1:]), (few[:-1, :-1], few[1:, 1:])):
        pairs = torch.bincount((16 * one + other).flatten(), minlength=256).double()
        assert abs(chi_square_deviation(pairs)) < 4


def test_the_chi_square_test_detects_a_skew_and_repeated_neighbours():
    assert_uniform(torch.rand(400, 300))
    with pytest.raises(AssertionError):
        assert_uniform(torch.rand(400, 300) ** 1.02)
    with pytest.raises(AssertionError):
        assert_uniform(torch.rand(200, 300).repeat_interleave(2, 0))


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("shape", [(512, 256), (16, 8192), (8192, 16), (1000, 131)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uniform_numbers_pass_a_chi_square_test(shape, dtype, seed):
    torch.manual_seed(seed)
    assert_uniform(hb.unroll(Drawn(), torch.zeros(shape, dtype=dtype), backend="cpu")[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_numbers_of_half_precision_are_uniform_too(dtype):
    torch.manual_seed(1)
    cell = Drawn(dtype=dtype)
    with pytest.raises(Unsupported, match=r"computes in torch\.b?float16"):
        hb.unroll(cell, torch.zeros(2, 2), backend="cpu")
    assert_uniform(hb.unroll(cell, torch.zeros(512, 256), backend="reference")[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normal_numbers_pass_a_chi_square_test(dtype):
    torch.manual_seed(2)
    numbers = hb.unroll(Drawn("randn_like"), torch.zeros(1000, 400, dtype=dtype), backend="cpu")[0]
    assert_uniform((0.5 * torch.erfc(-numbers.double() / math.sqrt(2))).clamp(max=1 - 1e-12))
    assert abs(numbers.mean()) < 4 / math.sqrt(numbers.numel())
    assert 4.2 < numbers.abs().max() < 6.6
    beyond = (numbers.abs() > 3).double().mean()  # 0.27%
    assert abs(beyond - 0.0026998) < 4 * math.sqrt(0.0027 / numbers.numel())


def test_draws_of_one_step_and_of_seeds_in_a_row_are_independent():
    pairs = []
    for seed in range(64):
        one, other = (draws.uniform(seed, k, 0, torch.empty(2000)) for k in (0, 1))
        following = draws.uniform(seed + 1, 0, 0, torch.empty(2000))
        pairs.append(torch.stack([16 * cells_of(one, 16) + cells_of(b, 16) for b in (other, following)]))
    for pair in torch.stack(pairs, 1):
        assert abs(chi_square_deviation(torch.bincount(pair.flatten(), minlength=256).double())) < 4


# --- closed forms ------------------------------------------------------------------------------------------


def test_the_rate_of_escape_noise_equals_the_closed_form():
    """A neuron without memory spikes in each step with the probability sigmoid((input - 1) / 0.25)."""

    class Memoryless(hb.Cell):
        def forward(self, input_, s):
            return (hb.spike(torch.sigmoid((input_ - 1) / 0.25) - torch.rand_like(input_)),)

    inputs = torch.linspace(0.3, 1.7, 8)
    rates = hb.unroll(Memoryless(), inputs.expand(2000, 50, 8), backend="cpu")[0].mean((0, 1))
    expected = torch.sigmoid((inputs - 1) / 0.25)
    standard_error = (expected * (1 - expected) / 100_000).sqrt()
    assert ((rates - expected).abs() < 4 * standard_error).all()


def test_dropout_scales_what_it_keeps_and_drops_the_requested_share():
    class Shown(hb.Cell):
        def forward(self, input_, out):
            return (functional.dropout(input_, 0.25),)

    outputs = hb.unroll(Shown(), torch.ones(100, 2000), backend="cpu")[0]
    assert set(outputs.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    share, standard_error = outputs.count_nonzero() / outputs.numel(), math.sqrt(0.75 * 0.25 / 200_000)
    assert abs(share - 0.75) < 4 * standard_error


# --- the modules of torch -----------------------------------------------------------------------------------


def test_dropout_draws_in_training_alone():
    layer = hb.OverTime(Modular())
    before = torch.get_rng_state()
    layer.eval()
    assert torch.equal(layer(drive()), hb.unroll(layer.cell, drive(), backend="reference")[0])
    assert torch.equal(torch.get_rng_state(), before)
    layer.train()
    assert_equal(layer.cell, drive())
    assert not torch.equal(torch.get_rng_state(), before)


class Modular(hb.Cell):
    """Dropout as a module."""

    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.4)

    def forward(self, input_, v, s):
        v = 0.9 * v * (1 - s) + self.dropout(input_)
        return v, ATan()(v - 1)


# --- graphs and transforms ---------------------------------------------------------------------------------


@pytest.mark.dynamo
def test_torch_compile_draws_the_same_numbers():
    net = nn.Sequential(hb.OverTime(Escape()), hb.OverTime(Escape()), hb.OverTime(Diffusing()))
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    for seed in (1, 2):
        results = []
        for call in (net, compiled):
            inputs = drive().requires_grad_()
            torch.manual_seed(seed)
            outputs = call(inputs)
            sources = [inputs, net[2].cell.sigma]
            results.append((outputs, *torch.autograd.grad((outputs * drive()).sum(), sources)))
        assert_same(results[1][0], results[0][0], "outputs")
        torch.testing.assert_close(results[1][1:], results[0][1:])


@pytest.mark.dynamo
def test_two_equal_calls_in_a_graph_draw_twice():
    net = hb.OverTime(Drawn())
    one, other = torch.compile(lambda x: (net(x), net(x)), backend="aot_eager", fullgraph=True)(
        torch.zeros(4, 50)
    )
    assert not torch.equal(one, other)


def test_a_program_of_torch_export_draws_at_each_call():
    net, inputs = hb.OverTime(Escape()), drive()
    program = torch.export.export(net, (inputs,)).module()
    torch.manual_seed(1)
    first, second = program(inputs), program(inputs)
    assert not torch.equal(first, second)
    torch.manual_seed(1)
    assert torch.equal(net(inputs), first)


@pytest.mark.filterwarnings("ignore:.*torch.jit", "ignore::torch.jit.TracerWarning")
def test_transforms():
    cell = Escape()
    torch.manual_seed(1)
    inputs = drive()
    expected = apply(cell, inputs, backend="reference")

    def emitted(x):
        torch.manual_seed(3)
        return hb.unroll(cell, x)[0]

    outputs, tangent = torch.func.jvp(emitted, (inputs,), (torch.ones_like(inputs),))
    assert torch.equal(outputs, expected[0])
    total = torch.func.grad(lambda x: (emitted(x) * drive()).sum())(inputs).sum()
    torch.testing.assert_close((tangent * drive()).sum(), total, rtol=1e-4, atol=1e-4)
    with pytest.raises(RuntimeError, match=r"torch\.vmap would draw the same numbers for each sample"):
        torch.vmap(lambda x: hb.unroll(cell, x)[0], randomness="different")(inputs.expand(2, *SHAPE))
    with pytest.raises(RuntimeError, match=r"torch\.vmap would draw the same numbers for each sample"):
        torch.vmap(torch.func.grad(lambda x: hb.unroll(cell, x)[0].sum()))(inputs.expand(2, *SHAPE))
    with pytest.raises(RuntimeError, match=r"torch\.jit\.trace would record"):
        torch.jit.trace(hb.OverTime(cell), inputs)


# --- refused draws ------------------------------------------------------------------------------------------


def test_exports_that_can_not_draw_name_the_layer_and_the_reason():
    net, inputs = nn.Sequential(nn.Linear(4, 4), hb.OverTime(Escape())), torch.rand(3, 1, 4)
    message = r"'1'.*Escape draws random numbers"
    with pytest.raises(Unsupported, match=message):
        convert.to_c(net, inputs)
    with pytest.raises(Unsupported, match=message):
        hb.compile(net, inputs)
    with pytest.raises((Unsupported, RuntimeError, ValueError), match="Escape draws random numbers"):
        convert.export(net, inputs)
    pytest.importorskip("onnx")
    with pytest.raises(Unsupported, match=message):
        convert.to_onnx(net, inputs)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda v: torch.rand(1), "draws must have the step's shape"),
        (lambda v: torch.rand_like(v.mT).mT, "draws must have the step's shape"),
        (lambda v: torch.normal(v.detach(), 1.0), "draws random numbers by aten"),
        (lambda v: torch.dropout(v, 0.5, True), "draws random numbers by aten"),
        (lambda v: torch.rand(v.shape, generator=torch.Generator().manual_seed(0)), "generator"),
    ],
)
def test_other_draws_are_refused_by_kernels_and_run_by_the_reference(draw, message):
    class Other(hb.Cell):
        def forward(self, input_, v, s):
            v = 0.9 * v + input_ + draw(input_)
            return v, ATan()(v - 1)

    cell, inputs = Other(), drive((5, 3, 3))
    with pytest.raises(Unsupported, match=message):
        hb.unroll(cell, inputs, backend="cpu")
    emitted = []
    for _ in range(2):
        torch.manual_seed(1)
        emitted.append(hb.unroll(cell, inputs, backend="reference")[0])
    assert torch.equal(*emitted)


def test_a_recurrent_layer_draws_as_the_reference():
    torch.manual_seed(0)
    net, spikes = hb.Recurrent(NoisyThreshold(), 24), (torch.rand(6, 3, 24) < 0.3).float()
    torch.manual_seed(2)
    outputs = net(spikes)
    torch.manual_seed(2)
    assert torch.equal(outputs, hb.unroll(net.step(), spikes, backend="reference")[0])
