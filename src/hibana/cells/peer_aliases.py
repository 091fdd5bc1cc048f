"""Names of other libraries for hibana's arguments, modules and options, and the hints in error messages.

The module imports nothing of hibana.
"""

import difflib
import inspect
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from types import ModuleType
from typing import NoReturn, ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

_THRESHOLD = (("threshold", "threshold"),)
_SURROGATE = (("surrogate", "surrogate, such as 'ATan'"),)
_RESET = (("reset", "reset, a potential to reset to, or 'subtract'"),)
_TAU = (("tau", "tau, in time steps"),)
_TAU_SYNAPSE = (("tau_synapse", "tau_synapse, in time steps"),)
_STEPS = (("steps", "steps"), ("", "none is needed: time is the first axis of the input, [T, batch, ...]"))
_SEQUENCE = (("", "none is needed: a layer always takes a whole sequence, [T, batch, ...]"),)
_STATE = (("", "none is needed: every call starts at rest, and hb.run continues from a state"),)
_LEARNED = (("", "pass an nn.Parameter as the argument itself to learn it"),)
_SIZE = (("", "none is needed: a layer takes its size from its input"),)
_ARGUMENTS = {
    **dict.fromkeys(("v_threshold", "v_th", "thresh", "spike_threshold"), _THRESHOLD),
    **dict.fromkeys(("surrogate_function", "surrogate_grad_fn", "surrogate_fn"), _SURROGATE),
    **dict.fromkeys(("spike_grad", "spike_fn"), _SURROGATE),
    **dict.fromkeys(("v_reset", "reset_mechanism", "reset_fn", "hard_reset"), _RESET),
    "beta": (("tau", "tau, in time steps: a decay of beta a step is tau = 1 / (1 - beta)"),),
    "alpha": (("tau_synapse", "tau_synapse, in time steps: a decay of alpha is 1 / (1 - alpha)"),),
    **dict.fromkeys(("tau_mem", "tau_m"), _TAU),
    **dict.fromkeys(("tau_syn", "tau_s"), _TAU_SYNAPSE),
    **dict.fromkeys(("num_steps", "num_timesteps", "time_steps", "timesteps", "T"), _STEPS),
    **dict.fromkeys(("step_mode", "return_sequences"), _SEQUENCE),
    "batch_first": (("", "time is the first axis of the input, [T, batch, ...]: use x.transpose(0, 1)"),),
    **dict.fromkeys(("init_hidden", "batch_size"), _STATE),
    **dict.fromkeys(("learn_beta", "learn_threshold", "learn_alpha", "train_a"), _LEARNED),
    "store_v_seq": (("", "none is needed: hb.record gives every state at every step"),),
    **dict.fromkeys(("in_features", "out_features", "size", "hidden_size"), _SIZE),
    **dict.fromkeys(("num_neurons", "n_neurons", "neurons"), _SIZE),
}
"""Hints by other libraries' argument names, each with hibana's argument that must exist, or "" for always."""

MODULES = {
    **dict.fromkeys(("Leaky", "LIFNode", "Lapicque", "LIFSqueeze"), "LIF"),
    **dict.fromkeys(("IFNode", "IAF", "IAFSqueeze"), "IF"),
    **dict.fromkeys(("Synaptic", "LIFRefrac"), "CubaLIF"),
    **dict.fromkeys(("RLeaky", "RSynaptic", "LIFRecurrent"), "Recurrent"),
    **dict.fromkeys(("ParametricLIFNode", "ParametricLIF"), "PLIF"),
    **dict.fromkeys(("Alpha", "ALIFNode", "LSNN"), "ALIF"),
    **dict.fromkeys(("LILinearCell", "LeakyIntegrator", "ExpLeak"), "LI"),
    **dict.fromkeys(("spikegen", "encoding", "encoder"), "encode"),
    **dict.fromkeys(("functional", "losses"), "loss"),
    **dict.fromkeys(("spikeplot", "visualizing"), "plot"),
    **dict.fromkeys(("datasets", "spikevision"), "data"),
    **dict.fromkeys(("export_to_nir", "export_nir", "import_nir"), "nir"),
}
"""Names in hibana, by the names of other libraries' modules and layers."""

_AT_REST = "every call starts at rest; to carry a state on, use hb.run(net, inputs, state)"
_STATE_METHODS = "reset reset_mem reset_hidden reset_net reset_state reset_states init_leaky init_lif"
_STATE_METHODS += " init_synaptic init_rleaky init_alpha detach_hidden detach_net"
METHODS = {
    **dict.fromkeys(_STATE_METHODS.split(), _AT_REST),
    "set_step_mode": f"a layer always takes a whole sequence, [T, batch, ...]; {_AT_REST}",
}
"""Hints by the names of other libraries' methods and functions that manage a layer's state between calls."""

