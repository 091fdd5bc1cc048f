"""Names that other libraries give to what hibana has, and the sentence for those who type one here.

This room knows words only: it imports nothing of hibana.
"""

import difflib
import inspect
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from typing import ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

_THRESHOLD = (("threshold", "threshold"),)
_SURROGATE = (("surrogate", "surrogate, such as 'ATan'"),)
_RESET = (("reset", "reset, a potential to reset to, or 'subtract'"),)
_TAU = (("tau", "tau, in time steps"),)
_TAU_SYNAPSE = (("tau_synapse", "tau_synapse, in time steps"),)
_STEPS = (("steps", "steps"), ("", "none is needed: time is the first axis of the input, [T, batch, ...]"))
_WHOLE = (("", "none is needed: a layer always takes a whole sequence, [T, batch, ...]"),)
_REST = (("", "none is needed: every call starts at rest, and hb.run goes on from a state"),)
_LEARNED = (("", "an nn.Parameter in the argument's own place is learned"),)
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
    **dict.fromkeys(("step_mode", "return_sequences"), _WHOLE),
    "batch_first": (("", "time is the first axis of the input, [T, batch, ...]: use x.transpose(0, 1)"),),
    **dict.fromkeys(("init_hidden", "batch_size"), _REST),
    **dict.fromkeys(("learn_beta", "learn_threshold", "learn_alpha", "train_a"), _LEARNED),
    "store_v_seq": (("", "none is needed: hb.record gives every state at every step"),),
    **dict.fromkeys(("in_features", "out_features", "size", "hidden_size"), _SIZE),
    **dict.fromkeys(("num_neurons", "n_neurons", "neurons"), _SIZE),
}
"""What hibana's argument is, by the foreign name: what to say where it has a certain one, "" being always."""

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
"""What stands in hibana for names of other libraries' modules and layers."""

_AT_REST = "every call starts at rest; to carry a state on, use hb.run(net, inputs, state)"
METHODS = {
    **dict.fromkeys(
        ("reset", "reset_mem", "reset_hidden", "reset_net", "reset_state", "reset_states"), _AT_REST
    ),
    **dict.fromkeys(("init_leaky", "init_lif", "init_synaptic", "init_rleaky", "init_alpha"), _AT_REST),
    **dict.fromkeys(("detach_hidden", "detach_net"), _AT_REST),
    "set_step_mode": f"a layer always takes a whole sequence, [T, batch, ...]; {_AT_REST}",
}
"""What to say of what other libraries' layers, or functions of layers, do between calls."""

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
"""What options of ``hibana train`` are, by the names that other programs give them."""


def unknown_argument_error(called: str, given: Iterable[str], known: Sequence[str]) -> TypeError | None:
    """What to raise where `called` is given arguments by names that are not among `known`.

    >>> print(no_argument("LIF", ["beta"], ["tau", "threshold"]))
    LIF has no argument 'beta'; hibana's is tau, in time steps: a decay of beta a step is tau = 1 / (1 - beta)
    >>> print(no_argument("LIF", ["treshold"], ["tau", "threshold"]))
    LIF has no argument 'treshold'; did you mean 'threshold'? It takes tau, threshold
    """
    for name in given:
        if name in known:
            continue
        for wanted, said in _ARGUMENTS.get(name, ()):
            if wanted in known:
                return TypeError(f"{called} has no argument {name!r}; hibana's is {said}")
            if not wanted:
                return TypeError(f"{called} has no argument {name!r}; {said}")
        near = difflib.get_close_matches(name, known, 1)
        hint = f"; did you mean {near[0]!r}? It takes " if near else "; it takes "
        return TypeError(f"{called} has no argument {name!r}{hint}{', '.join(known)}")
    return None


def check_argument_names(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """`function`, which answers arguments by foreign names with its own."""
    known = list(inspect.signature(function).parameters)

    @wraps(function)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        if error := unknown_argument_error(function.__name__, kwargs, known):
            raise error
        return function(*args, **kwargs)

    return call
