"""Networks compiled to one native program: outputs of steps and of sequences, and refused inputs."""

import copy
import pickle
import threading
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

import hibana as hb
from c_programs import check_programs
from examples import deep_networks
from hibana.compiler.graph.ops import Unsupported
from hibana.network.native.stream import Stream
from ordered import in_order


def mlp(*sizes, cell=hb.LIF):
    layers = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), cell()]
    return nn.Sequential(*layers[:-1], hb.LI()).eval()


def dyadic(net, scale=64):
    """Rounds the weights of `net` to multiples of 1 / `scale`, whose sums are exact, and returns `net`."""
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv1d):
                for parameter in module.parameters():
                    parameter.copy_((parameter * 2 * scale).round() / scale)
    return net


@pytest.mark.parametrize("size", [1, 7, 31, 33, 64, 100, 200])
def test_layers_of_all_sizes(size):
    check_programs(dyadic(mlp(5, size, 3)), (torch.rand(9, 2, 5) < 0.5).float())


@pytest.mark.parametrize("neurons", [1, 2])
def test_a_single_recurrent_neuron(neurons):
    """A matrix of one synapse has the shape of a parameter that broadcasts."""
    net = nn.Sequential(nn.Linear(5, neurons), hb.Recurrent(hb.LIFCell(2.0, 0.1), neurons)).eval()
    nn.init.constant_(net[0].weight, 0.5)
    check_programs(dyadic(net), (torch.rand(9, 2, 5) < 0.5).float())


class InputResidual(nn.Module):
    """A branch added to the input, whose memory layout differs from that of a convolution's output."""

    def __init__(self):
        super().__init__()
        self.conv, self.neurons = hb.EachStep(nn.Conv2d(2, 2, 3, padding=1)), hb.IF(0.25)

    def forward(self, x):
        return self.neurons(self.conv(x)) + x * 0.5


def test_images_are_reordered_for_the_layer_that_reads_them():
    unflattened = nn.Sequential(
        hb.EachStep(nn.Conv2d(1, 4, 3, padding=1)), hb.IF(0.25), nn.Flatten(2), nn.Unflatten(2, (8, 3, 3)),
        hb.EachStep(nn.Conv2d(8, 2, 2)), hb.IF(0.25), hb.EachStep(nn.MaxPool2d(2, 1)),
    )  # fmt: skip
    for net, shape in ((InputResidual(), (2, 5, 5)), (unflattened, (1, 3, 6))):
        inputs = (torch.rand(8, 3, *shape) < 0.5).float()
        with torch.no_grad():
            expected = dyadic(net.eval())(inputs)
        assert 0 < expected.mean() < 1
        assert torch.equal(hb.compile(net, inputs)(inputs), expected)


def test_a_stream_that_two_threads_use_raises_an_error():
    net = nn.Sequential(nn.Linear(8, 256), hb.LIF(), nn.Linear(256, 2), hb.LI()).eval()
    x = torch.rand(50, 1, 8)
    stream, messages = hb.compile(net, x).stream(), []

    def use(inputs):
        try:
            stream.run(inputs)
        except RuntimeError as error:
            messages.append(str(error))

    thread = threading.Thread(target=use, args=(x.repeat(4000, 1, 1),))  # most of a second, without the GIL
    thread.start()
    while thread.is_alive():
        use(x[:1])
    thread.join()
    assert any("make a stream for each thread" in message for message in messages)
    stream.reset()
    assert torch.equal(stream.run(x), hb.compile(net, x)(x))


@pytest.mark.parametrize("negate", [torch._neg_view, lambda x: torch.complex(x, x).conj().imag])
def test_a_program_reads_tensors_with_the_negative_bit(negate):
    net = mlp(4, 8, 3)
    x = torch.rand(5, 2, 4)
    program = hb.compile(net, x)
    negated = negate(-x)
    assert negated.is_neg()
    assert torch.equal(program(negated), program(x))
    assert program(x).count_nonzero()
    assert torch.equal(program.stream(2).step(negated[0]), program(x)[0])


