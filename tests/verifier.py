"""Proves that each access to memory of a program in C lies inside its array.

Every value is bounded by an interval, and by a number that divides it. Conditions narrow the intervals of the
values that they compare. The numbers in an array are bounded by all numbers that the program stores there, so
the analysis repeats until these bounds hold. It assumes that an element is written before it is read, and
that the caller's arrays have the length that the header states.
"""

import math
from dataclasses import dataclass, field, fields, replace

from hibana.network.c.unit import build_unit
from hibana.runtime import loops
from hibana.runtime.kernels import INT, LONG
from hibana.runtime.loops import Constant, Result

EVERY = (-(2**62), 2**62)
"""The interval of a number that is not bounded."""


@dataclass(frozen=True)
class Bounds:
    """An interval of integers, empty if `low` exceeds `high`, and a number that divides all of them.

    The divisor of 0 is 0.
    """

    low: int
    high: int
    divisor: int = 1

    def join(self, other):
        """The bounds of a value that has these bounds or the others."""
        if self.is_empty or other.is_empty:
            return other if self.is_empty else self
        divisor = math.gcd(self.divisor, other.divisor)
        return Bounds(min(self.low, other.low), max(self.high, other.high), divisor)

    def meet(self, other):
        """The bounds of a value that has both."""
        divisor = math.lcm(self.divisor, other.divisor)
        low, high = max(self.low, other.low), min(self.high, other.high)
        if divisor == 0:  # it is 0
            return Bounds(low, high, 0)
        return Bounds(-(-low // divisor) * divisor, high // divisor * divisor, divisor)

    @property
    def is_empty(self):
        """Whether no integer is within the bounds."""
        return self.low > self.high


def exactly(number):
    """The bounds of a constant."""
    return Bounds(number, number, abs(number))


ANY, EMPTY = Bounds(*EVERY), Bounds(1, 0)


@dataclass
class Access:
    """One load or store, and the bounds of its index in all passes."""

    statement: object
    array: str
    length: int | None
    index: Bounds = EMPTY
    is_below_count: bool = True
    """Whether the index is below the number of events, the length of the caller's list."""

    @property
    def is_proved(self):
        """Whether each index is inside of the array."""
        if self.length is None:
            return self.index.low >= 0 and self.is_below_count
        return self.index.is_empty or (self.index.low >= 0 and self.index.high < self.length)

    def __str__(self):
        kind = type(self.statement).__name__.lower()
        return f"{kind} of {self.array}[{self.index.low} to {self.index.high}], of {self.length} elements"


@dataclass
class Verifier:
    """The accesses of functions that share arrays."""

    lengths: dict
    """The number of elements of each array by its name; None for a list of events."""
    contents: dict
    """The bounds of the numbers in constant arrays and in the caller's arrays, by name."""
    accesses: dict = field(default_factory=dict)
    stored: dict = field(default_factory=dict)
    """The bounds of the numbers that were stored in each array."""
    on_data: set = field(default_factory=set)
    """The conditions that compare data, and not only indices, by their identity."""
    is_changed: bool = False

    def run(self, *bodies):
        """The accesses of `bodies`, which run in any order and any number of times."""
        for _ in range(600):
            self.is_changed = False
            self.accesses.clear()
            for body in bodies:
                _Run(self).run(body)
            if not self.is_changed:
                return list(self.accesses.values())
        raise RuntimeError(f"the bounds of {self.stored} do not settle")

    def content(self, name):
        """The bounds of the numbers in an array."""
        return self.contents.get(name) or self.stored.get(name, EMPTY)

    def store(self, name, bounds):
        """Widens the bounds of the numbers in an array."""
        joined = self.stored.get(name, EMPTY).join(bounds)
        if name not in self.contents and joined != self.stored.get(name):
            self.stored[name], self.is_changed = joined, True


def parts(tree):
    """All trees in `tree`, each after the trees in it."""
    if isinstance(tree, tuple):
        for part in tree[1:]:
            yield from parts(part)
    yield tree


def replaced(tree, old, new):
    """`tree` with `new` in all places of `old`."""
    if tree == old:
        return new
    return (tree[0], *(replaced(part, old, new) for part in tree[1:])) if isinstance(tree, tuple) else tree


OPPOSITES = {"lt": "ge", "ge": "lt", "gt": "le", "le": "gt", "eq": "ne", "ne": "eq"}


class _Run:
    """One pass over the statements of a function."""

    def __init__(self, verifier):
        self.verifier = verifier
        self.trees = {}
        """By result, its tree: an operation and trees, ``("load", array, index)``, a name or a constant."""
        self.named = {}
        """The bounds of names, indices and variables; of an address, the array and its index."""
        self.facts = {}
        """Narrower bounds of trees, from the conditions around."""
        self.counted = set()
        """Loop indices below the number of events."""

    # Statements

    def run(self, body):
        """Runs statements."""
        for statement in body:
            self.statement(statement)

    def statement(self, statement):
        """Runs a statement."""
        match statement:
            case loops.Let(result, operation, operands):
                tree = operation, *map(self.tree, operands)
                is_conversion = operation in ("extend", "extend signed", "shorten")
                self.trees[result] = tree[1] if is_conversion else tree
            case loops.Offset(result, _, address, count):
                self.trees[result] = "add", self.tree(address), self.tree(count)
            case loops.Load(result, address):
                array, index = self.place(address)
                self.trees[result] = "load", array.name, self.tree(address)
                if not array.is_number:
                    self.access(statement, array, index, address)
            case loops.Read(result, variable):
                self.trees[result] = variable
            case loops.Name(result, value):
                if result.type is None:
                    self.named[result] = self.place(value)
                else:
                    self.named[result] = self.bounds(self.tree(value))
            case loops.Define(variable, value) | loops.Assign(variable, value):
                self.named[variable] = self.bounds(self.tree(value))
            case loops.Store(address, value):
                array, index = self.place(address)
                if not array.is_number:
                    self.access(statement, array, index, address)
                self.verifier.store(array.name, self.bounds(self.tree(value)))
            case loops.Fill(address, _, count):
                self.each(statement, address, count)
                self.verifier.store(self.place(address)[0].name, exactly(0))
            case loops.Copy(target, source, _, count):
                self.each((statement, "source"), source, count)
                self.each(statement, target, count)
                source = self.verifier.content(self.place(source)[0].name)
                self.verifier.store(self.place(target)[0].name, source)
            case loops.Section(_, body):
                self.run(body)
            case loops.If(condition, body):
                outer, variables = dict(self.facts), self.variables(body)
                if self.is_data(self.tree(condition)):
                    self.verifier.on_data.add(id(statement))
                if self.assume(self.tree(condition), True):
                    self.run(body)
                self.facts = outer
                for variable, before in variables.items():
                    self.named[variable] = self.named[variable].join(before)
            case loops.For():
                self.loop(statement)
            case _:
                raise TypeError(f"no proof for {statement!r}")

    def is_data(self, tree):
        """Whether a condition depends on numbers that are no indices."""
        leaves = [part for part in parts(tree) if not isinstance(part, tuple) or part[0] == "load"]
        return any(self.bounds(leaf) == ANY or isinstance(leaf, tuple) for leaf in leaves)

    def variables(self, body):
        """The bounds of the variables from outside that `body` assigns."""
        found = {}
        for statement in body:
            if isinstance(statement, loops.Assign) and statement.variable in self.named:
                found[statement.variable] = self.named[statement.variable]
            found |= self.variables(getattr(statement, "body", ()))
        return found

    def loop(self, loop):
        """Runs the body of a loop until the bounds of the variables that it assigns settle."""
        start, stop = self.bounds(self.tree(loop.start)), self.bounds(self.tree(loop.stop))
        step, before = int(loop.step.number), self.variables(loop.body)
        divisor = math.gcd(start.divisor, step)
        last = stop.high - (math.gcd(stop.divisor, divisor) or 1)
        self.named[loop.index] = index = Bounds(start.low, last // divisor * divisor, divisor)
        if isinstance(loop.stop, loops.Parameter):
            self.counted.add(loop.index)
        if index.is_empty:
            return
        passes = -(-(stop.high - start.low) // step)
        for variable in before:
            growth = self.growth(loop.body, variable)
            if growth is not None:
                first = before[variable]
                self.named[variable] = replace(first, high=first.high + (passes - 1) * growth, divisor=1)
        for repetition in range(6):
            during = {variable: self.named[variable] for variable in before}
            outer = dict(self.facts)
            self.run(loop.body)
            self.facts = outer
            joined = {
                variable: during[variable]
                if self.growth(loop.body, variable) is not None
                else during[variable].join(self.named[variable])
                for variable in before
            }
            self.named |= joined
            if joined == during:
                break
            if repetition >= 3:  # a sum of numbers, for example
                self.named |= {x: ANY for x in before if joined[x] != during[x]}
        for variable, first in before.items():
            growth = self.growth(loop.body, variable)
            if growth is not None:
                self.named[variable] = replace(first, high=first.high + passes * growth, divisor=1)

    def growth(self, body, variable):
        """The largest number that one pass adds to a variable, from 0; None if it does anything else."""
        assigned = [s for s in body if isinstance(s, loops.Assign) and s.variable is variable]
        if len(assigned) != 1:
            return None
        match self.trees.get(assigned[0].value) or self._tree_of(body, assigned[0].value):
            case "add", total, ("load", name, _) if total is variable:
                content = self.verifier.content(name)
                is_count = content.is_empty or (content.low >= 0 and content.high <= 1)
                return max(0, content.high) if is_count else None
        return None

    def _tree_of(self, body, operand):
        """The tree of a value that `body` defines, before the first pass."""
        scratch = _Run(replace(self.verifier, stored=dict(self.verifier.stored), accesses={}))
        scratch.trees, scratch.named = dict(self.trees), dict(self.named)
        pure = (loops.Let, loops.Offset, loops.Load, loops.Read)
        for statement in body:
            if isinstance(statement, pure):
                scratch.statement(statement)
        return scratch.tree(operand)

    def each(self, key, address, count):
        """Records an access to `count` elements from `address`."""
        array, index = self.place(address)
        last = self.bounds(self.tree(count)).high - 1
        self.record(key, array, Bounds(index.low, index.high + last))

    def access(self, statement, array, index, address):
        """Records an access at `index`."""
        self.record(statement, array, index)
        match self.tree(address):
            case "add", loops.Array(), counted if counted in self.counted:
                return
        self.verifier.accesses[id(statement)].is_below_count = False

    def record(self, key, array, index):
        """Widens the bounds of the index of an access."""
        statement = key[0] if isinstance(key, tuple) else key
        name = id(statement) if statement is key else (id(statement), key[1])
        access = self.verifier.accesses.setdefault(
            name, Access(statement, array.name, self.verifier.lengths[array.name])
        )
        access.index = access.index.join(index)

    # Values

    def tree(self, operand):
        """The tree of an operand."""
        return self.trees.get(operand, operand) if isinstance(operand, Result) else operand

    def place(self, address):
        """The array of an address, and the bounds of its index."""
        return self._place(self.tree(address))

    def _place(self, tree):
        base = tree
        while isinstance(base, tuple):
            base = base[1]
        if isinstance(base, loops.Array):
            return base, self.bounds(replaced(tree, base, Constant(None, 0)))
        array, start = self.named[base]
        rest = self.bounds(replaced(tree, base, Constant(None, 0)))
        return array, _sum(start, rest)

    def bounds(self, tree):
        """The bounds of a tree; those of each alternative of a selection, joined."""
        for part in parts(tree):
            if isinstance(part, tuple) and part[0] == "select":
                _, condition, yes, no = part
                result, outer = EMPTY, self.facts
                for is_true, value in ((True, yes), (False, no)):
                    self.facts = dict(outer)
                    if self.assume(condition, is_true):
                        result = result.join(self.bounds(replaced(tree, part, value)))
                self.facts = outer
                return result
        known = self.facts.get(tree, ANY)
        return known.meet(self._bounds(tree))

    def _bounds(self, tree):
        match tree:
            case Constant(number=number):
                return exactly(int(number)) if math.isfinite(number) else ANY
            case "load", name, _:
                return self.verifier.content(name)
            case "sub", total, ("rem", same, Constant(number=divisor)) if total == same:
                bounds = self.bounds(total)
                return Bounds(max(0, bounds.low - int(divisor) + 1), bounds.high).meet(
                    Bounds(*EVERY, int(divisor))
                )
            case (("lt" | "le" | "gt" | "ge" | "eq" | "ne" | "and" | "or" | "xor"), *_):
                return Bounds(0, 1)
            case operation, left, right:
                return _OPERATIONS.get(operation, lambda *_: ANY)(self.bounds(left), self.bounds(right))
            case Result():
                return self.named.get(tree, ANY)
        return ANY

    def assume(self, condition, is_true):
        """Narrows the bounds of what a condition compares; returns whether it can be as stated."""
        match condition:
            case ("and" | "or") as operation, left, right:
                if (operation == "and") == is_true:
                    return self.assume(left, is_true) and self.assume(right, is_true)
                return True
            case operation, left, right if operation in OPPOSITES:
                self._compare(operation if is_true else OPPOSITES[operation], left, right)
                return not (self.bounds(left).is_empty or self.bounds(right).is_empty)
        return True

    def _compare(self, operation, left, right):
        one, other = self.bounds(left), self.bounds(right)
        low, high = EVERY
        narrowed = {
            "lt": (Bounds(low, other.high - 1), Bounds(one.low + 1, high)),
            "le": (Bounds(low, other.high), Bounds(one.low, high)),
            "gt": (Bounds(other.low + 1, high), Bounds(low, one.high - 1)),
            "ge": (Bounds(other.low, high), Bounds(low, one.high)),
            "eq": (other, one),
        }.get(operation)
        if operation == "ne" and other.low == other.high:
            at_low, at_high = one.low == other.low, one.high == other.low
            narrowed = Bounds(one.low + at_low, one.high - at_high), ANY
        for tree, bounds in zip((left, right), narrowed or (), strict=False):
            self.facts[tree] = self.facts.get(tree, ANY).meet(bounds)


def _sum(a, b):
    return Bounds(a.low + b.low, a.high + b.high, math.gcd(a.divisor, b.divisor))


def _product(a, b):
    ends = [x * y for x in (a.low, a.high) for y in (b.low, b.high)]
    return Bounds(min(ends), max(ends), a.divisor * b.divisor)


def _quotient(a, b):
    if a.low < 0 or b.low != b.high or b.low < 1:
        return ANY
    return Bounds(a.low // b.low, a.high // b.low)


def _remainder(a, b):
    if a.low < 0 or b.low != b.high or b.low < 1:
        return ANY
    return Bounds(a.low, a.high) if a.high < b.low else Bounds(0, b.low - 1)


_OPERATIONS = {
    "add": _sum,
    "sub": lambda a, b: Bounds(a.low - b.high, a.high - b.low, math.gcd(a.divisor, b.divisor)),
    "mul": _product,
    "div": _quotient,
    "rem": _remainder,
}


def accesses_of(unit):
    """The accesses of the functions of a C program, with the bounds of their indices."""
    return verifier_of(unit).run(*bodies_of(unit))


def unproved(net, example):
    """The accesses of the C program of `net` that are not proved to be inside of their arrays, as text."""
    accesses = accesses_of(build_unit(net, example, "net", "sum"))
    return [str(access) for access in accesses if not access.is_proved or access.index.is_empty]


def bodies_of(unit):
    """The statements of each function of a C program."""
    return unit.resets, unit.from_numbers, unit.from_events, unit.static, unit.step


def verifier_of(unit):
    """A verifier that knows the arrays of a C program."""
    lengths = {name: count or 1 for name, _, count in unit.memory.fields()}
    lengths |= {name: values.numel() for name, _, values in unit.constants}
    lengths |= {"input": unit.network.input.size, "events": None}
    contents = {name: ANY for name, kind, _ in unit.memory.fields() if kind == unit.arithmetic.kind}
    contents |= {"events": Bounds(0, 2**32 - 1), "input": ANY}
    for name, _, values in unit.constants:
        is_integer = bool((values == values.round()).all())
        contents[name] = Bounds(int(values.min()), int(values.max())) if is_integer else ANY
    return Verifier(lengths, contents)


def accesses_in(body):
    """The statements of `body` that access memory."""
    kinds = (loops.Load, loops.Store, loops.Fill, loops.Copy)
    for statement in body:
        if isinstance(statement, kinds):
            yield statement
        yield from accesses_in(getattr(statement, "body", ()))


def mutated(body, old, new):
    """`body` with the statements `new` instead of the statement `old`."""
    result = []
    for statement in body:
        if statement is old:
            result += new
        elif any(item.name == "body" for item in fields(statement)):
            result.append(replace(statement, body=tuple(mutated(statement.body, old, new))))
        else:
            result.append(statement)
    return result


def mutations(body):
    """Wrong programs: for each access of `body` one with its index a place later, and one a place earlier.

    For each condition there is one without it. Yields the description, the changed statement, and the body.
    """
    for statement in accesses_in(body):
        for name in ("address", "target", "source"):
            if not hasattr(statement, name):
                continue
            address = getattr(statement, name)
            if isinstance(address, loops.Array) and address.is_number:
                continue
            for by in (1, -1):
                moved = Result(None, address)
                offset = loops.Offset(moved, INT, address, Constant(LONG, by))
                changed = replace(statement, **{name: moved})
                yield f"{name} {by:+}", changed, mutated(body, statement, [offset, changed])
    for condition in conditions_in(body):
        yield "no condition", condition, mutated(body, condition, condition.body)


def conditions_in(body):
    """The conditions in `body`."""
    for statement in body:
        if isinstance(statement, loops.If):
            yield statement
        yield from conditions_in(getattr(statement, "body", ()))
