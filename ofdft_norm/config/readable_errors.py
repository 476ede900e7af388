"""Short messages for configuration errors: what is wrong, the closest valid name, the file that defines it.

Values are checked where they enter (`ofdft_norm.settings`), keys and group options by Hydra; this module alone decides
how a failed run tells of it.
"""

from __future__ import annotations

import functools
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from ofdft_norm.errors import OFDFTNormError, closest

P = ParamSpec("P")
R = TypeVar("R")

EXPECTED_ERRORS = (HydraException, OmegaConfBaseException, OFDFTNormError, FileNotFoundError)
_FULL = "HYDRA_FULL_ERROR"
# Tells the processes that a run starts (DDP ranks, jobs) that _FULL was set here and not by the user.
_OURS = "OFDFT_NORM_SHORT_ERRORS"
_GLOBAL_PACKAGE = re.compile(r"^#\s*@package\s+_global_", re.MULTILINE)


def readable_errors(main: Callable[P, R]) -> Callable[P, R]:
    """Makes a Hydra main function end with a short message and exit code 1 where configuration or data are wrong.

    Put it above ``@hydra.main``. In this package's own command lines the message also names the closest valid key and
    the file that defines it. With ``HYDRA_FULL_ERROR=1`` in the environment the full traceback is shown; other
    exceptions than Hydra's, OmegaConf's, this package's and a missing file's always show theirs.

    Args:
        main: The function that ``@hydra.main`` returned.

    Returns:
        The same function, with readable errors.

    Example:
        >>> import hydra
        >>> from ofdft_norm import readable_errors
        >>> @readable_errors
        ... @hydra.main(version_base="1.3", config_path=None)
        ... def main(cfg):
        ...     pass
    """
    own = Path(inspect.unwrap(main).__code__.co_filename).is_relative_to(Path(__file__).parents[1])

    @functools.wraps(main)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        if os.environ.get(_FULL) == "1" and _OURS not in os.environ:
            return main(*args, **kwargs)
        # Hydra prints and exits by itself unless it is told to let exceptions through
        with _environment({_FULL: "1", _OURS: "1"}):
            try:
                return main(*args, **kwargs)
            except EXPECTED_ERRORS as error:
                text = explain(error, sys.argv[1:], Path(sys.argv[0]).stem if own else None)
                print(text, file=sys.stderr)
        sys.exit(1)

    return wrapped


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def explain(error: BaseException, overrides: Sequence[str] = (), script: str | None = "train") -> str:
    """Returns the message for an error.

    Args:
        error: What Hydra, OmegaConf or this package raised.
        overrides: The command line's arguments: they say which option of each config group was in use.
        script: Name of the script; its config file is the one of that name, else ``train.yaml``. None: another
            application, whose keys and files are not known here.

    Returns:
        A few lines, ready to print.
    """
    lines = [f"error: {_text(error)}"] if script is None else _lines(error, config_files(overrides, script))
    return "\n".join([*lines, f"(set {_FULL}=1 for the full traceback)"])


def _text(error: BaseException) -> str:
    root = _root_cause(error)
    if isinstance(root, MissingMandatoryValue):
        return f"{root.full_key}: has no value, and needs one (config: {root.full_key}=...)"
    return str(root if isinstance(root, OFDFTNormError | OmegaConfBaseException) else error).strip()


def _lines(error: BaseException, files: Mapping[str, Path]) -> list[str]:
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        return _unknown_option(error.missing_cfg_file, list(error.options))
    if isinstance(error, ConfigCompositionException) and isinstance(error.__cause__, OmegaConfBaseException):
        return _unknown_key(str(error.__cause__.full_key), files)
    text = _text(error)
    keys = [text.partition(" = ")[0], *(_known(word, files) for word in re.findall(r"[a-z]\w*(?:\.\w+)+", text))]
    keys += re.findall(r"\(config: (\w+)\)", text)
    shown = dict.fromkeys(files[key] for key in keys if key in files)
    return [f"error: {text}", *(f"  config file: {file}" for file in shown)]


def _known(word: str, files: Mapping[str, Path]) -> str:
    """Returns the key that a word of a message is, or the closest key above it; empty: none."""
    while word not in files and "." in word:
        word = word.rpartition(".")[0]
    return word if "." in word else ""


def _root_cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None and not isinstance(error, OFDFTNormError):
        error = error.__cause__
    return error


def _unknown_option(name: str, options: list[str]) -> list[str]:
    group, _, option = name.rpartition("/")
    folder = config_dir() / group
    lines = [f"error: unknown option {option!r} of the config group {group!r}"]
    lines += [f"  did you mean: {group}={close}" for close in closest(option, options)]
    lines.append(f"  options: {', '.join(options)}")
    return lines + ([f"  config files: {folder}"] if folder.is_dir() else [])


