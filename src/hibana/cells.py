"""One step of each neuron, in plain PyTorch.

A *cell* maps ``(input, *previous state)`` to the next state; **the last state is what the layer
emits**. This room holds equations only: nothing here loops over time, allocates a backward or knows a
device. A neuron of your own is a subclass of :class:`Cell` with one method:

>>> class Doubler(Cell):
...     def forward(self, input_, v_previous, s_previous):
...         v = 2.0 * v_previous * (1.0 - s_previous) + input_
...         return v, Step()(v - 1.0)
"""

import inspect
import math
import sys
from abc import abstractmethod
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from hibana.surrogate import Step, Surrogate

__all__ = [
    "ALIFCell",
    "AtLeast",
    "Cell",
    "CubaLIFCell",
    "EIFCell",
    "IFCell",
    "IzhikevichCell",
    "LICell",
    "LIFCell",
    "PLIFCell",
    "QIFCell",
    "RefractoryLIFCell",
]

Value = float | Tensor
"""A hyper-parameter: a float, a tensor that broadcasts per neuron, or an ``nn.Parameter``, which is learned.

Time constants and thresholds that are learned stay in their range: :class:`AtLeast`.
"""
Reset = Value | Literal["subtract"]
"""A potential to reset to (hard), or ``"subtract"``: the threshold is subtracted (soft)."""


class Cell(nn.Module):
    """One step of a neuron: ``forward(input_, *state) -> state``, pointwise, the emitted state last.

    Hyper-parameters are attributes: floats, tensors that broadcast against one step of input, or
    ``nn.Parameter``s. A tensor that is assigned becomes a buffer, so it moves with the module.
    """

    emits_spikes: bool | None = None
    """Whether what it emits are zeros and ones. None: as its step says (:func:`hibana.loop.emits_spikes`)."""
    states: tuple[str, ...]
    """:meth:`state_names`, looked up once."""
    made: dict[Any, Any]
    """What :mod:`hibana.loop` has made of the cell; gone as soon as an attribute is set."""

    def __init__(self) -> None:
        super().__init__()
        self._enter()

    def __setstate__(self, state: dict[str, object]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call] # torch leaves it so
        self._enter()

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "made"}

    def _enter(self) -> None:
        self.states = self.state_names()

    def __setattr__(self, name: str, value: Any) -> None:
        self.__dict__.pop("made", None)
        plain = isinstance(value, Tensor) and not isinstance(value, nn.Parameter)
        known = self.__dict__.get("_buffers", {})
        if plain and name not in known and name not in self.__dict__.get("_parameters", {}):
            self.__dict__.pop(name, None)
            self.register_buffer(name, value)
            return
        if name in known and not isinstance(value, Tensor):
            del known[name]
        super().__setattr__(name, value)

    @abstractmethod
    def forward(self, input_: Tensor, /, *state: Tensor) -> tuple[Tensor, ...]:
        """The next state, from one step of input and the previous state, all of one shape."""
        raise NotImplementedError(f"{type(self).__name__} must define forward(input_, *state) -> state")

    @classmethod
    def state_names(cls) -> tuple[str, ...]:
        """The names of the states: the parameters of ``forward`` after the input, less ``_previous``.

        >>> IFCell.state_names()
        ('v', 's')

        Raises:
            TypeError: if ``forward`` does not name its states one by one.
        """
        _, _, *states = inspect.signature(cls.forward).parameters.values()
        if not states or any(p.kind is not p.POSITIONAL_OR_KEYWORD for p in states):
            raise TypeError(
                f"{cls.__name__}.forward must name each state, as in forward(self, input_, v, spikes); "
                f"got {inspect.signature(cls.forward)}"
            )
        return tuple(p.name.removesuffix("_previous") for p in states)

    def initial_state(self, input_: Tensor) -> tuple[Tensor, ...]:
        """The state at rest: by default zeros like one step of input, one tensor for each state."""
        return tuple(torch.zeros_like(input_) for _ in self.state_names())

    def rests_at_zero(self) -> bool:
        """Whether :meth:`initial_state` is known to be all zeros, which then need not be written out."""
        return type(self).initial_state is Cell.initial_state


