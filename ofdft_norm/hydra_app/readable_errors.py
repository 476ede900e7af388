"""Short messages for wrong configurations and data: the error, and the closest valid name."""

import functools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from inspect import signature
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from ofdft_norm.errors import OFDFTNormError, did_you_mean

P = ParamSpec("P")
R = TypeVar("R")
Errors = tuple[type[Exception], ...]

EXPECTED_ERRORS: Errors = (HydraException, OmegaConfBaseException, OFDFTNormError, OSError, ImportError)
_FULL = "HYDRA_FULL_ERROR"
_SHORT = "OFDFT_NORM_SHORT_ERRORS"  # set if this package has set _FULL, not the user; other processes inherit both


def readable_errors(main: Callable[P, R]) -> Callable[P, R]:
    """Makes a Hydra main function end with a short message and exit code 1 if configuration or data are wrong.

    Put it above ``@hydra.main``. ``HYDRA_FULL_ERROR=1`` in the environment shows the full traceback. Exceptions
    of other origin than Hydra, OmegaConf, this package, the file system and imports always show it.

    Args:
        main: The function that ``@hydra.main`` returned.

    Returns:
        The same function, with readable errors.

    Examples:
        >>> import hydra
        >>> from ofdft_norm import readable_errors
        >>> @readable_errors
        ... @hydra.main(version_base="1.3", config_path=None)
        ... def main(cfg):
        ...     pass
    """

    @functools.wraps(main)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        return run_readably(functools.partial(main, *args, **kwargs))

    return wrapped


def run_readably(function: Callable[[], R], errors: Errors = EXPECTED_ERRORS, hints: bool = False) -> R:
    """Calls a function; prints one of the errors as a short message and exits with code 1; see `explain`."""
    if os.environ.get(_FULL) == "1" and _SHORT not in os.environ:
        return function()
    before = {name: os.environ[name] for name in (_FULL, _SHORT) if name in os.environ}
    os.environ |= {_FULL: "1", _SHORT: "1"}  # otherwise Hydra prints its own message and exits
    try:
        return function()
    except BrokenPipeError:  # `head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except errors as error:
        print(explain(error, hints), file=sys.stderr)
        sys.exit(1)
    finally:
        for name in (_FULL, _SHORT):
            os.environ.pop(name, None)
        os.environ |= before


def explain(error: BaseException, hints: bool = False) -> str:
    """Returns the message for an error; `hints` are the closest names in this package's own config files."""
    cause = error.__cause__
    if hints and isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, option = error.missing_cfg_file.rpartition("/")
        text = f"unknown option {option!r} of the config group {group!r}{did_you_mean(option, error.options)}"
        text += f"\n  options: {', '.join(error.options)}"
    elif hints and isinstance(error, ConfigCompositionException) and isinstance(cause, OmegaConfBaseException):
        text = _describe_unknown_key(str(cause.full_key), cause.parent_node)
    else:
        text = _describe_error(error)
    return f"error: {text}\n(set {_FULL}=1 for the full traceback)"


def _describe_error(error: BaseException) -> str:
    root = error
    while root.__cause__ is not None and not isinstance(root, OFDFTNormError | ImportError):
        root = root.__cause__
    if isinstance(root, MissingMandatoryValue):
        return f"{root.full_key}: has no value (config: {root.full_key}=...)"
    missing_extra = isinstance(root, ImportError) and "pip install" in str(root)
    shown = root if missing_extra or isinstance(root, OFDFTNormError | OmegaConfBaseException) else error
    name = "" if isinstance(shown, EXPECTED_ERRORS) else f"{type(shown).__name__}: "
    return "\n".join([f"{name}{shown}".strip(), *getattr(root, "__notes__", ())])


def _describe_unknown_key(key: str, node: Any) -> str:
    """Returns the message for a key that a node of the configuration lacks."""
    root = find_config_dir()
    if "/" in key:
        groups = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_dir()]
        return f"unknown config group {key!r}{did_you_mean(key, groups)}"
    known: dict[str, list[str]] = {}
    for path in sorted(root.rglob("*.yaml")):
        group = path.relative_to(root).parent.as_posix()
        prefix = "" if group == "." or "@package _global_" in path.read_text() else f"{group.replace('/', '.')}."
        for name in _list_keys(OmegaConf.load(path)):
            known.setdefault(f"{prefix}{name}", []).append(f"{group}={path.stem}")
    if key in known:
        addable = f" (+{key}=... adds it)" if _takes_argument(node, key.rpartition(".")[2]) else ""
        return f"config key {key!r} exists only with {' or '.join(known[key])}{addable}"
    return f"unknown config key {key!r}{did_you_mean(key, known, cutoff=0.8)} (+{key}=... adds it)"


def _takes_argument(node: Any, name: str) -> bool:
    """Returns whether the class or function of a config node has an argument of this name."""
    with suppress(Exception):  # the node has no _target_, or its module cannot be imported
        return name in signature(get_object(node["_target_"])).parameters
    return False


def _list_keys(node: Any) -> Iterator[str]:
    for key in map(str, node if isinstance(node, DictConfig) else ()):
        if key not in ("defaults", "_target_"):
            yield key
            yield from (f"{key}.{below}" for below in _list_keys(cast(Any, node)._get_node(key)))


def find_config_dir() -> Path:
    """Returns the folder of config files: in an installed package, or beside the package in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"
