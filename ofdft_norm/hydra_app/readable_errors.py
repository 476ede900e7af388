"""Short messages for wrong configurations and data: the error, the closest valid name, the file that defines it."""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from ofdft_norm.errors import OFDFTNormError, closest

P = ParamSpec("P")
R = TypeVar("R")
Errors = tuple[type[Exception], ...]

EXPECTED_ERRORS: Errors = (HydraException, OmegaConfBaseException, OFDFTNormError, OSError, ImportError)
_FULL = "HYDRA_FULL_ERROR"
_OURS = "OFDFT_NORM_SHORT_ERRORS"  # this package has set _FULL, not the user; the run's other processes inherit both


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


def run_readably(
    function: Callable[[], R], errors: Errors = EXPECTED_ERRORS, overrides: Sequence[str] = (), primary: str = ""
) -> R:
    """Calls a function; prints one of the errors as a short message and exits with code 1; see `explain`."""
    if os.environ.get(_FULL) == "1" and _OURS not in os.environ:
        return function()
    before = {name: os.environ[name] for name in (_FULL, _OURS) if name in os.environ}
    os.environ |= {_FULL: "1", _OURS: "1"}  # otherwise Hydra prints its own message and exits
    try:
        return function()
    except errors as error:
        print(explain(error, overrides, primary), file=sys.stderr)
        sys.exit(1)
    finally:
        for name in (_FULL, _OURS):
            os.environ.pop(name, None)
        os.environ |= before


def explain(error: BaseException, overrides: Sequence[str] = (), primary: str = "") -> str:
    """Returns the message for an error: a few lines, ready to print.

    `overrides` are the arguments of the command line, `primary` is the name of this package's config file that they
    change; without it (another application) the files and keys are not known, and the message is the error alone.
    """
    lines = _describe_with_hints(error, overrides, primary) if primary else [f"error: {_describe_error(error)}"]
    return "\n".join([*lines, f"(set {_FULL}=1 for the full traceback)"])


def _describe_error(error: BaseException) -> str:
    root = error
    while root.__cause__ is not None and not isinstance(root, OFDFTNormError):
        root = root.__cause__
    if isinstance(root, MissingMandatoryValue):
        return f"{root.full_key}: has no value (config: {root.full_key}=...)"
    told = root if isinstance(root, OFDFTNormError | OmegaConfBaseException) else error
    name = "" if isinstance(told, EXPECTED_ERRORS) else f"{type(told).__name__}: "
    return "\n".join([f"{name}{told}".strip(), *getattr(root, "__notes__", ())])


def _describe_with_hints(error: BaseException, overrides: Sequence[str], primary: str) -> list[str]:
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, option = error.missing_cfg_file.rpartition("/")
        close = [f"  did you mean: {group}={name}" for name in closest(option, error.options)]
        options = [f"  options: {', '.join(error.options)}", f"  config files: {find_config_dir() / group}"]
        return [f"error: unknown option {option!r} of the config group {group!r}", *close, *options]
    files = find_keys(overrides, primary)
    if isinstance(error, ConfigCompositionException) and isinstance(error.__cause__, OmegaConfBaseException):
        return _describe_unknown_key(str(error.__cause__.full_key), files)
    text = _describe_error(error)
    # keys such as data.loader, and in "seed = -1: ..." and "(config: seed)" a key without a dot
    keys = re.findall(r"[a-z]\w*(?:\.\w+)+|^\w+(?= = )|(?<=\(config: )\w+", text)
    keys = [key if key in files else key.rpartition(".")[0] for key in keys]
    return [f"error: {text}", *dict.fromkeys(f"  config file: {files[key]}" for key in keys if key in files)]


def _describe_unknown_key(key: str, files: Mapping[str, Path]) -> list[str]:
    root = find_config_dir()
    groups = {path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_dir()}
    if "/" in key:
        lines, close = [f"error: unknown config group {key!r}"], _find_closest(key, groups, "/")
        return [*lines, f"  did you mean: {close}", f"  config files: {groups[close]}"] if close else lines
    folders = (folder for group, folder in groups.items() if key.startswith(f"{group.replace('/', '.')}."))
    others = [path.relative_to(root) for folder in folders for path in folder.glob("*.yaml") if key in _read_keys(path)]
    if others:
        options = " or ".join(sorted(f"{path.parent.as_posix()}={path.stem}" for path in others))
        return [f"error: config key {key!r} exists only with {options}"]
    lines, close = [f"error: unknown config key {key!r}"], _find_closest(key, files, ".")
    if close:
        return [*lines, f"  did you mean: {close}", f"  config file: {files[close]}"]
    parent = key.rpartition(".")[0]
    below = sorted(name.rpartition(".")[2] for name in files if name.rpartition(".")[0] == parent)
    lines.append(f"  valid keys{' of ' + parent if parent else ''}: {', '.join(below) or 'none'} (+{key}=... adds one)")
    return [*lines, f"  config file: {files[parent]}"] if parent in files else lines


def _find_closest(key: str, names: Iterable[str], separator: str) -> str | None:
    """Returns the name with the closest last part; if several are equal, the one with the same parent."""
    parent, _, last = key.rpartition(separator)
    by_last = {n.rpartition(separator)[2]: n for n in sorted(names, key=lambda n: n.rpartition(separator)[0] == parent)}
    return next((by_last[match] for match in closest(last, by_last, cutoff=0.7)), None)


# --- config files -----------------------------------------------------------------------------------------------------


def find_config_dir() -> Path:
    """Returns the folder of config files: in an installed package, or beside the package in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def find_keys(overrides: Sequence[str], primary: str) -> dict[str, Path]:
    """Returns every key of a configuration and the file that defines it; the key of a group has the group's file.

    Only the groups of `overrides` are composed: a wrong value would fail again.
    """
    root = find_config_dir()
    chosen = [text for text in overrides if (root / text.partition("=")[0].lstrip("+~").partition("@")[0]).is_dir()]
    try:
        with initialize_config_dir(str(root), version_base="1.3"):
            config = compose(primary, overrides=chosen, return_hydra_config=True)
    except (HydraException, OmegaConfBaseException):
        return {}
    choices = config.hydra.runtime.choices.items()
    files = [path for path in (root / f"{group}/{option}.yaml" for group, option in choices) if path.is_file()]
    defaults = [(path, cast(Any, OmegaConf.load(path)).get("defaults") or ()) for path in files]
    bases = [path.with_name(f"{base}.yaml") for path, entries in defaults for base in entries if isinstance(base, str)]
    found: dict[str, Path] = {}
    for path in [root / f"{primary}.yaml", *files, *filter(Path.is_file, bases)]:
        found = {**dict.fromkeys(_read_keys(path), path), **found}
    return {key: found[key] for key in _names(config) if key in found}


def _read_keys(path: Path) -> list[str]:
    """Returns the dotted keys that a config file defines, and the key of its group."""
    group = path.relative_to(find_config_dir()).parent.as_posix()
    package = "" if group == "." or "@package _global_" in path.read_text() else group.replace("/", ".")
    return [*([package] if package else []), *(f"{package}.{n}".lstrip(".") for n in _names(OmegaConf.load(path)))]


def _names(node: Any) -> Iterator[str]:
    for key in map(str, node if isinstance(node, DictConfig) else ()):
        if key not in ("defaults", "_target_"):
            yield key
            yield from (f"{key}.{below}" for below in _names(cast(Any, node)._get_node(key)))
