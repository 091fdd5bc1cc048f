"""Native programs whose buffers lie between protected pages: an access outside of one ends the process.

Every array of a program (constants, states, temporary values) lies in separate pages, directly before the
following protected page, or directly after the previous one. Call :func:`run` in a subprocess.
"""

import ctypes
import mmap
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import torch

import hibana as hb
from hibana.network.native import emitter, kernel
from hibana.runtime.kernels import Code

PAGE = mmap.PAGESIZE
_LIBRARY = ctypes.CDLL(None, use_errno=True)


class Block(emitter.Block):
    """A block with a protected page before and after each array."""

    at_end = True

    def __init__(self):
        super().__init__()
        self.pages = {0}
        """The numbers of the protected pages."""
        self.size = PAGE

    def reserve(self, size):
        rounded = -(-max(size, 1) // PAGE) * PAGE
        offset = self.size + (rounded - size if self.at_end else 0)
        self.size += rounded + PAGE
        self.pages.add(self.size // PAGE - 1)
        return offset

    def packed(self, protected=True):
        memory = mapped(self.size)
        for offset, values in self._parts:
            memory[offset : offset + len(values)] = values
        if protected:
            protect(memory, self.pages)
        return memory


def mapped(size):
    """Zeros in separate pages, as a tensor of bytes."""
    return torch.frombuffer(mmap.mmap(-1, max(size, PAGE)), dtype=torch.uint8)


def protect(memory, pages):
    for page in pages:
        address = ctypes.c_void_p(memory.data_ptr() + page * PAGE)
        if _LIBRARY.mprotect(address, ctypes.c_size_t(PAGE), 0):
            raise OSError(ctypes.get_errno(), "mprotect failed")


def guarded(values, at_end=True):
    """A copy of a tensor between two protected pages."""
    size = values.numel() * values.element_size()
    block = Block()
    block.at_end = at_end
    offset = block.add(values) if size else block.reserve(0)
    return block.packed()[offset : offset + size].view(values.dtype).view(values.shape)


class Guards:
    """A context in which programs are compiled with guarded arrays, including scratch memory."""

    def __init__(self, at_end):
        self.at_end, self.emitters, self.memories = at_end, [], []

    def __enter__(self):
        guards = self

        class Emitter(emitter.Emitter):
            def __init__(self, *args):
                super().__init__(*args)
                guards.emitters.append(self)
                initial = self.initial_state
                initial.packed = lambda: type(initial).packed(initial, protected=False)

        self.patches = ExitStack()

        def scratch(code, *parts):
            return self._scratch(code, parts)

        for target, name, value in (
            *((Block, "at_end", self.at_end), (emitter, "Block", Block), (Code, "scratch", scratch)),
            (kernel, "Emitter", Emitter),
        ):
            self.patches.enter_context(patch.object(target, name, value))
        return self

    def __exit__(self, *error):
        self.patches.close()

    @contextmanager
    def _scratch(self, code, parts):
        """Memory at a fixed address instead of memory from ``malloc``."""
        (_, results), _ = parts
        static_block, step_block = self.emitters[-1].results, self.emitters[-1].scratch
        memories = mapped(results), step_block.packed()
        protect(memories[0], repeated_pages(static_block, results // static_block.size))
        self.memories.append(memories)
        yield tuple(
            kind.from_address(code.constant(memory.data_ptr()))
            for memory, (kind, _) in zip(memories, parts, strict=True)
        )


def repeated_pages(block, count):
    """The numbers of the protected pages of `count` consecutive copies of a block."""
    period = block.size // PAGE
    return {page + copy * period for page in block.pages for copy in range(count)}


def run(net, example, sequences, at_end=True):
    """The outputs of the guarded program of `net` for each of `sequences`, at once and step by step.

    All threads share the scratch memory, so torch must use one thread.
    """
    with Guards(at_end) as guards:
        program = hb.compile(net, example)
    results = []
    for inputs, chunks_of in [(x, n) for x in sequences for n in ([len(x)], [1] * len(x))]:
        stream = program.stream(inputs.shape[1])
        rest = stream._block
        stream._block = mapped(rest.numel()).view(rest.shape)
        stream._block.copy_(rest)
        protect(stream._block, repeated_pages(guards.emitters[-1].initial_state, stream.batch))
        stream._bind(program._native)
        chunks = []
        for chunk in inputs.split(chunks_of):
            outputs = guarded(
                torch.zeros(len(chunk), *stream._output_template.shape, dtype=stream._native_dtype), at_end
            )
            stream._launch(len(chunk), guarded(chunk, at_end), outputs, stream._shape.numel())
            chunks.append(outputs.clone())
        results.append(torch.cat(chunks))
    return results