def _unknown_key(key: str, files: Mapping[str, Path]) -> list[str]:
    options = [] if "/" in key else _options_with(key)
    if options:  # there, but not in this configuration
        return [f"error: config key {key!r} is there only with {' or '.join(options)}"]
    group = "/" in key
    places, separator = (config_groups(), "/") if group else (files, ".")
    lines = [f"error: unknown config {'group' if group else 'key'} {key!r}"]
    close = _closest(key, places, separator)
    if close:
        return [*lines, f"  did you mean: {close}", f"  config file{'s' if group else ''}: {places[close]}"]
    parent = _known(key, files)
    below = sorted(name.rpartition(".")[2] for name in files if name.rpartition(".")[0] == parent)
    lines.append(f"  valid keys{' of ' + parent if parent else ''}: {', '.join(below) or 'none'} (+{key}=... adds one)")
    return lines + ([f"  config file: {files[parent]}"] if parent else [])


def _closest(key: str, names: Iterable[str], separator: str) -> str | None:
    """Compares the last part of names: first with those beside it, then with all."""
    parent, _, last = key.rpartition(separator)
    everywhere = {name.rpartition(separator)[2]: name for name in names}
    beside = {name.rpartition(separator)[2]: name for name in names if name.rpartition(separator)[0] == parent}
    for candidates, cutoff in ((beside, 0.6), (everywhere, 0.8)):
        for match in closest(last, candidates, cutoff=cutoff):
            return candidates[match]
    return None


def config_dir() -> Path:
    """Returns the folder of config files: within the package where it was installed, beside it in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def config_groups() -> dict[str, Path]:
    """Returns the config groups, such as ``data/reference``, and their folders."""
    root = config_dir()
    return {path.relative_to(root).as_posix(): path for path in sorted(root.rglob("*")) if path.is_dir()}


def config_files(overrides: Sequence[str] = (), script: str = "train") -> dict[str, Path]:
    """Returns every key of the configuration and the file that defines it.

    Args:
        overrides: The command line's arguments. Where their groups cannot be composed, a key may be attributed to a
            file of its group that is not in use.
        script: See `explain`.

    Returns:
        Dotted key to file; a group's own key (``data.reference``) leads to its file.
    """
    primary = script if (config_dir() / f"{script}.yaml").is_file() else "train"
    choices = _choices(overrides, primary)
    used = {path for group, option in choices.items() for path in _with_defaults(config_dir() / group, str(option))}
    keys: dict[str, Path] = {}
    for path in sorted(config_dir().rglob("*.yaml")):
        group = path.relative_to(config_dir()).parent.as_posix()
        if path.stem != primary if group == "." else choices and path not in used:
            continue
        for key in _keys_of(path):
            keys.setdefault(key, path)
    return keys


def _keys_of(path: Path) -> list[str]:
    """Returns the dotted keys that a config file defines, and that of its group."""
    group = path.relative_to(config_dir()).parent.as_posix()
    package = "" if group == "." or _GLOBAL_PACKAGE.search(path.read_text()) else group.replace("/", ".")
    names = [".".join(filter(None, [package, name])) for name in _names(OmegaConf.load(path))]
    return [*([package] if package else []), *names]


def _options_with(key: str) -> list[str]:
    """Returns the options, such as ``data/split=file``, of the key's own group that define it."""
    groups = {g: folder for g, folder in config_groups().items() if key.startswith(f"{g.replace('/', '.')}.")}
    return [f"{g}={path.stem}" for g, d in groups.items() for path in sorted(d.glob("*.yaml")) if key in _keys_of(path)]


def _with_defaults(folder: Path, option: str) -> list[Path]:
    """Returns an option's file, and those of the same group that its defaults list takes in."""
    path = folder / f"{option}.yaml"
    if not path.is_file():
        return []
    defaults = cast(DictConfig, OmegaConf.load(path)).get("defaults") or []
    own = [entry for entry in defaults if isinstance(entry, str) and entry != "_self_"]
    return [path, *(file for entry in own for file in _with_defaults(folder, entry))]


def _names(node: Any) -> list[str]:
    if not isinstance(node, DictConfig):
        return []
    names = []
    for key in node:
        if key not in ("defaults", "_target_"):
            name = str(key)
            names += [name, *(f"{name}.{below}" for below in _names(node._get_node(key)))]
    return names


def _choices(overrides: Sequence[str], primary: str) -> dict[str, Any]:
    """Composes with the groups' overrides alone, as a wrong value's override would fail again."""
    groups = config_groups()
    chosen = [text for text in overrides if text.partition("=")[0].lstrip("+~").partition("@")[0] in groups]
    try:
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            config = compose(primary, overrides=chosen, return_hydra_config=True)
        return dict(config.hydra.runtime.choices)
    except (HydraException, OmegaConfBaseException):
        return {}
