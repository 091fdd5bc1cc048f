"""Prints functions of :mod:`hibana.runtime.loops` as LLVM IR.

A pure instruction whose operands are all defined outside of a loop is printed before that loop.
"""

import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from hibana.runtime import loops
from hibana.runtime.loops import Constant, Definition, Operand, Result, Undefined
from hibana.runtime.types import Type

_BINARY = {
    "add": ("add", "fadd"),
    "sub": ("sub", "fsub"),
    "mul": ("mul", "fmul"),
    "div": ("udiv", "fdiv"),
    "rem": ("urem", "frem"),
    "and": ("and", ""),
    "or": ("or", ""),
    "xor": ("xor", ""),
    "shl": ("shl", ""),
    "shr": ("lshr", ""),
    "lt": ("icmp slt", "fcmp olt"),
    "le": ("icmp sle", "fcmp ole"),
    "gt": ("icmp sgt", "fcmp ogt"),
    "ge": ("icmp sge", "fcmp oge"),
    "eq": ("icmp eq", "fcmp oeq"),
    "ne": ("icmp ne", "fcmp une"),
}
"""LLVM's instructions for integers and for floats."""

_CONVERSIONS = {
    "extend": ("zext", "fpext"),
    "shorten": ("trunc", "fptrunc"),
    "extend signed": ("sext", ""),
    "real": ("sitofp", ""),
    "bits": ("bitcast", "bitcast"),
    "pointer": ("inttoptr", ""),
}

_PURE = {*_BINARY, *_CONVERSIONS, "select", "neg", "address", "exists", "insert", "shuffle", "spread"}
_PURE -= {"div", "rem", "real"}
"""Operations that can be moved out of a loop, because they read no memory and can't fail."""

_METADATA = "!0 = !{i32 1}"
"""The operand of ``!nontemporal``."""

_HEAP = ("declare noalias ptr @malloc(i64)", "declare void @free(ptr)")


def module(definition: Definition) -> str:
    """The LLVM IR module of a function and of all functions that it calls."""
    texts: dict[str, None] = {}
    _add_texts(definition, texts)
    return "\n\n".join([*texts, _METADATA]) + "\n"


def _add_texts(definition: Definition, texts: dict[str, None]) -> None:
    """Adds the text of a function to `texts`, after those of the functions that it calls."""
    printer = _Printer()
    text = printer.function(definition)
    for callee in printer.callees:
        if isinstance(callee, Definition):
            _add_texts(callee, texts)
        else:
            types = ", ".join(_type(parameter) for parameter in callee.parameters)
            texts[f"declare {callee.result or 'void'} @{callee.name}({types})"] = None
    if printer.allocates:
        texts |= dict.fromkeys(_HEAP)
    texts[text] = None


def _type(type_: Type | None) -> str:
    """LLVM's name of a type; all addresses are ``ptr``."""
    return "ptr" if type_ is None else str(type_)


def _constant(type_: Type, number: float) -> str:
    """The constant `number`, in each lane of `type_`."""
    if type_.real:
        if type_.bits == 32:
            (number,) = struct.unpack("<f", struct.pack("<f", number))
        is_short = abs(number) < 1 << 24 and number == int(number)
        text = f"{number:.1f}" if is_short else f"0x{struct.pack('>d', number).hex().upper()}"
    elif type_.bits == 1:
        text = "true" if number else "false"
    else:
        text = str(int(number))
    return text if type_.width == 1 else f"splat ({type_.element} {text})"


def _parameter(name: str) -> str:
    """The identifier of a parameter, quoted if it has other characters than ASCII letters and digits."""
    if re.fullmatch(r"[\w.-]+", name, re.ASCII):
        return f"%{name}"
    return '%"' + "".join(f"\\{byte:02X}" for byte in name.encode()) + '"'