def test_neither_a_program_nor_a_stream_is_copied(program):
    fixes = {
        program: "save the network, and compile",
        program.stream(): "save its state, and give it to a new",
    }
    for copyable, fix in fixes.items():
        for duplicate in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match=fix):
                duplicate(copyable)


@pytest.mark.parametrize("name", ["spiking_vgg", "sew_resnet"])
def test_deep_models_are_compiled(name):
    torch.manual_seed(0)
    net = getattr(deep_networks, name)(
        (2, 16, 16), 5, depth={"spiking_vgg": 8, "sew_resnet": 10}[name], width=8
    )
    inputs = (torch.rand(5, 2, 2, 16, 16) < 0.3).float()
    with torch.no_grad():
        for _ in range(30):
            net(inputs)
    net.eval()
    with torch.no_grad():
        expected = in_order(net, inputs)(inputs)
    assert expected.std() > 0.01
    torch.testing.assert_close(hb.compile(net, inputs)(inputs), expected)


STEPS = [1, 2, 3, 4, 5, 7, 8, 11, 24, 25, 26, 31]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sizes", [(5, 3), (33, 100, 4), (64, 7, 3), (6, 130, 3)])
def test_a_dense_input_is_multiplied_for_several_steps_at_once(sizes, dtype):
    torch.manual_seed(0)
    net = mlp(*sizes).to(dtype)
    inputs = torch.randn(max(STEPS), 3, sizes[0], dtype=dtype)
    inputs[5] *= torch.rand(sizes[0]) < 0.1  # one sparse step among dense steps
    with torch.no_grad():
        expected = in_order(net, inputs)(inputs)
    program = hb.compile(net, inputs)
    stream = program.stream(3)
    assert torch.equal(torch.stack([stream.step(x) for x in inputs]), expected)
    for steps in STEPS:
        assert torch.equal(program(inputs[:steps]), expected[:steps])
    without_bias = mlp(*sizes).to(dtype)
    for layer in without_bias[::2]:
        layer.bias = None
    with torch.no_grad():
        expected = in_order(without_bias, inputs)(inputs)
    assert torch.equal(hb.compile(without_bias, inputs)(inputs), expected)


def test_a_constant_input_is_multiplied_once():
    for network, shape in (
        (mlp(6, 20, 3), (6,)),
        (nn.Sequential(hb.IF(0.3), nn.Linear(4, 2)), (4,)),
        (nn.Sequential(hb.EachStep(nn.Conv2d(2, 3, 3)), hb.EachStep(nn.AvgPool2d(2)), hb.IF(0.1)), (2, 8, 8)),
        (InputResidual(), (2, 5, 5)),
        (nn.Sequential(nn.Linear(3, 2)), (3,)),
    ):
        inputs = torch.rand(2, *shape).expand(9, 2, *shape)
        assert inputs.stride(0) == 0
        program = hb.compile(network.eval(), inputs)
        stream = program.stream(2)
        first = stream.run(inputs[:4])
        expected = program(inputs.contiguous())
        assert torch.equal(program(inputs), expected)
        assert torch.equal(torch.cat([first, stream.run(inputs[4:])]), expected)
        wrong = torch.full([2, *shape], torch.nan).expand(9, 2, *shape)
        with pytest.raises(ValueError, match="NaN"):
            program(wrong)


@pytest.fixture
def net():
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(6, 70), hb.LIF(threshold=0.1), nn.Linear(70, 3), hb.LI())
    return layers.eval()


@pytest.fixture
def inputs():
    return (torch.rand(12, 1, 6) < 0.4).float()


@pytest.fixture
def program(net, inputs):
    return hb.compile(net, inputs)


