"""What is computed per spike and what by torch, and the times that this is chosen by."""

import json
import re
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import hibana as hb
from hibana.spikes import layer as shared_layer
from hibana.spikes import select
from hibana.spikes.convolution import causal as of_windows
from hibana.spikes.convolution import layer as convolution_layer
from hibana.spikes.linear import layer as linear_layer


@pytest.fixture
def times(monkeypatch):
    """Has candidates take the seconds said here, whatever their sizes; torch takes 1."""
    said = {"forward": 0.1, "weights": 0.1, "input": 0.1, "scan": 0.0}
    asked = []

    def taken(key, calls):
        asked.append(key)
        for call in calls():
            call()
        if key.product.endswith("input") or key.product == "delays":
            return said["input"], 1.0
        found = [said["forward"], 1.0] + [said["weights"], 1.0] * key.learning
        return (*found, said["scan"]) if key.scanned else tuple(found)

    monkeypatch.setattr(select, "priors_only", lambda: False)
    monkeypatch.setattr(select, "_times", taken)
    monkeypatch.setattr(select, "_CHOICES", {})
    for module in (linear_layer, convolution_layer, of_windows):
        monkeypatch.setattr(module, "SMALLEST_WORK", 0)
    said["asked"] = asked
    return said


def _layers():
    linear = hb.Linear(128, 70), nn.Linear(128, 70), (300, 128)
    convolution = hb.Conv2d(16, 40, 3, padding=1), nn.Conv2d(16, 40, 3, padding=1), (4, 16, 9, 8)
    window = hb.Window(16, 40, 5, dilation=2), hb.Window(16, 40, 5, dilation=2), (12, 8, 16)
    delayed = hb.DelayedLinear(16, 40, 9), hb.DelayedLinear(16, 40, 9), (12, 8, 16)
    window[1].mode = delayed[1].mode = "dense"
    for layer, dense, shape in (linear, convolution, window, delayed):
        layer.load_state_dict(dense.state_dict())
        yield layer, dense, shape


def _run(layer, x, weights):
    layer.zero_grad()
    x = x.detach().requires_grad_()
    spikes = hb.IF(0.5, hb.surrogate.Box(0.4), detach_reset=True)(x[None])[0]
    out = layer(spikes)
    out.mul(weights).sum().backward()
    return [out.detach(), x.grad, *(p.grad for p in layer.parameters())]


@pytest.mark.cover(2)
@pytest.mark.parametrize("forward", [True, False])
@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("input_", [True, False])
def test_outputs_and_gradients_are_torchs_whatever_is_chosen(times, forward, weights, input_):
    times |= {"forward": 0.1 if forward else 2.0, "weights": 0.1 if weights else 2.0}
    times["input"] = 0.1 if input_ else 2.0
    for layer, dense, shape in _layers():
        x = torch.rand(shape)
        if len(shape) == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        factors = torch.randn(dense(x).shape)
        for got, wanted in zip(_run(layer, x, factors), _run(dense, x, factors), strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-3)
        said = layer.explain()
        assert said.startswith("events" if forward else "dense forward" if weights else "dense:")
        assert f"forward {0.1 if forward else 2.0:.2f}" in said
        assert ("the weights' gradient densely" in said) == (forward and not weights)


def test_without_a_gradient_of_the_weights_the_forward_alone_decides(times):
    times["forward"] = 2.0
    spikes = (torch.rand(300, 128) < 0.1).float()
    layer = hb.Linear(128, 70).requires_grad_(False)
    layer(spikes)
    assert layer.explain() == (
        f"dense: {spikes.mean():.0%} of the input spiked; events would take forward 2.00 of the dense time"
    )


@pytest.mark.parametrize(("scan", "said"), [(0.5, "events: "), (1.5, "dense: ")])
def test_bits_that_have_to_be_made_cost_their_making(times, scan, said):
    times["scan"] = scan
    layer = hb.Linear(128, 70).requires_grad_(False)
    for _ in range(2):
        layer((torch.rand(300, 128) < 0.1).float())
        assert layer.explain().startswith(said)


