"""What a run needs of the machine, known before anything is loaded: packages, a login, paths."""

from __future__ import annotations

import importlib.util
import netrc
import os
import sys
import tempfile
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple
from urllib.parse import urlsplit

from accelerate.utils import parse_flag_from_env

from medrm.config.parse import Run
from medrm.errors import nearest, refuse, shortened
from medrm.files import check_outputs


class Package(NamedTuple):
    """A package that is not among medrm's own dependencies."""

    modules: tuple[str, ...]
    """Any of which will do."""
    name: str
    """By which pip installs it."""


def _package(name: str, *modules: str) -> Package:
    return Package(modules or (name.replace("-", "_"),), name)


REPORTERS = {
    "azure_ml": _package("azureml-core", "azureml"),
    "clearml": _package("clearml"),
    "codecarbon": _package("codecarbon"),
    "comet_ml": _package("comet-ml"),
    "dagshub": _package("dagshub"),
    "dvclive": _package("dvclive"),
    "flyte": _package("flytekit"),
    "kubeflow": _package("kubeflow"),
    "mlflow": _package("mlflow"),
    "neptune": _package("neptune"),
    "swanlab": _package("swanlab"),
    "tensorboard": _package("tensorboard", "tensorboard", "tensorboardX"),
    "trackio": _package("trackio"),
    "wandb": _package("wandb"),
}
"""The names that `report_to` accepts, and what each needs."""

_BITSANDBYTES = _package("bitsandbytes")

_OPTIMISERS = (
    ("adamw_torch_4bit", _package("torchao")),
    ("adamw_torch_8bit", _package("torchao")),
    ("adamw_anyprecision", _package("torchdistx")),
    ("galore", _package("galore-torch")),
    ("apollo", _package("apollo-torch")),
    ("lomo", _package("lomo-optim")),
    ("adalomo", _package("lomo-optim")),
    ("grokadamw", _package("grokadamw")),
    ("schedule_free", _package("schedulefree")),
    ("stable_adamw", _package("torch-optimi", "optimi")),
    *((name, _BITSANDBYTES) for name in ("paged", "lion", "ademamix", "rmsprop_bnb", "adamw_bnb")),
    ("adamw_8bit", _BITSANDBYTES),
)
"""How the names of optimisers begin that need a package, the longer first."""

_ATTENTION = {
    "flash_attention_2": _package("flash-attn"),
    "flash_attention_3": _package("flash-attn-3", "flash_attn_interface"),
}


_SOCKET_PATH = 107 if sys.platform == "linux" else 103
"""Bytes that the path of a socket may have."""

_SOCKET_NAME = len("/pymp-01234567/listener-01234567")
"""Bytes of what multiprocessing puts behind the temporary folder."""


def check_needs(run: Run) -> None:
    """Refuses a run that would fail later for what the machine lacks.

    Raises:
        ConfigError: all that is missing, in one message.
    """
    logs = os.environ.get("TENSORBOARD_LOGGING_DIR") if "tensorboard" in _reporters(run) else None
    check_outputs({"output_dir": run.training.output_dir, "TENSORBOARD_LOGGING_DIR": logs})
    unknown = [
        f"report_to {name!r} is not known; accepted: {', '.join(REPORTERS)}, all, none."
        f"{nearest(name, REPORTERS)}"
        for name in _reporters(run)
        if name not in REPORTERS
    ]
    problems = [*unknown, *missing_packages(run), *_login_problems(run), *_socket_problems(run)]
    refuse(problems, "This run needs what is not there.")


def missing_packages(run: Run) -> list[str]:
    """Returns the packages that a run needs and that are not installed, a sentence each."""
    return [
        f"{package.name} is not installed; install it (pip install {package.name}), or do without "
        f"{option}"
        for option, package in _needed(run)
        if not any(map(_is_installed, package.modules))
    ]


def _needed(run: Run) -> Iterator[tuple[str, Package]]:
    """Yields the options that need a package of their own, as they are given, and the package."""
    options, training = run.model, run.training
    for name in _reporters(run):
        if name in REPORTERS:
            yield f"--report_to {name}", REPORTERS[name]
    optimiser = str(getattr(training.optim, "value", training.optim))
    starts = (package for start, package in _OPTIMISERS if optimiser.startswith(start))
    yield from ((f"--optim {optimiser}", package) for package in islice(starts, 1))
    attention = options.attn_implementation
    if attention in _ATTENTION:
        yield f"--attn_implementation {attention}", _ATTENTION[attention]
    in_launch = parse_flag_from_env("ACCELERATE_USE_DEEPSPEED")
    switches = {
        "--load_in_4bit": (options.load_in_4bit, _BITSANDBYTES),
        "--load_in_8bit": (options.load_in_8bit, _BITSANDBYTES),
        "DeepSpeed": (training.deepspeed or in_launch, _package("deepspeed")),
        "--use_vllm": (getattr(training, "use_vllm", False), _package("vllm")),
        "--use_liger_kernel": (training.use_liger_kernel, _package("liger-kernel")),
    }
    yield from ((option, package) for option, (is_on, package) in switches.items() if is_on)


def _reporters(run: Run) -> list[str]:
    return [name for name in run.training.report_to or [] if name not in ("none", "all")]


def _is_installed(module: str) -> bool:
    """Returns whether a module can be imported, without importing it."""
    return module in sys.modules or importlib.util.find_spec(module) is not None


def _login_problems(run: Run) -> list[str]:
    """Returns that Weights & Biases would ask for a key where nobody can answer."""
    mode = os.environ.get("WANDB_MODE", "online")
    if "wandb" not in _reporters(run) or mode != "online" or sys.stdin.isatty():
        return []
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    if os.environ.get("WANDB_API_KEY") or _has_password(host):
        return []
    return [
        f"--report_to wandb, but there is no key for {host}; run `wandb login`, set WANDB_API_KEY, "
        "or set WANDB_MODE=offline and upload with `wandb sync` later"
    ]


def _socket_problems(run: Run) -> list[str]:
    """Returns that data workers could not send their batches: by a socket in a temporary folder."""
    workers, folder = run.training.dataloader_num_workers, tempfile.gettempdir()
    excess = len(os.fsencode(folder)) + _SOCKET_NAME - _SOCKET_PATH
    if not workers or excess <= 0:
        return []
    return [
        f"dataloader_num_workers {workers}: their sockets would lie in TMPDIR, whose path is "
        f"{excess} bytes too long for that: {shortened(folder)}. Set TMPDIR to a folder whose path "
        f"has at most {_SOCKET_PATH - _SOCKET_NAME} bytes, or give --dataloader_num_workers 0"
    ]


def _has_password(host: str) -> bool:
    """Returns whether the user's netrc file, in which `wandb login` writes, knows a host."""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