def test_a_step_takes_tensors_arrays_and_indices_of_spikes(program, inputs):
    streams = [program.stream() for _ in range(5)]
    for x in inputs:
        expected = streams[0].step(x)
        array = streams[1].step(x.numpy())
        assert isinstance(array, np.ndarray)
        assert array.shape == (1, 3)
        assert streams[2].step(x[0]).shape == (3,)
        indices = x[0].nonzero().flatten()
        integers, repeated = indices.numpy().astype(np.int32), indices.tolist() * 2
        for output in (torch.from_numpy(array), streams[3].events(integers), streams[4].events(repeated)):
            assert torch.equal(output, expected)
    assert torch.equal(streams[2].state["1"][0], streams[0].state["1"][0])


@pytest.fixture
def addresses(monkeypatch):
    """The addresses of the inputs that native programs read, a list that grows with each call."""
    read, launch = [], Stream._launch

    def recording(stream, steps, inputs, *arguments):
        read.append(inputs.data_ptr())
        launch(stream, steps, inputs, *arguments)

    monkeypatch.setattr(Stream, "_launch", recording)
    return read


@pytest.mark.parametrize(
    "make",
    [lambda: torch.rand(12, 1, 6), lambda: torch.rand(1, 1, 6).expand(12, 1, 6)],
    ids=["contiguous", "constant over time"],
)
def test_contiguous_and_constant_inputs_are_read_without_a_copy(program, addresses, make):
    inputs = make()
    outputs = program(inputs)
    stream = program.stream()
    steps = [stream.step(x) for x in inputs]
    assert addresses == [inputs.data_ptr(), *(x.data_ptr() for x in inputs)]
    assert torch.equal(outputs, torch.stack(steps))


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.rand(12, 1, 12)[..., ::2],
        lambda: torch.rand(6, 1, 12).transpose(0, 2),
        lambda: torch.rand(24, 1, 6)[::2],
    ],
    ids=["features", "memory order", "steps"],
)
def test_strided_inputs_give_the_outputs_of_a_copy(net, program, make):
    inputs = make()
    assert not inputs.is_contiguous()
    with torch.no_grad():
        expected = in_order(net, inputs.clone(memory_format=torch.contiguous_format))(inputs.contiguous())
    assert expected.count_nonzero()
    assert torch.equal(program(inputs), expected)
    stream = program.stream()
    assert torch.equal(torch.stack([stream.step(x) for x in inputs]), expected)


def test_a_streams_state_equals_the_state_of_run(net, program, inputs):
    stream = program.stream()
    first = stream.run(inputs[:5])
    saved = stream.state
    outputs, state = hb.run(net, inputs[:5])
    torch.testing.assert_close(first, outputs.detach())
    assert saved.keys() == state.keys()
    for name, tensors in state.items():
        for actual, expected in zip(saved[name], tensors, strict=True):
            torch.testing.assert_close(actual, expected.detach())
    rest = stream.run(inputs[5:])
    stream.reset()
    assert torch.equal(stream.run(inputs[:5]), first)
    other = program.stream()
    other.state = saved
    assert torch.equal(other.run(inputs[5:]), rest)
    torch.testing.assert_close(hb.run(net, inputs[5:], saved)[0], net(inputs)[5:])


def test_a_stream_returns_the_spikes_of_a_layer(net, program, inputs):
    stream, spikes = program.stream(), []
    for x in inputs:
        stream.step(x)
        spikes.append(stream.spikes("1"))
    with torch.no_grad():
        assert torch.equal(torch.stack(spikes), net[:2](inputs))
    assert 0 < torch.stack(spikes).mean() < 1
    with pytest.raises(ValueError, match="layer must be one of the layers of neurons, 1, 3, got '0'"):
        stream.spikes("0")