def test_no_bits_are_made_where_the_dense_product_was_faster(times, monkeypatch):
    times |= {"forward": 2.0, "weights": 2.0}
    layer, spikes = hb.Linear(128, 70), (torch.rand(300, 128) < 0.1).float()
    layer(spikes)
    made = []
    monkeypatch.setattr(shared_layer, "_binary", lambda rows: made.append(1))
    layer(spikes)
    assert layer.explain().startswith("dense: ")
    assert not made
    assert len(times["asked"]) == 1


@pytest.mark.parametrize("learning", [True, False])
def test_bits_that_are_known_are_left_where_the_dense_product_is_faster(times, learning):
    times |= {"forward": 2.0, "weights": 2.0, "input": 2.0}
    linear, convolution, window, _ = _layers()
    for layer, dense, shape in (linear, convolution, window):
        for each in (layer, dense):
            each.requires_grad_(learning)
        spikes = hb.IF(0.5)(torch.rand(shape if len(shape) == 3 else (2, *shape), requires_grad=learning))
        x = spikes if len(shape) == 3 or isinstance(layer, nn.Linear) else spikes.flatten(0, 1)
        torch.testing.assert_close(layer(x), dense(x), rtol=1e-4, atol=1e-4)
        assert layer.explain().startswith("dense: ")


