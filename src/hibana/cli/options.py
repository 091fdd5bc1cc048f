"""Declares which uses of a command read its options, and refuses options where they have no effect."""

from collections.abc import Iterable, Mapping
from typing import Any

from hibana.cli.common import Refusal

_KINDS = "table, images, arrays, sequences, events, sound"
_FROM_NIR = ", ".join(f"{kind} from sources in NIR" for kind in (".c", ".v", "--arduino"))
USES = {
    "convert": {
        "dt": ".nir, sources in NIR",
        "data": f"{_FROM_NIR}, .html from sources in NIR, .onnx with --bits from sources in NIR",
        "steps": ".pt2, .c from sources in NIR, --data",
        "bits": ".c, .html, .onnx, .v, --arduino",
        **dict.fromkeys(("ram", "flash"), ".c, --arduino"),
        **dict.fromkeys(("samples", "adders", "top"), ".v"),
        "report": f".v with --top, {_FROM_NIR}",
        "trust": "checkpoints",
    },
    "predict": {
        **dict.fromkeys(("csv", "json"), "files of samples, --stream"),
        "window": "--stream of events",
        "rate": "--stream of sound",
        "adapt": "runs of --task anomaly",
    },
    "train": {
        "trust": "--settings, --resume",
        "false_alarms": "--task anomaly",
        "kind": _KINDS,
        **dict.fromkeys(("task", "test"), f"{_KINDS}, a class"),
        "label": "table, arrays, sequences, a class",
        "encoding": "table, sequences, a class",
        "columns": "table, a class",
        "group": "sequences, a class",
        **dict.fromkeys(("lengths", "scale"), "sequences, sound, a class"),
        "bins": "events, a class",
        "size": "images, events, a class",
        **dict.fromkeys(("root", "download"), "a data set by name, a class"),
        **dict.fromkeys(("class_weights", "smoothing"), "classification"),
        **dict.fromkeys(("tau", "cell", "surrogate", "threshold", "detach_reset"), "layers of --cell"),
        "readout_tau": "layers described by words",
        "delta_threshold": "--coding delta",
        **dict.fromkeys(("augment", "patience", "learning_rate", "weight_decay", "clip"), "--epochs above 0"),
        **dict.fromkeys(("start_rate", "rate_penalty"), "layers that spike"),
        "rate_target": "--rate-penalty above 0",
    },
}
"""For each command, the options that only some uses of the command read, and these uses, joined by commas.

Options that are not named have an effect in all uses; a test lists them.
"""


def check_options(command: str, uses: Iterable[str], here: str, options: Mapping[str, Any]) -> None:
    """Refuses an option that has no effect.

    Args:
        command: the command.
        uses: what this call of the command does, in phrases of :data:`USES`.
        here: this call, as the end of the clause "--NAME has no effect".
        options: values by name; None, False and an empty tuple stand for options that were not passed.

    Raises:
        Refusal: naming the option and the uses that read it.
    """
    for name, phrases in USES[command].items():
        value = options.get(name)
        is_passed = value is not None and value is not False and value != ()
        if is_passed and not {*phrases.split(", ")} & {*uses}:
            raise Refusal(f"--{name.replace('_', '-')} has no effect {here}: it is for {phrases}")