def test_a_program_uses_the_compiled_weights_until_update_is_called(net, program, inputs):
    before, stream = program(inputs), program.stream()
    stream.run(inputs[:6])
    state = stream.state
    with torch.no_grad():
        net[0].weight *= -1
        net[1].cell.threshold = 0.2
    assert torch.equal(program(inputs), before)
    assert not program.is_current
    assert "net has changed since: call update()" in repr(program)
    program.update()
    assert program.is_current
    with torch.no_grad():
        torch.testing.assert_close(program(inputs), net(inputs))
        assert not torch.equal(program(inputs), before)
        torch.testing.assert_close(stream.run(inputs[6:]), hb.run(net, inputs[6:], state)[0])
    net[1] = hb.ALIF()
    with pytest.raises(ValueError, match="net must have the layers and shapes that were compiled"):
        program.update()
    with torch.no_grad():
        assert not torch.equal(program(inputs), before)


def test_streams_in_threads_are_independent(program):
    inputs = (torch.rand(6, 400, 1, 6) < 0.4).float()
    expected, outputs = [program(x) for x in inputs], [None] * len(inputs)

    def work(i):
        stream = program.stream()
        outputs[i] = torch.stack([stream.step(x) for x in inputs[i]])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(map(torch.equal, expected, outputs))


def test_a_batch_is_split_among_torchs_threads(program):
    inputs = (torch.rand(40, 300, 6) < 0.4).float()
    expected, threads = program(inputs), torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert torch.equal(program(inputs), expected)
        stream = program.stream(300)
        stream.run(inputs)
        state = stream.state
        other = inputs.flip(0)
        other[3, 299, 1] = torch.nan
        with pytest.raises(ValueError, match="NaN"):
            stream.run(other)
        assert all(map(torch.equal, stream.state["1"], state["1"]))
    finally:
        torch.set_num_threads(threads)


def test_invalid_inputs_are_refused_and_leave_the_state_unchanged(program, inputs):
    stream = program.stream()
    stream.run(inputs)
    state, x = stream.state, inputs[0] + 0.5
    wrong = x.clone()
    wrong[0, 5] = torch.nan
    pair = program.stream(2)
    for call, error, message in (
        (lambda: stream.step(wrong), ValueError, "inputs must be numbers, got NaN"),
        (lambda: stream.step(x[:, :5]), ValueError, r"x must be \[1, 6\], got \(1, 5\)"),
        (lambda: stream.step(x.double()), TypeError, "x must be of torch.float32.*float64"),
        (lambda: stream.step(x.double().numpy()), TypeError, "x must be of torch.float32.*float64"),
        (lambda: stream.step([0.0] * 6), TypeError, "x must be a tensor of torch.float32, got list"),
        (lambda: stream.step(x.clone().requires_grad_()), ValueError, "x must not require a gradient"),
        (lambda: stream.step(x.to("meta")), ValueError, "x must be on the CPU.*meta"),
        (lambda: stream.events([0, 6]), IndexError, r"indices must be in \[0, 6\)"),
        (lambda: stream.events([-1]), IndexError, r"indices must be in \[0, 6\)"),
        (lambda: stream.events([0.5]), TypeError, "indices must be whole numbers, got torch.float64"),
        (lambda: stream.events([[1]]), ValueError, r"one dimension, got shape \(1, 1\)"),
        (lambda: pair.events([1]), ValueError, "events are of one sample, and this stream has 2"),
        (lambda: stream.run(inputs[:0]), ValueError, r"inputs must be \[T, 1, 6\], got \(0, 1, 6\)"),
        (lambda: program(inputs[0]), ValueError, r"inputs must be \[T, batch, 6\], got \(1, 6\)"),
        (lambda: program(inputs * torch.nan), ValueError, "NaN"),
        (lambda: program.stream(0), ValueError, "batch must be a whole number of at least 1, got 0"),
    ):
        with pytest.raises(error, match=message):
            call()
    assert all(map(torch.equal, stream.state["1"], state["1"]))
    assert torch.equal(stream.events([]), stream_after(program, state).step(torch.zeros(1, 6)))