def _forget(monkeypatch):
    """As another process would begin."""
    monkeypatch.setattr(select, "_TIMES", {})
    monkeypatch.setattr(select, "_DENSE", {})
    monkeypatch.setattr(select, "_CHOICES", {})
    monkeypatch.setattr(select, "_WAITS", {})


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where times are kept, and none is known."""
    monkeypatch.delenv("HIBANA_SELECT", raising=False)
    monkeypatch.setattr(select, "kept_in", lambda: tmp_path)
    monkeypatch.setattr(select, "_others", lambda: 0)
    _forget(monkeypatch)
    torch.use_deterministic_algorithms(False)  # which every test runs under
    return tmp_path


def _key(name, learning=False):
    return select.Key(name, (3, 4), 1, learning=learning)


def _sleeping(*seconds, ran=None):
    """Candidates that take so many seconds each."""
    counted = [] if ran is None else ran
    return lambda: [lambda s=s: (counted.append(s), time.sleep(s)) for s in seconds]


def test_the_candidate_that_took_less_time_is_chosen_and_not_timed_again(folder, monkeypatch):
    ran = []
    assert select.faster(_key("a"), _sleeping(0.001, 0.02, ran=ran), prior=False)
    assert not select.faster(_key("b"), _sleeping(0.02, 0.001), prior=True)
    assert len(ran) == 3  # the first of this package to compile it, and one round that was clear
    assert select.faster(_key("a"), _sleeping(0.02, 0.001, ran=ran), prior=False)
    _forget(monkeypatch)
    assert select.faster(_key("a"), _sleeping(0.02, 0.001, ran=ran), prior=False)
    assert len(ran) == 3


@pytest.mark.parametrize(
    "spoil",
    [
        lambda said: b"",
        lambda said: b"\xff{",
        lambda said: json.dumps(said | {"key": "'other'"}).encode(),
        lambda said: json.dumps(said | {"seconds": ["soon"]}).encode(),
        lambda said: json.dumps(said | {"seconds": [-1.0, 1.0]}).encode(),
        lambda said: json.dumps([1]).encode(),
    ],
)
def test_a_file_that_can_not_be_believed_is_measured_anew(folder, monkeypatch, spoil):
    select.faster(_key("a"), _sleeping(0.02, 0.001), prior=True)
    (file,) = folder.glob("*.times")
    file.write_bytes(spoil(json.loads(file.read_bytes())))
    _forget(monkeypatch)
    assert select.faster(_key("a"), _sleeping(0.001, 0.02), prior=False)
    assert json.loads(file.read_bytes())["key"] == repr(_key("a"))


@pytest.mark.parametrize("how", ["variable", "torch", "no folder"])
def test_nothing_is_timed_where_results_may_not_depend_on_a_clock(folder, monkeypatch, how):
    if how == "variable":
        monkeypatch.setenv("HIBANA_SELECT", "prior")
    if how == "no folder":
        monkeypatch.setattr(select, "kept_in", lambda: None)
    if how == "torch":
        torch.use_deterministic_algorithms(True)
    ran = []
    assert select.faster(_key("a"), _sleeping(0.02, 0.001, ran=ran), prior=True)
    assert select.choose(_key("b", True), 0.05, _sleeping(1, 0, 1, 0, ran=ran), 1.0)[:2] == (True, True)
    assert select.choose(_key("b", True), 0.7, _sleeping(0, 1, 0, 1, ran=ran), 1.0)[:2] == (False, False)
    assert select.choose(_key("b", False), 0.05, _sleeping(1, 0, ran=ran), 1.0)[:2] == (True, None)
    assert not ran
    assert not list(folder.iterdir())


@pytest.mark.parametrize("learning", [False, True])
@pytest.mark.parametrize(
    ("layer", "shape", "by_spikes"),
    [
        (lambda: hb.Linear(1024, 512), (128, 1024), True),
        (lambda: hb.Linear(1024, 512), (24, 1024), False),
        (lambda: hb.Conv2d(16, 8, 3, padding=1), (16, 16, 32, 32), False),
        (lambda: hb.Conv2d(16, 12, 3, padding=1), (16, 16, 32, 32), True),
        (lambda: hb.Conv2d(512, 512, 3, padding=1), (2, 512, 4, 4), False),
        (lambda: hb.Window(512, 512, 3), (16, 2, 512), False),
        (lambda: hb.Window(128, 128, 5), (50, 16, 128), True),
        (lambda: hb.Window(512, 8, 5), (100, 16, 512), False),
    ],
)
def test_untimed_products_of_few_rows_or_channels_are_dense(layer, shape, by_spikes, learning):
    """At any density; mode="events" still has them by spikes."""
    torch.manual_seed(0)
    layer = layer().requires_grad_(learning)
    spikes = (torch.rand(shape) < 0.1).float()
    layer(spikes)
    assert layer.explain().startswith("events: " if by_spikes else "dense: 10% of the input spiked"), (
        layer.explain()
    )
    layer(torch.zeros(shape))
    assert layer.explain().startswith("events: " if by_spikes else "dense: 0% of the input spiked"), (
        layer.explain()
    )
    layer.mode = "events"
    layer(spikes)
    assert layer.explain().startswith("events: ")


@pytest.mark.parametrize("late", [False, True])
def test_on_a_busy_machine_the_prior_holds_and_nothing_is_kept(folder, monkeypatch, late):
    def other_programs():
        return 0 if late and not ran else 1000

    ran = []
    monkeypatch.setattr(select, "_others", other_programs)
    assert select.faster(_key("a"), _sleeping(0.02, 0.001, ran=ran), prior=True)
    assert not select.choose(_key("b"), 0.7, _sleeping(0, 0.01, ran=ran), 1.0).forward
    assert bool(ran) == late
    count = len(ran)
    assert select.faster(_key("a"), _sleeping(0.02, 0.001, ran=ran), prior=True)
    assert len(ran) == count  # not asked at each call
    assert not list(folder.iterdir())
    _forget(monkeypatch)
    monkeypatch.setattr(select, "_others", lambda: 0)
    assert not select.faster(_key("a"), _sleeping(0.02, 0.001, ran=ran), prior=True)


def _call(name, by):
    """Whether the first of two candidates is taken, which is slower and which the prior takes."""
    if by == "faster":
        return select.faster(_key(name), _sleeping(0.02, 0.001), prior=True)
    return (select.known(_key(name)) or select.choose(_key(name), 0.1, _sleeping(0.02, 0.001), 1.0)).forward


@pytest.mark.parametrize("by", ["faster", "choose"])
def test_once_the_machine_is_quiet_candidates_are_timed(folder, monkeypatch, by):
    others = 1000
    monkeypatch.setattr(select, "_others", lambda: others)
    assert all(_call("a", by) for _ in range(3 * select.AGAIN))  # still busy at the second look
    others = 0
    assert not all(_call("a", by) for _ in range(2 * select.AGAIN))
    assert not _call("a", by)
    assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize("by", ["faster", "choose"])
@pytest.mark.parametrize("first", [True, False])
def test_what_a_checkpoint_used_stays(folder, monkeypatch, by, first):
    """A checkpoint's recomputation has to choose as its forward did, however long it comes after it."""
    others = 1000
    monkeypatch.setattr(select, "_others", lambda: others)
    if not first:
        assert _call("a", by)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
        assert _call("a", by)
    others = 0
    assert all(_call("a", by) for _ in range(9 * select.AGAIN))