class AtLeast:
    """A hyper-parameter that stays at `least` or above, whatever an optimiser makes of its parameter.

    Declared in a cell's class, it is what reading the attribute gives: a float or a tensor as it was set, and
    for an ``nn.Parameter`` ``p``, which an optimiser can take anywhere,

        value = p              where p >= least
                2 * least - p  elsewhere

    In its range it is `p`, the user's own object; beyond the bound it counts from there inwards, so that the
    gradient turns `p` back. ``named_parameters()`` and ``state_dict()`` hold `p` under its name either way.

    Args:
        least: the bound; 0 stands for the smallest number of the parameter's precision, since what must be
            positive can't be zero.

    >>> class Leaky(Cell):
    ...     tau = AtLeast(1.0)
    ...     def __init__(self, tau):
    ...         super().__init__()
    ...         self.tau = tau
    ...     def forward(self, input_, v_previous):
    ...         return (v_previous * (1 - 1 / self.tau) + input_,)
    >>> cell = Leaky(nn.Parameter(torch.tensor(2.0)))
    >>> with torch.no_grad():
    ...     _ = next(cell.parameters()).fill_(0.75)
    >>> cell.tau
    tensor(1.2500, grad_fn=<AddBackward0>)
    """

    def __init__(self, least: float) -> None:
        self.least = least
        self.name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, cell: Cell | None, owner: type) -> Any:
        # a float lies in the instance, where Python finds it before it comes here
        if cell is None:
            return self
        own = vars(cell)
        if self.name in own.get("_buffers", ()):
            return own["_buffers"][self.name]
        if self.name not in own.get("_parameters", ()):
            raise AttributeError(f"{type(cell).__name__} has no attribute {self.name!r}")
        parameter = own["_parameters"][self.name]
        if _is_sharded(parameter):
            return parameter  # fully_shard keeps it so between calls, and reads it to keep it
        least = max(self.least, torch.finfo(parameter.dtype).tiny)
        if _can_branch_on(parameter) and bool((parameter >= least).all()):
            return parameter
        inside = (parameter >= least).to(parameter.dtype)
        # not torch.where: its derivative takes a truth value per neuron to where kernels take numbers
        return parameter * (2 * inside - 1) + (1 - inside) * (2 * least)


def _is_sharded(parameter: Tensor) -> bool:
    """Whether this process holds a part of `parameter`; no step runs on such a one."""
    distributed = sys.modules.get("torch.distributed.tensor")  # loaded by whoever shards
    return distributed is not None and isinstance(parameter, distributed.DTensor)


def _can_branch_on(parameter: Tensor) -> bool:
    """Whether what `parameter` holds now may decide what is computed: not what is written down for later.

    What writes one down (a trace of the step, :func:`torch.func.functional_call`, fake tensors) puts other
    tensors in the parameters' place, is a mode, or says so.
    """
    return (
        type(parameter) is nn.Parameter
        and not parameter.is_meta
        and not torch.compiler.is_compiling()
        and torch._C._get_tracing_state() is None  # of torch.jit.trace
        and torch._C._len_torch_dispatch_stack() == 0
        and not (parameter.is_cuda and torch.cuda.is_current_stream_capturing())
    )


def _check_type(name: str, value: Value) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float | Tensor):
        raise TypeError(f"{name} must be a float or a tensor, got {type(value).__name__}")


def _has_values(value: Tensor) -> bool:
    """Whether `value` holds numbers, rather than the shape of some that are loaded later, or never."""
    from torch._subclasses.fake_tensor import is_fake

    return not value.is_meta and not is_fake(value)


