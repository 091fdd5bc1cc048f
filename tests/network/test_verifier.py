"""Each access of the programs of networks is proved to be inside its array, and wrong accesses are found."""

import pytest
import torch

from hibana.convert import quantize
from hibana.network.c.unit import build_unit
from hibana.runtime import loops
from hibana.runtime.kernels import INT, Code, Ints, Longs
from network.test_verilog import NETWORKS
from verifier import Bounds, Verifier, accesses_in, accesses_of, bodies_of, mutations, verifier_of


def program(name, *, is_integer):
    """The statements of the program of a network."""
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    inputs = (torch.rand(10, 3, *shape) < 0.5).float() * torch.rand(10, 3, *shape)
    net = make().eval()
    return build_unit(quantize(net, inputs)[0] if is_integer else net, inputs, "net", "first")


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("is_integer", [False, True])
def test_each_access_is_inside_of_its_array(name, is_integer):
    unit = program(name, is_integer=is_integer)
    accesses = accesses_of(unit)
    assert len(accesses) > 30
    for access in accesses:
        assert access.is_proved, access
        assert not access.index.is_empty, access


@pytest.mark.parametrize("name", ["fully connected", "images", "skip", "sparse synapses"])
def test_wrong_accesses_are_found(name):
    unit = program(name, is_integer=True)
    bodies = list(bodies_of(unit))
    counts = {True: 0, False: 0}
    correct = verifier_of(unit)
    correct.run(*bodies)
    for i, body in enumerate(bodies):
        for description, statement, changed in mutations(body):
            accesses = verifier_of(unit).run(*bodies[:i], changed, *bodies[i + 1 :])
            is_found = not all(access.is_proved for access in accesses)
            if isinstance(statement, loops.If):
                assert is_found or id(statement) in correct.on_data, description
            else:
                counts[is_found] += 1
    assert counts[True] > 8 * counts[False]  # the others are proved to be inside of the array all the same


def test_an_array_of_a_missing_element_is_found():
    unit = program("images", is_integer=True)
    bodies = bodies_of(unit)
    indexed = {access.array for access in accesses_of(unit)} - {"events"}
    for name in indexed:
        verifier = verifier_of(unit)
        verifier.lengths[name] -= 1
        assert not all(access.is_proved for access in verifier.run(*bodies)), name


def test_bounds_come_from_conditions_divisors_and_stored_numbers():
    code = Code()
    out = Ints(code.builder, loops.Array(None, name="out", kind="int32_t"))
    places = Longs(code.builder, loops.Array(None, name="places", kind="uint16_t"))
    with code.loop(0, 10, name="j") as j:
        places[j] = j * 2
    with code.loop(0, 10, name="j") as j:
        place = places[j].named("place")
        with code.when((place >= 4) & (place < 9)):
            out[place - 4] = 0
        grouped = (place - place % 4).named("grouped")
        with code.loop(0, grouped, 4, name="k") as k:
            out[k + 3] = code.constant(1, INT)
    body = code.builder.take()
    accesses = Verifier({"out": 16, "places": 10}, {}).run(body)
    assert [access.index for access in accesses if access.array == "out"] == [Bounds(0, 4, 2), Bounds(3, 15)]
    assert len(accesses) == len(list(accesses_in(body)))
    assert all(access.is_proved for access in accesses)
    assert not all(access.is_proved for access in Verifier({"out": 15, "places": 10}, {}).run(body))
