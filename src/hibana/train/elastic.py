"""Processes that ``torchrun`` started: how many there are, how they join, and their folder after a restart.

If one process dies, ``torchrun --max-restarts`` starts all of them again. They then look for the folder that
the same ``torchrun`` wrote before, and resume from the checkpoint in it.
"""

import hashlib
import os
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed

from hibana.train import settings_file
from hibana.train.settings import Settings

__all__ = ["TIMEOUT", "NotJoinedError", "before_restart", "is_launched", "job", "join", "with_devices"]

TIMEOUT = timedelta(minutes=10)
"""How long a process waits for the others, when they join and at each exchange."""


class NotJoinedError(RuntimeError):
    """Another process of the training did not join in time."""


def is_launched() -> bool:
    """Whether ``torchrun`` started this process."""
    return distributed.is_available() and distributed.is_torchelastic_launched()


def with_devices(settings: Settings) -> Settings:
    """`settings` with the numbers of processes and machines that ``torchrun`` started.

    Raises:
        ValueError: if the settings have other numbers.
    """
    if not is_launched():
        return settings
    devices, nodes = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["GROUP_WORLD_SIZE"])
    if (settings.devices, settings.nodes) not in ((1, 1), (devices, nodes)):
        raise ValueError(
            f"devices and nodes must be the {devices} processes on each of {nodes} machines that torchrun "
            f"started, got {settings.devices} and {settings.nodes}; leave both out"
        )
    return replace(settings, devices=devices, nodes=nodes)


def job() -> str:
    """Identifies all processes that this ``torchrun`` starts and restarts; empty without ``torchrun``."""
    if not is_launched():
        return ""
    identifier = os.environ["TORCHELASTIC_RUN_ID"]
    if os.environ["GROUP_WORLD_SIZE"] == "1":  # the user may repeat an identifier, but not this random folder
        identifier += str(Path(os.environ.get("TORCHELASTIC_ERROR_FILE", "")).parents[2:3])
    return hashlib.sha256(identifier.encode()).hexdigest()[:8]


def before_restart(path: Path, settings_name: str) -> Path | None:
    """The folder that this ``torchrun`` wrote before it restarted, or None: `path`, ``PATH-1``, ...

    Args:
        path: the folder that the training was started with.
        settings_name: the file in a run's folder that names its run.
    """
    if not is_launched() or os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        return None
    written: list[Path] = []
    for file in path.parent.glob(f"{path.name}*/{settings_name}"):
        with suppress(ValueError):  # another run's settings that can't be read
            if settings_file.read(file).job == job():
                written.append(file)
    return max(written, key=lambda file: file.stat().st_mtime).parent if written else None


def join(accelerator: str) -> None:
    """Joins the processes of this ``torchrun``, each restart apart: torch would connect to ended processes.

    Raises:
        NotJoinedError: if not all joined within :data:`TIMEOUT`.
    """
    variables, on_gpu = os.environ, accelerator != "cpu" and torch.cuda.is_available()
    rank, world_size = int(variables["RANK"]), int(variables["WORLD_SIZE"])
    hosts = rank == 0 and variables.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    try:
        store = distributed.TCPStore(  # type: ignore[attr-defined]  # missing in torch's __all__
            variables["MASTER_ADDR"], int(variables["MASTER_PORT"]), world_size, hosts, timeout=TIMEOUT
        )
        if variables["GROUP_WORLD_SIZE"] == "1":  # on several machines the counts of restarts may differ
            prefix = f"restart {variables['TORCHELASTIC_RESTART_COUNT']}"
            store = distributed.PrefixStore(prefix, store)  # type: ignore[attr-defined, assignment]
        distributed.init_process_group(
            "nccl" if on_gpu else "gloo", store=store, rank=rank, world_size=world_size, timeout=TIMEOUT
        )
    except RuntimeError as error:
        seconds = TIMEOUT.total_seconds()
        raise NotJoinedError(
            f"process {rank} of {world_size} could not join the others within {seconds:.0f} seconds: "
            f"{settings_file.line(error)}"
        ) from error