class _Printer:
    """The lines of one function. Its own names begin with a dot, which names of parameters can't."""

    def __init__(self) -> None:
        self.callees: dict[Definition | loops.Declaration, None] = {}
        """The functions that it calls, in order."""
        self.allocates = False
        """Whether it uses heap memory."""
        self._variables: list[str] = []
        """Lines that allocate memory on the stack, for the beginning of the function."""
        self._lines: list[str | list[str]] = []
        """The lines in order; a list holds the lines before a loop, which grow while the loop is printed."""
        self._lines_before_loops: list[list[str]] = []
        """For each open loop, outermost first: the lines to print before it."""
        self._names: dict[Result, str] = {}
        self._loops_around: dict[Result, int] = {}
        """For each value: the number of loops around its definition."""
        self._count = 0
        self._depth = 1

    def function(self, definition: Definition) -> str:
        """The text of `definition`."""
        for parameter in definition.parameters:
            self._names[parameter] = _parameter(parameter.name)
        self._print(definition.body)
        is_kernel, result = definition.linkage == "kernel", definition.result
        parameters = ", ".join(
            f"{_type(p.type)}{' noalias readonly' * (is_kernel and p.type is None)} {self._names[p]}"
            for p in definition.parameters
        )
        linkage = "internal " if definition.linkage == "internal" else ""
        type_ = "void" if result is None else _type(result.type)
        head = f"define {linkage}{type_} @{definition.name}({parameters}){' nounwind' * is_kernel} {{"
        lines = [line for item in self._lines for line in ([item] if isinstance(item, str) else item)]
        end = f"  ret {'void' if result is None else self._typed(result)}"
        return "\n".join([head, *self._variables, *lines, end, "}"])

    def _print(self, body: loops.Body) -> None:
        """Prints statements."""
        for statement in body:
            self._print_statement(statement)

    def _print_statement(self, statement: loops.Statement) -> None:
        """Prints one statement. Raises a TypeError if LLVM IR has no form of it."""
        text, typed = self._text, self._typed
        match statement:
            case loops.Let():
                self._print_let(statement)
            case loops.Offset(result, element, address, count):
                instruction = f"getelementptr {element.element}, ptr {text(address)}, i64 {text(count)}"
                self._define(result, instruction, address, count)
            case loops.Load(result, address, align):
                self._define(result, f"load {_type(result.type)}, ptr {text(address)}, align {align}")
            case loops.MaskedLoad(result, address, align, mask, other):
                self._masked_load("load", "", result, f"ptr {text(address)}", align, mask, other)
            case loops.Gather(result, element, address, indices, mask, other):
                places = Result(None)
                instruction = f"getelementptr {element}, ptr {text(address)}, {typed(indices)}"
                self._define(places, instruction, address, indices)
                width = indices.type.width if indices.type else 0
                addresses = f"<{width} x ptr> {text(places)}"
                self._masked_load("gather", f"v{width}", result, addresses, element.size, mask, other)
            case loops.Store(address, value, align, nontemporal):
                hint = ", !nontemporal !0" if nontemporal else ""
                self._do(f"store {typed(value)}, ptr {text(address)}, align {align}{hint}")
            case loops.MaskedStore(address, value, align, mask):
                assert value.type
                name = f"@llvm.masked.store.{value.type.mangled}.p0"
                self._do(f"call void {name}({typed(value)}, ptr {text(address)}, i32 {align}, {typed(mask)})")
            case loops.Define(variable, value):
                self._names[variable] = self._allocate("v", _type(variable.type))
                self._do(f"store {typed(value)}, ptr {text(variable)}")
            case loops.Read(result, variable):
                self._define(result, f"load {result.type}, ptr {text(variable)}")
            case loops.Assign(variable, value):
                self._do(f"store {typed(value)}, ptr {text(variable)}")
            case loops.Name(result, value):
                self._names[result] = text(value)
                self._loops_around[result] = self._loops(value)
            case loops.Call(result, function, arguments):
                self._print_call(result, function, arguments)
            case loops.For():
                self._print_for(statement)
            case loops.If(condition, body):
                name = self._fresh("w")
                with self._branch(name, text(condition)):
                    self._print(body)
                self._begin(f"{name}.done")
            case loops.Repeat(body, again):
                name = self._fresh("r")
                with self._region():
                    self._begin(f"{name}.body")
                    self._print(body)
                    self._do(f"br i1 {text(again)}, label %{name}.body, label %{name}.done")
                self._label(f"{name}.done")
            case loops.Scratch(result, size, body):
                self.allocates = True
                self._define(result, f"call ptr @malloc({typed(size)})")
                self._print(body)
                self._do(f"call void @free(ptr {text(result)})")
            case loops.Allocate(result, element, count, align):
                self._names[result] = self._allocate("m", f"[{count} x {element}], align {align}")
            case loops.Fill(address, size, count, byte):
                arguments_ = f"ptr {text(address)}, i8 {byte}, i64 {self._bytes(count, size)}, i1 false"
                self._do(f"call void @llvm.memset.p0.i64({arguments_})")
            case loops.Copy(target, source, size, count):
                arguments_ = (
                    f"ptr {text(target)}, ptr {text(source)}, i64 {self._bytes(count, size)}, i1 false"
                )
                self._do(f"call void @llvm.memcpy.p0.p0.i64({arguments_})")
            case loops.AtomicAdd(result, address, value):
                self._define(result, f"atomicrmw add ptr {text(address)}, {typed(value)} seq_cst, align 8")
            case loops.AtomicLoad(result, address):
                self._define(result, f"load atomic {result.type}, ptr {text(address)} seq_cst, align 8")
            case loops.Fence():
                self._do("fence seq_cst")
            case loops.Prefetch(address, to_write):
                self._do(
                    f"call void @llvm.prefetch.p0(ptr {text(address)}, i32 {int(to_write)}, i32 3, i32 1)"
                )
            case _:
                raise TypeError(f"LLVM IR has no form of {statement!r}")

    def _print_let(self, let: loops.Let) -> None:
        """Prints an operation."""
        result, operation, operands, lanes = let.result, let.operation, let.operands, let.lanes
        first, type_ = operands[0], operands[0].type
        typed = self._typed(first)
        if type_ is not None and operation in _BINARY:
            instruction = f"{_BINARY[operation][type_.real]} {typed}, {self._text(operands[1])}"
        elif type_ is not None and operation in _CONVERSIONS:
            instruction = f"{_CONVERSIONS[operation][type_.real]} {typed} to {_type(result.type)}"
        elif operation == "select":
            instruction = f"select {', '.join(map(self._typed, operands))}"
        elif operation == "neg":
            instruction = f"fneg {typed}"
        elif operation == "address":
            instruction = f"ptrtoint {typed} to {result.type}"
        elif operation == "exists":
            instruction = f"icmp ne {typed}, null"
        elif operation == "extract":
            instruction = f"extractelement {typed}, i32 {lanes[0]}"
        elif operation == "insert":
            instruction = f"insertelement {typed}, {self._typed(operands[1])}, i32 {lanes[0]}"
        elif operation == "shuffle":
            instruction = self._shuffle(typed, self._typed(operands[1]), lanes)
        elif operation == "spread":
            vector = Result(result.type)
            self._define(vector, f"insertelement {vector.type} poison, {typed}, i32 0", first)
            instruction = self._shuffle(self._typed(vector), self._typed(vector), lanes)
        elif operation == "sum":
            assert type_
            flags, start = ("reassoc", f"{result.type} -0.0, ") if type_.real else ("", "")
            name = f"llvm.vector.reduce.{'fadd' if type_.real else 'add'}.{type_.mangled}"
            instruction = f"call {flags} {result.type} @{name}({start}{typed})"
        else:
            assert type_
            arguments = ", ".join(map(self._typed, operands))
            instruction = f"call {result.type} @llvm.{operation}.{type_.mangled}({arguments})"
        self._define(result, instruction, *(operands if operation in _PURE else ()))

    def _print_call(
        self,
        result: Result | None,
        function: Definition | loops.Declaration | Operand,
        arguments: tuple[Operand, ...],
    ) -> None:
        """Prints a call."""
        if isinstance(function, Definition | loops.Declaration):
            self.callees[function] = None
            callee = f"@{function.name}"
        else:
            callee = self._text(function)
        type_ = "void" if result is None else _type(result.type)
        instruction = f"call {type_} {callee}({', '.join(map(self._typed, arguments))})"
        if result is None:
            self._do(instruction)
        else:
            self._define(result, instruction)

    def _print_for(self, loop: loops.For) -> None:
        """Prints a loop."""
        name = self._fresh("i")
        self._names[loop.index] = f"%{name}"
        start, stop, step = (self._text(operand) for operand in (loop.start, loop.stop, loop.step))
        self._begin(f"{name}.enter")
        with self._region():
            self._begin(f"{name}.test")
            self._loops_around[loop.index] = len(self._lines_before_loops)
            self._do(f"%{name} = phi i64 [ {start}, %{name}.enter ], [ %{name}.next, %{name}.again ]")
            self._do(f"%{name}.more = icmp slt i64 %{name}, {stop}")
            with self._branch(name, f"%{name}.more"):
                self._print(loop.body)
            self._begin(f"{name}.again")
            self._do(f"%{name}.next = add i64 %{name}, {step}")
            self._do(f"br label %{name}.test")
        self._label(f"{name}.done")

    def _masked_load(
        self,
        operation: str,
        suffix: str,
        result: Result,
        address: str,
        align: int,
        mask: Operand,
        other: Operand,
    ) -> None:
        """Prints a load or gather of the lanes inside of `mask`; the others are `other`."""
        assert result.type
        name = f"@llvm.masked.{operation}.{result.type.mangled}.{suffix}p0"
        options = f"i32 {align}, {self._typed(mask)}, {self._typed(other)}"
        self._define(result, f"call {result.type} {name}({address}, {options})")

    def _shuffle(self, first: str, second: str, lanes: tuple[int, ...]) -> str:
        """The instruction that takes `lanes` of the concatenation of two vectors."""
        indices = f"<{', '.join([f'i32 {lane}' for lane in lanes])}>" if any(lanes) else "zeroinitializer"
        return f"shufflevector {first}, {second}, <{len(lanes)} x i32> {indices}"

    def _bytes(self, count: Operand, size: int) -> str:
        """The number of bytes of `count` elements of `size` bytes."""
        if isinstance(count, Constant):
            return str(int(count.number) * size)
        product = Result(count.type)
        self._define(product, f"mul {self._typed(count)}, {size}", count)
        return self._text(product)

    def _text(self, operand: Operand) -> str:
        """The operand in LLVM's notation, without its type."""
        if isinstance(operand, Result):
            return self._names[operand]
        if isinstance(operand, Constant):
            return _constant(operand.type, operand.number)
        if isinstance(operand, Undefined):
            return "undef"
        return f"<{', '.join(f'{operand.type.element} {i}' for i in range(operand.type.width))}>"

    def _typed(self, operand: Operand) -> str:
        """The operand in LLVM's notation, with its type."""
        return f"{_type(operand.type)} {self._text(operand)}"

    def _loops(self, operand: Operand) -> int:
        """The number of loops around the definition of an operand."""
        return self._loops_around.get(operand, 0) if isinstance(operand, Result) else 0

    def _define(self, result: Result, instruction: str, *operands: Operand) -> None:
        """Prints the instruction that defines `result`, before the loops that define none of its `operands`.

        It stays in its loop if none are given, because it reads memory or can fail.
        """
        self._count += 1
        name = self._names[result] = f"%.{self._count}"
        loops_ = len(self._lines_before_loops)
        if loops_ and operands:
            loops_ = min(loops_, max(map(self._loops, operands), default=0))
        if loops_ < len(self._lines_before_loops):
            self._lines_before_loops[loops_].append(f"  {name} = {instruction}")
        else:
            self._do(f"{name} = {instruction}")
        self._loops_around[result] = loops_

    def _allocate(self, kind: str, type_: str) -> str:
        """A new variable or array on the stack, whose name begins with `kind`."""
        name = f"%{self._fresh(kind)}"
        self._variables.append(f"  {name} = alloca {type_}")
        return name

    def _do(self, line: str) -> None:
        """Appends a line."""
        self._lines.append("  " * self._depth + line)

    def _label(self, name: str) -> None:
        """Begins a basic block called `name`."""
        self._lines.append(f"{'  ' * (self._depth - 1)}{name}:")

    def _begin(self, block: str) -> None:
        """Ends the current basic block with a branch to a new one."""
        self._do(f"br label %{block}")
        self._label(block)

    @contextmanager
    def _branch(self, name: str, condition: str) -> Iterator[None]:
        """A block that is entered if `condition` is true; otherwise control goes to ``NAME.done``."""
        self._do(f"br i1 {condition}, label %{name}.body, label %{name}.done")
        self._label(f"{name}.body")
        self._depth += 1
        yield
        self._depth -= 1

    @contextmanager
    def _region(self) -> Iterator[None]:
        """Marks the lines that the ``with`` block prints as the body of a loop."""
        lines_before = list[str]()
        self._lines.append(lines_before)
        self._lines_before_loops.append(lines_before)
        yield
        self._lines_before_loops.pop()

    def _fresh(self, kind: str) -> str:
        """A new name of a variable or block, which begins with a dot and `kind`."""
        self._count += 1
        return f".{kind}{self._count}"