def test_threads_of_this_process_are_no_other_program(monkeypatch):
    """Torch's threads spin while they wait for work."""
    done = threading.Event()

    def spin():
        while not done.is_set():
            sum(range(1000))

    threads = [threading.Thread(target=spin) for _ in range(8)]
    for thread in threads:
        thread.start()
    try:
        own = [sum(select._runs(each) for each in Path("/proc/self/task").iterdir()) for _ in range(15)]
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert max(own) > 1
    assert not select._runs(Path("/proc/self/task/0"))  # has ended
    monkeypatch.setattr(select, "_runs", lambda thread: False)
    assert select._others() >= 1  # this thread itself
    monkeypatch.setattr(select, "_runs", lambda thread: True)
    assert select._others() >= 0


def test_torchs_product_is_not_timed_again_for_another_density_where_it_is_clear(folder, monkeypatch):
    ran = []
    key = _key("a")
    monkeypatch.setattr(select, "_seconds", lambda call: call())

    def taking(*seconds):
        return lambda: [lambda s=s: ran.append(s) or s for s in seconds]

    assert select.faster(key, taking(0.001, 0.03), prior=False)
    assert select.faster(key._replace(density=3), taking(0.002, 0.03), prior=False)
    assert ran.count(0.03) == 1
    select.faster(key._replace(density=2), taking(0.025, 0.03), prior=False)
    assert ran.count(0.03) > 1