OPTIONS = {
    **dict.fromkeys(("lr", "max-lr", "learningrate"), "learning-rate"),
    **dict.fromkeys(("bs", "batch"), "batch-size"),
    **dict.fromkeys(("wd", "decay"), "weight-decay"),
    **dict.fromkeys(("num-steps", "timesteps", "time-steps", "T", "t"), "steps"),
    **dict.fromkeys(("num-epochs", "max-epochs", "n-epochs", "epoch"), "epochs"),
    **dict.fromkeys(("hidden", "hidden-size", "units", "net", "model", "arch"), "layers"),
    **dict.fromkeys(("device", "gpu", "gpus", "cuda"), "accelerator"),
    **dict.fromkeys(("dataset", "input", "file", "path"), "data"),
    **dict.fromkeys(("target", "y", "class-column"), "label"),
    **dict.fromkeys(("id", "id-column", "group-by"), "group"),
    **dict.fromkeys(("output", "output-dir", "save", "folder"), "out"),
    **dict.fromkeys(("config", "yaml"), "settings"),
    **dict.fromkeys(("continue", "checkpoint", "ckpt", "from"), "resume"),
    **dict.fromkeys(("encoding", "encode"), "coding"),
    **dict.fromkeys(("neuron", "neurons"), "cell"),
    **dict.fromkeys(("v-threshold", "thresh"), "threshold"),
    **dict.fromkeys(("beta", "tau-mem"), "tau"),
    **dict.fromkeys(("spike-grad", "surrogate-function"), "surrogate"),
    **dict.fromkeys(("dropout", "l2", "reg"), "weight-decay"),
    **dict.fromkeys(("early-stopping",), "patience"),
    **dict.fromkeys(("random-seed", "random-state"), "seed"),
    **dict.fromkeys(("image-size", "resolution"), "size"),
    **dict.fromkeys(("amp", "fp16", "half", "dtype"), "precision"),
    **dict.fromkeys(("augmentation",), "augment"),
    **dict.fromkeys(("force", "replace"), "overwrite"),
    **dict.fromkeys(("attached-reset",), "no-detach-reset"),
}
"""Names of ``hibana train``'s options, by the names that other programs use."""


def unknown_argument_error(called: str, names: Iterable[str], parameters: Sequence[str]) -> TypeError | None:
    """The error for the first of `names` that is not in `parameters` of function `called`; None if all are.

    >>> print(unknown_argument_error("LIF", ["beta"], ["tau", "threshold"]))
    LIF has no argument 'beta'; hibana's is tau, in time steps: a decay of beta a step is tau = 1 / (1 - beta)
    >>> print(unknown_argument_error("LIF", ["treshold"], ["tau", "threshold"]))
    LIF has no argument 'treshold'; did you mean 'threshold'? It takes tau, threshold
    """
    for name in names:
        if name in parameters:
            continue
        for parameter, hint in _ARGUMENTS.get(name, ()):
            if parameter in parameters:
                return TypeError(f"{called} has no argument {name!r}; hibana's is {hint}")
            if not parameter:
                return TypeError(f"{called} has no argument {name!r}; {hint}")
        similar = suggestion(name, parameters)
        hint = f"{similar} It takes " if similar else "; it takes "
        return TypeError(f"{called} has no argument {name!r}{hint}{', '.join(parameters)}")
    return None


def unknown_name_error(name: str, names: Iterable[str]) -> AttributeError:
    """The error for a `name` that hibana lacks, with hibana's name for it, or the most similar of `names`."""
    hint = f"its own is hibana.{MODULES[name]}" if name in MODULES else METHODS.get(name)
    end = f"; {hint}" if hint else suggestion(name, names)
    return AttributeError(f"module 'hibana' has no attribute {name!r}{end}")


def suggestion(name: str, names: Iterable[str]) -> str:
    """The end of an error message with the one of `names` that is most similar to `name`, or ``""``.

    >>> suggestion("Atan", ["ATan", "Box"])
    "; did you mean 'ATan'?"
    """
    by_lower_case = {other.lower(): other for other in names}
    similar = difflib.get_close_matches(name.lower(), by_lower_case, 1)
    return f"; did you mean {by_lower_case[similar[0]]!r}?" if similar else ""


def suggest_attributes(module: ModuleType, public_name: str) -> ModuleType:
    """`module`; the error for an attribute that it lacks then suggests a similar public name.

    `public_name` is the name of the module in the message. A module's own ``__getattr__`` stays.
    """

    def get_attribute(name: str) -> NoReturn:
        """Raises AttributeError for a `name` that the module lacks."""
        hint = suggestion(name, module.__all__)
        raise AttributeError(f"module {public_name!r} has no attribute {name!r}{hint}")

    vars(module).setdefault("__getattr__", get_attribute)
    return module


def check_argument_names(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """A decorator: `function` then raises :func:`unknown_argument_error` for unknown arguments."""
    parameters = list(inspect.signature(function).parameters)

    @wraps(function)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        """The result of `function`, after a check of the names of the keyword arguments."""
        if error := unknown_argument_error(function.__name__, kwargs, parameters):
            raise error
        return function(*args, **kwargs)

    return call