def _positive(name: str, value: Value) -> Value:
    """`value`, if each of its elements is positive and finite."""
    _check_type(name, value)
    if isinstance(value, Tensor):
        right = value.is_floating_point() and (
            not _has_values(value) or bool(((value > 0) & value.isfinite()).all())
        )
    else:
        value = float(value)
        right = math.isfinite(value) and value > 0
    if not right:
        raise ValueError(f"{name} must be positive and finite, got {value!r}")
    return value


def _finite(name: str, value: Value) -> Value:
    """`value`, if each of its elements is finite."""
    _check_type(name, value)
    if isinstance(value, Tensor):
        right = not _has_values(value) or bool(value.isfinite().all())
    else:
        right = math.isfinite(value)
    if not right:
        raise ValueError(f"{name} must be finite, got {value!r}")
    return value


def _time_constant(name: str, value: Value) -> Value:
    """`value`, if each of its elements is a time constant of at least one step."""
    if isinstance(value, float) and value == math.inf:
        return value
    _positive(name, value)
    right = not _has_values(value) or bool((value >= 1).all()) if isinstance(value, Tensor) else value >= 1
    if not right:
        raise ValueError(f"{name} is in time steps and must be at least 1, got {value!r}")
    return value


def _surrogate(surrogate: Surrogate) -> Surrogate:
    if not isinstance(surrogate, Surrogate):
        raise TypeError(f"surrogate must be a hibana.surrogate.Surrogate, got {surrogate!r}")
    return surrogate


def _reset(reset: Reset) -> Reset:
    if isinstance(reset, Tensor) or reset == "subtract":
        return reset
    if isinstance(reset, bool) or not isinstance(reset, int | float) or not math.isfinite(reset):
        raise ValueError(f'reset must be a finite potential or "subtract", got {reset!r}')
    return reset


def _after_reset(v: Tensor, spikes: Tensor, threshold: Value, reset: Reset, detach: bool) -> Tensor:
    """The potential at the start of a step: reset where the neuron spiked in the step before."""
    if detach:
        spikes = spikes.detach()
    if isinstance(reset, str):
        return v - spikes * threshold
    if not isinstance(reset, Tensor) and reset == 0:
        return v * (1 - spikes)
    return v * (1 - spikes) + spikes * reset


def _decay(tau: Value) -> Value:
    """What is left of a potential after one step of a leak: ``1 - 1/tau``."""
    return 1 - 1 / tau


class _Spiking(Cell):
    """A cell with a threshold, a reset and a surrogate."""

    threshold = AtLeast(0.0)

    def __init__(self, threshold: Value, reset: Reset, surrogate: Surrogate, detach_reset: bool) -> None:
        super().__init__()
        self.threshold = _positive("threshold", threshold)
        self.reset = _reset(reset)
        self.surrogate = _surrogate(surrogate)
        self.detach_reset = detach_reset

    def _rested(self, v_previous: Tensor, s_previous: Tensor) -> Tensor:
        return _after_reset(v_previous, s_previous, self.threshold, self.reset, self.detach_reset)

    def extra_repr(self) -> str:
        """The hyper-parameters that are not parameters, as they were given."""
        shown = {**vars(self), **self._buffers}
        names = [name for name in inspect.signature(type(self)).parameters if name in shown]
        return ", ".join(f"{name}={shown[name]!r}" for name in names)


