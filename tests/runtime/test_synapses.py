"""The index of sparse synapses: its checks, and the changes that its checksum notices."""

import pytest
import torch
from torch import Tensor

from hibana.runtime import available, synapses
from hibana.runtime.synapses import SynapseIndex, longest_delay

LENGTHS = [0, 1, 7, 8, 63, 256, 257, 1000, synapses.PART // 4, synapses.PART + 3, 5 * synapses.PART // 4 + 1]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_every_changed_number_and_exchange_changes_the_checksum(length: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    numbers = torch.randint(0, 100, (length,), dtype=dtype)
    state = synapses._state(numbers)
    assert synapses._state(numbers.clone()) == state
    places = {0, length // 2, length - 1, *torch.randint(0, max(1, length), (20,)).tolist()}
    for place in places if length else ():
        changed = numbers.clone()
        changed[place] += 1
        assert synapses._state(changed) != state
        exchanged, other = numbers.clone(), (place + 32) % length
        exchanged[[place, other]] = numbers[[other, place]]
        assert (synapses._state(exchanged) == state) == (numbers[place] == numbers[other])
    assert synapses._state(torch.cat([numbers, numbers.new_zeros(1)])) != state


def test_threads_and_layout_change_no_checksum() -> None:
    numbers, before = torch.arange(3 * synapses.PART, dtype=torch.int64), torch.get_num_threads()
    try:
        states = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            states.append(synapses._state(numbers))
    finally:
        torch.set_num_threads(before)
    assert states[0] == states[1]
    assert synapses._state(numbers[::2]) != synapses._state(numbers[::2].contiguous())


def test_changes_are_noticed_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(available, "unavailable_reason", lambda: "no processor")
    delays = torch.tensor([1, 5, 2], dtype=torch.uint8)
    assert longest_delay(delays) == 5
    delays.numpy()[0] = 9
    assert longest_delay(delays) == 9


def index(starts: list[int], targets: Tensor, inputs: int = 2, outputs: int = 4) -> SynapseIndex:
    return SynapseIndex.check(torch.tensor(starts), targets, None, inputs, outputs)


def test_an_unchanged_index_is_checked_once() -> None:
    starts, targets = torch.tensor([0, 1, 3]), torch.tensor([3, 0, 1], dtype=torch.int32)
    first = SynapseIndex.check(starts, targets, None, 2, 4)
    assert SynapseIndex.check(starts, targets, None, 2, 4) is first
    assert SynapseIndex.check(starts, targets, None, 2, 5) is not first
    targets.data[0] = 2
    assert first.offsets.tolist() == [3, 0, 1]  # memory of its own
    assert SynapseIndex.check(starts, targets, None, 2, 4).offsets.tolist() == [2, 0, 1]
    with torch.inference_mode():
        targets = targets.clone()
        read = SynapseIndex.check(starts, targets, None, 2, 4)
        assert SynapseIndex.check(starts, targets, None, 2, 4) is read


@pytest.mark.parametrize(
    "starts",
    [
        [0, 4, 3],
        [1, 2, 3],
        [0, 1, 4],
        [0, 3],
        [0, 1 << 62, 3],
        # neighbors differ by less than 2^63, also the last and the first: int64 differences wrap around
        [0, 1 << 62, (1 << 63) - 1, -(1 << 63) + 1, -(1 << 61), 3],
    ],
)
def test_row_starts_must_rise_to_the_number_of_synapses(starts: list[int]) -> None:
    targets = torch.tensor([3, 0, 1], dtype=torch.int32)
    index([0, 1, 3], targets)
    with pytest.raises(ValueError, match="row_starts must"):
        index(starts, targets, inputs=max(2, len(starts) - 1))


def test_tensors_of_another_kind_are_refused() -> None:
    starts, targets = torch.tensor([0, 1, 2]), torch.tensor([0, 1], dtype=torch.int32)
    SynapseIndex.check(starts, targets, None, 2, 2)
    for name, wrong in (
        ("row_starts", (starts.int(), targets, None)),
        ("targets", (starts, targets.long(), None)),
        ("targets", (starts, targets[:, None], None)),
        ("delays", (starts, targets, targets)),
    ):
        with pytest.raises(ValueError, match=f"{name} must be"):
            SynapseIndex.check(*wrong, 2, 2)