def stream_after(program, state):
    stream = program.stream()
    stream.state = state
    return stream


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_compiled_quantized_network_returns_the_same_outputs(net, dtype):
    inputs = torch.rand(12, 3, 6, dtype=dtype)
    quantized, _ = hb.quantize(net.to(dtype), inputs)
    expected, program = quantized(inputs), hb.compile(quantized, inputs)
    assert expected.dtype == dtype
    assert expected.abs().max() > 0.1
    assert torch.equal(program(inputs), expected)
    assert torch.equal(program(inputs[:1].expand(12, 3, 6)), quantized(inputs[:1].expand(12, 3, 6)))
    stream = program.stream(3)
    assert torch.equal(torch.stack([stream.step(x) for x in inputs]), expected)
    state = stream.state
    with pytest.raises(ValueError, match=r"may take 12 steps from rest.*got 13; reset the stream"):
        stream.step(inputs[0])
    with pytest.raises(ValueError, match=r"may take 12 steps from rest.*got 13"):
        program(torch.cat([inputs, inputs[:1]]))
    assert all(map(torch.equal, stream.state["1"], state["1"]))
    stream.reset()
    assert torch.equal(stream.run(inputs), expected)
    with pytest.raises(ValueError, match="NaN"):
        program.stream(3).step(inputs[0] * torch.nan)
    one, other = program.stream(), program.stream()
    x = torch.zeros(6, dtype=dtype)
    x[[1, 4]] = 1
    assert torch.equal(one.events([4, 1])[0], other.step(x))
    for wrong in ([6], [-1]):
        with pytest.raises(IndexError, match=r"indices must be in \[0, 6\)"):
            one.events(wrong)


def test_another_programs_state_is_refused_and_leaves_the_state_unchanged(program, inputs):
    stream = program.stream()
    stream.run(inputs)
    state = stream.state
    other = hb.compile(mlp(6, 5, 3), inputs).stream().state
    for wrong, message in (
        (other, r"state of layer '1' must be tensors of \[\(1, 70\), \(1, 70\)\], got \[\(1, 5\)"),
        ({"1": state["1"]}, "state must have an entry for each layer, 1, 3, got 1"),
        (None, "state must have an entry for each layer, 1, 3, got NoneType"),
        ({**state, "1": (state["1"][0], state["1"][1] + 0.5)}, "layer '1': spikes must be 0 or 1"),
    ):
        with pytest.raises(ValueError, match=message):
            stream.state = wrong
    assert all(map(torch.equal, stream.state["1"], state["1"]))


def test_layers_that_cannot_be_compiled_are_named():
    class Strange(hb.Cell):
        def forward(self, input_, v_previous):
            return (v_previous + input_ * torch.rand_like(input_),)

    x = torch.rand(2, 1, 3)
    for net, example, message in (
        (nn.Sequential(nn.GELU(), hb.IF()), x, "layer '0': GELU"),
        (
            nn.Sequential(nn.Linear(3, 2), hb.OverTime(Strange())),
            x,
            "layer '1': the step of Strange draws random",
        ),
        (nn.Sequential(hb.IF()), x.half(), "float16"),
    ):
        with pytest.raises(Unsupported, match=message):
            hb.compile(net, example)
    with pytest.raises(ValueError, match=r"example must be \[T, batch, ...\]"):
        hb.compile(nn.Sequential(hb.IF()), x[0])
    with pytest.raises(ValueError, match="example must be on the CPU"):
        hb.compile(nn.Sequential(hb.IF()), x.to("meta"))


def test_a_stream_takes_the_memory_of_its_states():
    """Four bytes per potential and one bit per spike, so that thousands of streams fit into memory."""
    program = hb.compile(mlp(128, 256, 256, 10), torch.rand(1, 1, 128))
    assert 512 * (4 + 1 / 8) + 40 <= program.stream()._block.numel() < 2500