@final
class IFCell(_Spiking):
    """Integrate-and-fire, exactly as the article writes it.

        v = v_previous * (1 - s_previous) + input_
        s = H(v - threshold)

    The returned `v` is the potential **before** the reset; the reset happens at the start of the next
    step, and the gradient flows through it unless `detach_reset`.

    Args:
        threshold: spikes where ``v > threshold``; positive, in units of `v`.
        surrogate: the derivative of ``H``.
        detach_reset: stop the gradient at the reset.
        reset: the potential after a spike, or ``"subtract"`` to subtract the threshold.
        initial: the potential at the start, zero by default. Half a threshold makes a count of spikes
            round to the nearest instead of down (:func:`hibana.from_ann`).

    Source: the article; Lapicque (1907).

    >>> import torch
    >>> IFCell()(torch.tensor([0.5, 0.5]), torch.tensor([0.6, 1.1]), torch.tensor([0.0, 1.0]))
    (tensor([1.1000, 0.5000]), tensor([1., 0.]))
    """

    def __init__(
        self,
        threshold: Value = 1.0,
        surrogate: Surrogate = Step(),
        detach_reset: bool = False,
        *,
        reset: Reset = 0.0,
        initial: Value = 0.0,
    ) -> None:
        super().__init__(threshold, reset, surrogate, detach_reset)
        self.initial = _finite("initial", initial)

    def forward(  # type: ignore[override]
        self, input_: Tensor, v_previous: Tensor, s_previous: Tensor
    ) -> tuple[Tensor, Tensor]:
        v = self._rested(v_previous, s_previous) + input_
        return v, self.surrogate(v - self.threshold)

    def initial_state(self, input_: Tensor) -> tuple[Tensor, ...]:
        """The potential at `initial`, and no spike."""
        spikes = torch.zeros_like(input_)
        return spikes + self.initial, spikes

    def rests_at_zero(self) -> bool:
        return not isinstance(self.initial, Tensor) and self.initial == 0


@final
class LIFCell(_Spiking):
    """Leaky integrate-and-fire.

        v = (1 - 1/tau) * rested(v_previous) + input_,   rested(v) = v * (1 - s_previous)
        s = H(v - threshold)

    Args:
        tau: membrane time constant in time steps, at least 1; infinite is :class:`IFCell`.
        threshold: spikes where ``v > threshold``.
        surrogate: the derivative of ``H``.
        detach_reset: stop the gradient at the reset.
        reset: the potential after a spike, or ``"subtract"``.

    Source: Gerstner, Kistler, Naud & Paninski (2014), *Neuronal dynamics*, section 1.3, in forward
    Euler steps, the input in units of potential per step.
    """

    tau = AtLeast(1.0)

    def __init__(
        self,
        tau: Value = 2.0,
        threshold: Value = 1.0,
        surrogate: Surrogate = Step(),
        detach_reset: bool = False,
        *,
        reset: Reset = 0.0,
    ) -> None:
        super().__init__(threshold, reset, surrogate, detach_reset)
        self.tau = _time_constant("tau", tau)

    def forward(  # type: ignore[override]
        self, input_: Tensor, v_previous: Tensor, s_previous: Tensor
    ) -> tuple[Tensor, Tensor]:
        v = self._rested(v_previous, s_previous) * _decay(self.tau) + input_
        return v, self.surrogate(v - self.threshold)


@final
class PLIFCell(_Spiking):
    """Leaky integrate-and-fire with a learnable time constant, one for the layer.

        v = (1 - k) * rested(v_previous) + k * input_,   k = 1/tau = sigmoid(w)
        s = H(v - threshold)

    Args:
        tau: membrane time constant in time steps to start from, above 1; `w` is the parameter.

    Source: Fang et al. (2021), *Incorporating learnable membrane time constant to enhance learning of
    spiking neural networks*.
    """

    def __init__(
        self,
        tau: float = 2.0,
        threshold: Value = 1.0,
        surrogate: Surrogate = Step(),
        detach_reset: bool = False,
        *,
        reset: Reset = 0.0,
    ) -> None:
        super().__init__(threshold, reset, surrogate, detach_reset)
        if not (math.isfinite(tau) and tau > 1):
            raise ValueError(f"tau must be finite and above 1, got {tau!r}")
        self.start = -math.log(tau - 1.0)
        blank = torch.empty(1, dtype=torch.get_default_dtype(), device=torch.get_default_device())
        self.w = nn.Parameter(blank)  # one dimension: what shards parameters takes no scalars
        self.reset_parameters()

    @property
    def tau(self) -> Tensor:
        """The time constant that `w` stands for, in time steps: ``1/sigmoid(w)``, above 1."""
        return 1 / torch.sigmoid(self.w).reshape(())

    def reset_parameters(self) -> None:
        """Sets `w` to what it was made with; for parameters that were made without memory."""
        nn.init.constant_(self.w, self.start)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if (w := state_dict.get(f"{prefix}w")) is not None and w.ndim == 0:
            state_dict[f"{prefix}w"] = w.reshape(1)  # as checkpoints had it once
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(  # type: ignore[override]
        self, input_: Tensor, v_previous: Tensor, s_previous: Tensor
    ) -> tuple[Tensor, Tensor]:
        k = torch.sigmoid(self.w).reshape(())
        v = self._rested(v_previous, s_previous) * (1 - k) + input_ * k
        return v, self.surrogate(v - self.threshold)