def test_one_thread_times_at_a_time(folder):
    running, most = [], []

    def call():
        running.append(1)
        most.append(len(running))
        time.sleep(0.002)
        running.pop()

    threads = [
        threading.Thread(target=select.faster, args=(_key(name), lambda: [call, call], True))
        for name in "abcd"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1


def test_a_choice_is_shared_by_counts_an_eighth_and_densities_a_square_root_of_two_apart():
    assert [select.bucket(n) for n in (1, 7, 8, 9, 16, 17, 1000, 1023, 1024, 1151, 1152)] == [
        *(1, 7, 8, 9, 16, 16, 960, 960, 1024, 1024, 1152),
    ]
    assert [select.density_bucket(d) for d in (1.0, 0.71, 0.7, 0.5, 0.49, 0.25, 0.05, 0.0)] == [
        *(0, 0, 1, 1, 2, 3, 8, 16),
    ]


def test_a_sample_of_the_input_is_of_all_columns(monkeypatch):
    seen = []
    scan = shared_layer.bits_of
    monkeypatch.setattr(shared_layer, "bits_of", lambda *given: seen.append(scan(*given)) or seen[-1])
    rows = torch.ones(1024, 512)
    rows[:, :64] = 0.0  # a word of each row, of eight
    assert 0.8 < shared_layer._density(rows) < 0.95


def test_what_takes_torch_no_time_asks_nothing(monkeypatch):
    monkeypatch.setattr(shared_layer, "bits_of", lambda *_: pytest.fail("it was looked at"))
    layer = hb.Linear(128, 70)
    layer((torch.rand(30, 128) < 0.1).float())
    assert layer.explain() == "dense: at these sizes torch is sooner done at any density"


def test_small_calls_take_parameters_wherever_they_are():
    parametrized = nn.utils.parametrizations.weight_norm(hb.Linear(8, 4))
    x = torch.rand(2, 8)
    for layer in (parametrized, hb.Linear(8, 4, bias=False), hb.Linear(8, 4)):
        torch.testing.assert_close(layer(x), nn.functional.linear(x, layer.weight, layer.bias))
        assert layer.explain() == "dense: at these sizes torch is sooner done at any density"


@pytest.mark.cover(2)
@pytest.mark.parametrize("mode", ["auto", "dense", "events"])
@pytest.mark.parametrize("grad", [True, False], ids=["learns", "frozen"])
@pytest.mark.parametrize("last", [True, False], ids=["last", "first"])
@pytest.mark.parametrize("stride", [2, (2, 3)])
def test_a_window_of_one_pixel_at_a_stride_has_torchs_outputs_and_gradients(mode, grad, last, stride):
    """Torch's own, of as many channels that lie last, writes beyond its memory."""
    layer, dense = hb.Conv2d(8, 8, 1, stride), nn.Conv2d(8, 8, 1, stride)
    layer.load_state_dict(dense.state_dict())
    layer.mode = mode
    layer.weight.requires_grad_(grad)
    x = (torch.rand(4, 8, 64, 64) < 0.3).float()
    mine = x.contiguous(memory_format=torch.channels_last) if last else x.clone()
    factors = torch.randn(dense(x).shape)
    for _ in range(20):  # what is written beyond is seen when it is freed
        mine, x = mine.detach().requires_grad_(), x.detach().requires_grad_()
        layer.zero_grad()
        (layer(mine) * factors).sum().backward()
    dense(x).mul(factors).sum().backward()
    torch.testing.assert_close(layer(mine), dense(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mine.grad, x.grad, rtol=1e-4, atol=1e-4)
    if grad:
        torch.testing.assert_close(layer.weight.grad, dense.weight.grad, rtol=1e-4, atol=1e-3)
    assert layer(mine).is_contiguous(memory_format=torch.channels_last)


def test_a_strided_window_of_one_pixel_is_guarded_with_a_gradient_after_calls_without(monkeypatch):
    layer, counted = hb.Conv2d(8, 8, 1, 2), []
    sampled = convolution_layer.dense.sampled
    monkeypatch.setattr(
        convolution_layer.dense, "sampled", lambda *given: counted.append(1) or sampled(*given)
    )
    x = torch.rand(2, 8, 6, 6).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        wanted = [layer(x) for _ in range(2)][1]
    assert not counted
    torch.testing.assert_close(layer(x), wanted)
    assert counted
    with torch.no_grad():
        layer(x)
    assert len(counted) == 1


def test_a_call_like_a_dense_one_is_dense_and_one_of_another_density_is_not(times):
    for layer, shape in ((hb.Linear(128, 70), (300, 128)), (hb.Conv2d(16, 40, 3, padding=1), (4, 16, 9, 8))):
        many, more, few = ((torch.rand(shape) < share).float() for share in (0.9, 0.9, 0.05))
        if len(shape) == 4:
            many, more, few = (x.contiguous(memory_format=torch.channels_last) for x in (many, more, few))
        times["forward"] = times["weights"] = 2.0
        layer(many)
        assert layer._refuses(more, layer.weight) is None  # at the first call all was looked at
        for x in (many, more):
            layer(x)
            assert layer._refuses(x, layer.weight)
            assert re.match(r"dense: \d+% of the input spiked", layer.explain())
        times["forward"] = times["weights"] = 0.1
        for x in (few, 0.3 * many, hb.IF(0.5)(more[None].clone().requires_grad_())[0]):
            assert layer._refuses(x, layer.weight) is None
        with torch.no_grad():
            assert layer._refuses(more, layer.weight) is None
        torch.testing.assert_close(layer(few), layer._torchs(few, layer.weight, layer.bias))
        assert layer.explain().startswith("events")


@pytest.mark.parametrize("numbers", [False, True], ids=["spikes", "numbers"])
@pytest.mark.parametrize("last", [True, False], ids=["last", "first"])
@pytest.mark.parametrize("kind", ["linear", "convolution", "each step"])
def test_of_many_dense_calls_alike_one_in_sixteen_is_looked_at(times, monkeypatch, kind, last, numbers):
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(False)
    times["forward"] = times["weights"] = 2.0
    layer = hb.Linear(128, 70) if kind == "linear" else hb.Conv2d(16, 40, 3, padding=1)
    net = hb.EachStep(layer) if kind == "each step" else layer
    shape = (300, 128) if kind == "linear" else (4, 16, 9, 8)
    x = torch.randn(shape) if numbers else (torch.rand(shape) < 0.9).float()
    few = (torch.rand(shape) < 0.05).float()
    if x.ndim == 4 and last:
        x, few = (each.contiguous(memory_format=torch.channels_last) for each in (x, few))
    if kind == "each step":
        x, few = x[None], few[None]
    looks, density = [], shared_layer._density
    monkeypatch.setattr(shared_layer, "_density", lambda rows: looks.append(1) or density(rows))

    def calls(count, given=x):
        """How many of so many calls looked at what they were given."""
        looks.clear()
        for _ in range(count):
            got = net(given)
            assert layer.explain().startswith("dense: ")
        wanted = layer._torchs(given.reshape(shape), layer.weight, layer.bias).view(got.shape)
        torch.testing.assert_close(got, wanted)
        return len(looks)

    assert calls(shared_layer.LOOKED_AT + 2) >= shared_layer.LOOKED_AT + 1
    assert calls(3 * shared_layer.LOOKED_AT) == 3
    with torch.no_grad():  # another call
        assert calls(2) >= 2
    assert calls(shared_layer.LOOKED_AT + 2) >= shared_layer.LOOKED_AT + 1
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):  # of a checkpoint
        assert calls(5) == 5
    times["forward"] = times["weights"] = 0.1
    assert calls(shared_layer.LOOKED_AT - 1, few) == 0
    net(few)
    assert layer.explain().startswith("events: ")


def test_after_many_dense_calls_windows_that_meet_padding_alone_are_still_guarded(times):
    torch.use_deterministic_algorithms(False)
    times["forward"] = times["weights"] = 2.0
    layer = hb.Conv2d(16, 40, 2)
    x = torch.randn(4, 16, 8, 8).contiguous(memory_format=torch.channels_last)
    for _ in range(shared_layer.LOOKED_AT + 4):
        layer(x)
    assert layer.__dict__["_refused"].unseen > 0
    vars(layer).update(dilation=(13, 13), padding=(5, 5))
    out = layer(x)
    assert layer.explain() == "dense: no window meets the image"
    torch.testing.assert_close(out, layer.bias.view(1, -1, 1, 1).expand_as(out))


def test_few_rows_and_little_work_are_torchs():
    wide, narrow = hb.Linear(1152, 128), hb.Linear(512, 20)
    wide((torch.rand(64, 1152) < 0.02).float())
    assert wide.explain() == shared_layer.LEFT
    narrow((torch.rand(1024, 512) < 0.02).float())
    assert narrow.explain() != shared_layer.LEFT


def test_a_small_convolution_that_was_changed_since_is_what_it_is_now():
    layer, plain = hb.Conv2d(16, 4, 3, padding=2), nn.Conv2d(16, 4, 3, padding=2)
    layer.load_state_dict(plain.state_dict())
    x = torch.rand(2, 16, 6, 6).contiguous(memory_format=torch.channels_last)
    for change in ({}, {}, {"dilation": (2, 2)}, {"stride": (2, 2)}, {"padding": (4, 4)}):
        for each in (layer, plain):
            vars(each).update(change)
        torch.testing.assert_close(layer(x), plain(x))
    layer.mode = "events"
    layer(x.round())
    assert layer.explain().startswith("events")
