"""hibana (火花, spark): integrate-and-fire spiking networks for PyTorch.

Write one step; hibana runs it over time.

>>> import torch, hibana as hb
>>> net = torch.nn.Sequential(torch.nn.Linear(2, 8), hb.IF(), torch.nn.Linear(8, 3), hb.LI())
>>> potentials = net(torch.rand(25, 4, 2))  # [T, batch, ...]
>>> potentials.shape
torch.Size([25, 4, 3])

The module imports cells, their layers and the loop over time. Other names are imported when first accessed.
"""

import importlib
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

from hibana.runtime import openmp_spin  # must be imported before torch
from hibana.version import __version__ as __version__

if openmp_spin.is_command() and sys.argv[1:] == ["--version"]:  # the imports below take seconds
    print(__version__)
    raise SystemExit

if not getattr(sys, "_is_gil_enabled", lambda: True)():
    raise ImportError(
        "hibana needs Python's global interpreter lock, which is off in this process: threads share its "
        "caches of kernels; start Python with PYTHON_GIL=1 or -X gil=1"
    )

# isort: split
from hibana.cells import (
    AdLIFCell,
    ALIFCell,
    Cell,
    CubaLIFCell,
    EIFCell,
    ExactLIFCell,
    IFCell,
    IzhikevichCell,
    LICell,
    LIFCell,
    PLIFCell,
    QIFCell,
    RefractoryLIFCell,
    ResonateAndFireCell,
    SiLIFCell,
    log_uniform,
    peer_aliases,
    spike,
    surrogate,
)
from hibana.cells.surrogate import Heaviside
from hibana.compiler import NetworkWarning, SlowPathWarning, explain, named_kernels, record, unroll
from hibana.nn.layers import (
    ALIF,
    EIF,
    IF,
    LI,
    LIF,
    PLIF,
    QIF,
    AdLIF,
    CubaLIF,
    ExactLIF,
    Izhikevich,
    OverTime,
    Recurrent,
    RefractoryLIF,
    ResonateAndFire,
    SiLIF,
    run,
)
from hibana.runtime import extras

if TYPE_CHECKING:
    from torch import Tensor

    from hibana import data as data
    from hibana import learn as learn
    from hibana import network as convert
    from hibana import plot as plot
    from hibana import spikes as events
    from hibana import train as train
    from hibana.cli import demo as demo
    from hibana.cli import play as play
    from hibana.network import from_ann, quantize
    from hibana.network import models as models
    from hibana.network import nir as nir
    from hibana.network.fold import fold_batchnorm
    from hibana.network.native import compile  # noqa: A004 - as torch.compile
    from hibana.network.simulate import simulate
    from hibana.network.stimulus import Stimulus
    from hibana.nn import encode, lengths, loss
    from hibana.nn import metrics as metrics
    from hibana.nn.blocks import Checkpointed, Normalized, StepsDropout, ThresholdBatchNorm2d
    from hibana.nn.checking import check
    from hibana.nn.delay import Delay, fix_delays, narrow_delays
    from hibana.nn.delayed_linear import DelayedLinear, DelayedRecurrent
    from hibana.nn.each_step import EachStep
    from hibana.nn.optimize import optimize
    from hibana.nn.sparse_linear import SparseLinear
    from hibana.nn.spike_trains import SpikeTrains
    from hibana.nn.window import Window
    from hibana.runtime.heap import keep_memory
    from hibana.spikes import Conv2d, Linear
    from hibana.spikes.sparse import connect as connect
    from hibana.spikes.tune import tune
    from hibana.train import estimators as sklearn  # noqa: F401 - hibana.sklearn for type checkers
    from hibana.train.pretrained import pretrained