@final
class CubaLIFCell(_Spiking):
    """Leaky integrate-and-fire driven through a synaptic current.

        i = (1 - 1/tau_synapse) * i_previous + input_
        v = (1 - 1/tau) * rested(v_previous) + i
        s = H(v - threshold)

    Args:
        tau_synapse: time constant of the synaptic current, in time steps.
        tau: membrane time constant, in time steps.

    Source: Gerstner et al. (2014), *Neuronal dynamics*, section 1.3, with current-based synapses
    (section 3.1).
    """

    tau_synapse = AtLeast(1.0)
    tau = AtLeast(1.0)

    def __init__(
        self,
        tau_synapse: Value = 2.0,
        tau: Value = 2.0,
        threshold: Value = 1.0,
        surrogate: Surrogate = Step(),
        detach_reset: bool = False,
        *,
        reset: Reset = 0.0,
    ) -> None:
        super().__init__(threshold, reset, surrogate, detach_reset)
        self.tau_synapse = _time_constant("tau_synapse", tau_synapse)
        self.tau = _time_constant("tau", tau)

    def forward(  # type: ignore[override]
        self, input_: Tensor, i_previous: Tensor, v_previous: Tensor, s_previous: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        i = i_previous * _decay(self.tau_synapse) + input_
        v = self._rested(v_previous, s_previous) * _decay(self.tau) + i
        return i, v, self.surrogate(v - self.threshold)


@final
class ALIFCell(_Spiking):
    """Leaky integrate-and-fire whose threshold rises with each spike and decays back.

        a = (1 - 1/tau_adaptation) * a_previous + s_previous
        v = (1 - 1/tau) * rested(v_previous) + input_
        s = H(v - (threshold + strength * a))

    Args:
        tau_adaptation: time constant of the adaptation `a`, in time steps.
        strength: how much one spike raises the threshold, in units of `v`.

    Source: Bellec et al. (2018), *Long short-term memory and learning-to-learn in networks of spiking
    neurons*.
    """

    tau = AtLeast(1.0)
    tau_adaptation = AtLeast(1.0)

    def __init__(
        self,
        tau: Value = 2.0,
        tau_adaptation: Value = 100.0,
        strength: Value = 0.1,
        threshold: Value = 1.0,
        surrogate: Surrogate = Step(),
        detach_reset: bool = False,
        *,
        reset: Reset = 0.0,
    ) -> None:
        super().__init__(threshold, reset, surrogate, detach_reset)
        self.tau = _time_constant("tau", tau)
        self.tau_adaptation = _time_constant("tau_adaptation", tau_adaptation)
        self.strength = strength

    def forward(  # type: ignore[override]
        self, input_: Tensor, a_previous: Tensor, v_previous: Tensor, s_previous: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        a = a_previous * _decay(self.tau_adaptation) + s_previous
        v = self._rested(v_previous, s_previous) * _decay(self.tau) + input_
        return a, v, self.surrogate(v - (a * self.strength + self.threshold))


@final
class RefractoryLIFCell(_Spiking):
    """Leaky integrate-and-fire that rests for `period` steps after each spike.

        r = period               if s_previous
            max(r_previous - 1, 0)  otherwise
        v = (1 - 1/tau) * rested(v_previous) + (input_ if r == 0 else 0)
        s = H(v - threshold)  where r == 0, else 0

    Args:
        period: refractory period, in whole time steps; 0 is :class:`LIFCell`.

    Source: Gerstner et al. (2014), *Neuronal dynamics*, section 1.3 (absolute refractoriness).
    """

    tau = AtLeast(1.0)

    def __init__(
        self,
        tau: Value = 2.0,
        period: float = 2.0,
        threshold: Value = 1.0,
        surrogate: Surrogate = Step(),
        detach_reset: bool = False,
        *,
        reset: Reset = 0.0,
    ) -> None:
        super().__init__(threshold, reset, surrogate, detach_reset)
        self.tau = _time_constant("tau", tau)
        if isinstance(period, bool) or not (math.isfinite(period) and period >= 0 and period == int(period)):
            raise ValueError(f"period must be a whole number of steps, 0 or more, got {period!r}")
        self.period = float(period)

    def forward(  # type: ignore[override]
        self, input_: Tensor, r_previous: Tensor, v_previous: Tensor, s_previous: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        r = torch.where(s_previous > 0, self.period, torch.clamp(r_previous - 1, min=0))
        awake = (r == 0).to(input_.dtype)
        v = self._rested(v_previous, s_previous) * _decay(self.tau) + input_ * awake
        return r, v, self.surrogate(v - self.threshold) * awake


@final
class EIFCell(_Spiking):
    """Exponential integrate-and-fire.

        v = u + (sharpness * exp((u - rheobase) / sharpness) - u) / tau + input_,   u = rested(v_previous)
        s = H(v - threshold)

    Args:
        tau: membrane time constant, in time steps.
        sharpness: width of the spike's upstroke, in units of `v`.
        rheobase: potential at which the upstroke begins, in units of `v`.

    Source: Fourcaud-Trocmé, Hansel, van Vreeswijk & Brunel (2003), *How spike generation mechanisms
    determine the neuronal response to fluctuating inputs*.
    """

    tau = AtLeast(1.0)
    sharpness = AtLeast(0.0)

    def __init__(
        self,
        tau: Value = 5.0,
        sharpness: Value = 0.2,
        rheobase: Value = 0.8,
        threshold: Value = 1.0,
        surrogate: Surrogate = Step(),
        detach_reset: bool = False,
        *,
        reset: Reset = 0.0,
    ) -> None:
        super().__init__(threshold, reset, surrogate, detach_reset)
        self.tau = _time_constant("tau", tau)
        self.sharpness = _positive("sharpness", sharpness)
        self.rheobase = rheobase

    def forward(  # type: ignore[override]
        self, input_: Tensor, v_previous: Tensor, s_previous: Tensor
    ) -> tuple[Tensor, Tensor]:
        u = self._rested(v_previous, s_previous)
        upstroke = torch.exp((u - self.rheobase) / self.sharpness) * self.sharpness
        v = u + (upstroke - u) / self.tau + input_
        return v, self.surrogate(v - self.threshold)


@final
class QIFCell(_Spiking):
    """Quadratic integrate-and-fire.

        v = u + curvature * u * (u - critical) / tau + input_,   u = rested(v_previous)
        s = H(v - threshold)

    Args:
        tau: membrane time constant, in time steps.
        curvature: strength of the quadratic term, per unit of `v`.
        critical: potential above which `v` runs away by itself, in units of `v`.

    Source: Latham, Richmond, Nelson & Nirenberg (2000), *Intrinsic dynamics in neuronal networks*.
    """

    tau = AtLeast(1.0)

    def __init__(
        self,
        tau: Value = 5.0,
        curvature: Value = 1.0,
        critical: Value = 0.8,
        threshold: Value = 1.0,
        surrogate: Surrogate = Step(),
        detach_reset: bool = False,
        *,
        reset: Reset = 0.0,
    ) -> None:
        super().__init__(threshold, reset, surrogate, detach_reset)
        self.tau = _time_constant("tau", tau)
        self.curvature = curvature
        self.critical = critical

    def forward(  # type: ignore[override]
        self, input_: Tensor, v_previous: Tensor, s_previous: Tensor
    ) -> tuple[Tensor, Tensor]:
        u = self._rested(v_previous, s_previous)
        v = u + u * (u - self.critical) * self.curvature / self.tau + input_
        return v, self.surrogate(v - self.threshold)


@final
class IzhikevichCell(Cell):
    """Izhikevich's simple model, with potentials in millivolts and steps of `dt` milliseconds.

        v0, u0 = (c, u_previous + d)  where s_previous, else  (v_previous, u_previous)
        v = v0 + dt * (0.04 * v0^2 + 5 * v0 + 140 - u0 + input_)
        u = u0 + dt * a * (b * v0 - u0)
        s = H(v - threshold)

    The state is ``(u, v, s)``; at rest ``v = -65``, ``u = -65 * b``.

    Args:
        a: rate of the recovery `u`, per ms.
        b: sensitivity of the recovery to `v`.
        c: potential after a spike, mV.
        d: what a spike adds to the recovery.
        dt: time step, ms.
        threshold: peak of the spike, mV.

    Source: Izhikevich (2003), *Simple model of spiking neurons* (regular spiking by default).
    """

    dt = AtLeast(0.0)
    threshold = AtLeast(0.0)

    def __init__(
        self,
        a: Value = 0.02,
        b: Value = 0.2,
        c: Value = -65.0,
        d: Value = 8.0,
        dt: float = 1.0,
        threshold: Value = 30.0,
        surrogate: Surrogate = Step(),
        detach_reset: bool = False,
    ) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = a, b, c, d
        self.dt = _positive("dt", dt)
        self.threshold = _positive("threshold", threshold)
        self.surrogate = _surrogate(surrogate)
        self.detach_reset = detach_reset

    def forward(  # type: ignore[override]
        self, input_: Tensor, u_previous: Tensor, v_previous: Tensor, s_previous: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        spiked = s_previous.detach() if self.detach_reset else s_previous
        v0 = v_previous * (1 - spiked) + spiked * self.c
        u0 = u_previous + spiked * self.d
        v = v0 + (v0 * v0 * 0.04 + v0 * 5 + 140 - u0 + input_) * self.dt
        u = u0 + (v0 * self.b - u0) * self.a * self.dt
        return u, v, self.surrogate(v - self.threshold)

    def initial_state(self, input_: Tensor) -> tuple[Tensor, ...]:
        v = torch.full_like(input_, -65.0)
        return v * self.b, v, torch.zeros_like(input_)


@final
class LICell(Cell):
    """Leaky integrator: a readout that emits its membrane potential and never spikes.

        v = (1 - 1/tau) * v_previous + input_

    Args:
        tau: membrane time constant, in time steps; infinite (the default) sums its input.

    Source: Gerstner et al. (2014), *Neuronal dynamics*, section 1.3, without a threshold.
    """

    tau = AtLeast(1.0)

    def __init__(self, tau: Value = math.inf) -> None:
        super().__init__()
        self.tau = _time_constant("tau", tau)

    def extra_repr(self) -> str:
        return f"tau={self.tau!r}"

    def forward(  # type: ignore[override]
        self, input_: Tensor, v_previous: Tensor
    ) -> tuple[Tensor]:
        return (v_previous * _decay(self.tau) + input_,)