_PUBLIC = {
    "connect": "spikes.sparse.connect",
    "convert": "network",
    "data": "data",
    "demo": "cli.demo",
    "encode": "nn.encode",
    "events": "spikes",
    "learn": "learn",
    "lengths": "nn.lengths",
    "loss": "nn.loss",
    "metrics": "nn.metrics",
    "models": "network.models",
    "nir": "network.nir",
    "play": "cli.play",
    "plot": "plot",
    "sklearn": "train.estimators",
    "surrogate": "cells.surrogate",
    "train": "train",
}
"""Module of each public name: ``import hibana.loss`` imports ``hibana.nn.loss``."""
_MODULES = {
    "network": ("from_ann", "quantize"),
    "network.native": ("compile",),
    "network.simulate": ("simulate",),
    "network.stimulus": ("Stimulus",),
    "nn.blocks": ("Checkpointed", "Normalized", "StepsDropout", "ThresholdBatchNorm2d"),
    "nn.checking": ("check",),
    "nn.delay": ("Delay", "fix_delays", "narrow_delays"),
    "nn.delayed_linear": ("DelayedLinear", "DelayedRecurrent"),
    "nn.each_step": ("EachStep",),
    "network.fold": ("fold_batchnorm",),
    "nn.optimize": ("optimize",),
    "nn.sparse_linear": ("SparseLinear",),
    "nn.spike_trains": ("SpikeTrains",),
    "nn.window": ("Window",),
    "runtime.heap": ("keep_memory",),
    "spikes": ("Conv2d", "Linear"),
    "spikes.tune": ("tune",),
    "train.pretrained": ("pretrained",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}
"""Module of each name that is imported when first accessed."""

__all__ = [
    "ALIF",
    "ALIFCell",
    "AdLIF",
    "AdLIFCell",
    "Cell",
    "Checkpointed",
    "Conv2d",
    "CubaLIF",
    "CubaLIFCell",
    "Delay",
    "DelayedLinear",
    "DelayedRecurrent",
    "EIF",
    "EIFCell",
    "EachStep",
    "ExactLIF",
    "ExactLIFCell",
    "Heaviside",
    "IF",
    "IFCell",
    "Izhikevich",
    "IzhikevichCell",
    "LI",
    "LICell",
    "LIF",
    "LIFCell",
    "Linear",
    "NetworkWarning",
    "Normalized",
    "OverTime",
    "PLIF",
    "PLIFCell",
    "QIF",
    "QIFCell",
    "Recurrent",
    "RefractoryLIF",
    "RefractoryLIFCell",
    "ResonateAndFire",
    "ResonateAndFireCell",
    "SiLIF",
    "SiLIFCell",
    "SlowPathWarning",
    "SparseLinear",
    "SpikeTrains",
    "StepsDropout",
    "Stimulus",
    "ThresholdBatchNorm2d",
    "Window",
    "check",
    "compile",
    "connect",
    "convert",
    "encode",
    "events",
    "explain",
    "fix_delays",
    "fold_batchnorm",
    "from_ann",
    "keep_memory",
    "lengths",
    "log_uniform",
    "loss",
    "narrow_delays",
    "optimize",
    "pretrained",
    "quantize",
    "record",
    "run",
    "simulate",
    "spike",
    "surrogate",
    "tune",
    "unroll",
]


def _bit_product(rows: "Tensor", words: "Tensor") -> "Tensor":
    """``rows^T B`` for packed bits `words`; imports :mod:`hibana.spikes` at the first call."""
    from hibana.spikes.linear import product

    return product.product_with_bits(rows, words)


def _synapse_sums(row_starts: "Tensor", targets: "Tensor", rows: "Tensor", x: "Tensor") -> "Tensor":
    """For each synapse the sum of ``x[:, source] rows[:, target]``; `x` are numbers, or words of bits."""
    from hibana.runtime.synapses import SynapseIndex
    from hibana.spikes.bits import Planes
    from hibana.spikes.sparse import product

    neurons = rows.shape[1]
    index = SynapseIndex.check(row_starts, targets, None, neurons, neurons)
    if x.dtype == rows.dtype:
        return product.sums_per_synapse(index, x, rows)
    sums = product.SparseProduct(rows.shape, index)
    return sums.weight_gradient(Planes(x[None], 1.0), sums.gradient_rows(rows))


named_kernels.bit_product = _bit_product
named_kernels.synapse_sums = _synapse_sums
peer_aliases.suggest_attributes(surrogate, "hibana.surrogate")


class _PublicModules:
    """Import finder that makes ``hibana.loss`` the same module as ``hibana.nn.loss``; see :data:`_PUBLIC`."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        package, _, public = name.rpartition(".")
        is_alias = package == "hibana" and _PUBLIC.get(public, public) != public
        return ModuleSpec(name, self) if is_alias else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = _public_module(spec.name.rpartition(".")[2])
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Restores the specification of a module that :meth:`create_module` has already executed."""
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state


sys.meta_path.append(_PublicModules())


def _public_module(name: str) -> ModuleType:
    """The module that is public as ``hibana.{name}``."""
    module = importlib.import_module(f"hibana.{_PUBLIC[name]}")
    return peer_aliases.suggest_attributes(module, f"hibana.{name}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_PUBLIC})


def __getattr__(name: str) -> Any:
    """The public module, function or class `name`, imported now.

    Raises AttributeError if the name does not exist, or a package that it needs is not installed.
    """
    if name in _MODULE_OF:
        with extras.explain_import_error(f"hibana.{name}"):
            value = getattr(importlib.import_module(f"hibana.{_MODULE_OF[name]}"), name)
        return globals().setdefault(name, value)
    if name not in _PUBLIC:
        raise peer_aliases.unknown_name_error(name, __dir__())
    try:
        return _public_module(name)
    except ModuleNotFoundError as error:
        message = extras.missing_module_message(error)
        if message is None:
            raise
        raise AttributeError(f"hibana.{name} {message}") from error
