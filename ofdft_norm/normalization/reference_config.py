"""References from a configuration: given values, files, or a fit, for several targets."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from ofdft_norm.data.elements import SYMBOLS
from ofdft_norm.data.files import written_whole
from ofdft_norm.errors import ConfigError, StatisticsError, closest, did_you_mean
from ofdft_norm.normalization.element_references import LinearReferences, unseen_policy
from ofdft_norm.normalization.fit_linear_references import fit_linear_references
from ofdft_norm.normalization.given_references import create_element_references, references_of
from ofdft_norm.normalization.reference_files import ONLY_TARGET, read_reference_file
from ofdft_norm.statistics.distributed import current_ranks

CHECKPOINT_NAME = "element_references.pt"

_FIT_ARGUMENTS = [name for name in inspect.signature(fit_linear_references).parameters if name != "dataset"]


def load_references_from_config(
    config: Mapping[str, Any], dataset: Any, seed: int = 0, checkpoint_dir: str | Path | None = None
) -> dict[str, LinearReferences]:
    """Creates the references of all targets that a configuration names.

    Keys:
        file: A file with the references of several targets: a state dict, or a vector, for each.
        fit: Arguments of `fit_linear_references` (without the data set), and `fitted`.
        <target>: References of one target: ``{file: ...}`` (of several targets in it the one named by ``target``),
            ``{state_dict: ...}``, ``{values: ...}``, each with `unseen_elements`, and with the ``unit`` it is in, such
            as eV, if it is to become hartree; or the values themselves, see `references_from_values`.

    Where a target has several sources, its own entry wins over `file`, and `file` over `fit`; a warning says so. After
    a fit ``config["fit"]["fitted"]`` is set to true, so that a run resumed with this config takes the fitted
    references from `checkpoint_dir` instead of fitting again.

    Args:
        config: The configuration; a `DictConfig` or a mapping whose `fit` can be changed.
        dataset: Samples to fit on; not read unless there is something to fit.
        seed: Seed of the fit's shuffling, unless `fit` gives its own.
        checkpoint_dir: Where all references are written as ``element_references.pt``, which loads with
            ``torch.load(weights_only=True)``; on resuming, where they are read. Under torch.distributed rank 0 writes.

    Returns:
        References by target.

    Raises:
        ConfigError: If a key is unknown, or `fitted` is set without the fitted references at hand.
        StatisticsError: If a file cannot be read, or lacks a target.
    """
    fit = config.get("fit")
    fit_targets = _check_fit(fit) if fit is not None else []
    own = {
        str(target): _target_references(str(target), config[target])
        for target in config
        if target not in ("file", "fit")
    }
    in_file = _references_of_file(Path(config["file"])) if config.get("file") is not None else {}
    _warn_of_conflicts(in_file, fit_targets, own)
    references = {**in_file, **own}
    wanted = [target for target in fit_targets if target not in own and target not in in_file]
    resumed = fit is not None and bool(fit.get("fitted", False))
    if wanted and resumed:
        references.update(_fitted_before(wanted, checkpoint_dir))
    elif wanted and fit is not None:
        arguments = {key: _plain(fit[key]) for key in fit if key not in ("targets", "fitted")}
        references.update(fit_linear_references(wanted, dataset, **{"seed": seed, **arguments}))
        _mark_fitted(fit)
    if not references:
        raise ConfigError("the references' config names no target: give 'file', 'fit', or an entry for a target")
    if checkpoint_dir is not None and not resumed and current_ranks().rank == 0:
        _save(references, Path(checkpoint_dir))
    return references


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if isinstance(value, DictConfig | ListConfig) else value


def _check_fit(fit: Any) -> list[str]:
    """Checks the section `fit` and returns its targets."""
    if not isinstance(fit, MutableMapping | DictConfig):
        raise ConfigError(f"fit = {fit!r}: expected a mapping of the arguments {_FIT_ARGUMENTS}")
    for key in fit:
        _refuse_unknown(str(key), [*_FIT_ARGUMENTS, "fitted"], "fit")
    missing = [key for key in ("targets", "batch_size") if fit.get(key) is None]
    if missing:
        raise ConfigError(f"fit lacks {missing}; for example fit: {{targets: [energy], batch_size: 64}}")
    targets = _plain(fit["targets"])
    if not isinstance(targets, list | tuple):
        raise ConfigError(f"fit.targets = {targets!r}: expected a list of names, such as [energy]")
    return [str(target) for target in targets]


def _refuse_unknown(key: str, known: Sequence[str], where: str) -> None:
    if key not in known:
        hint = did_you_mean(key, known, cutoff=0.5)
        raise ConfigError(f"unknown key {key!r} in {where}: expected one of {list(known)}{hint}")


# Where the references of one target come from: one of these, with the options beside it.
_OPTIONS = ("unit", "unseen_elements")
_SOURCES = {"file": ("target", *_OPTIONS), "values": _OPTIONS, "state_dict": _OPTIONS}


def _target_references(target: str, entry: Any) -> LinearReferences:
    """Reads the entry of one target: a file, values, or a state dict."""
    if isinstance(entry, Mapping | DictConfig) and "element_references" not in entry:
        keys = [str(key) for key in entry]
        sources = [key for key in keys if key in _SOURCES]
        if sources:
            return _from_source(target, keys, sources, entry)
        foreign = [key for key in keys if key in (*_FIT_ARGUMENTS, "fitted")]
        if foreign:
            raise ConfigError(
                f"{target} has the keys {foreign} of a fit: fits stand under 'fit', with {target!r} among its targets; "
                f"did you mean the key 'fit' instead of {target!r}?"
            )
        for key in entry:
            if isinstance(key, str) and not key.isdecimal() and key not in SYMBOLS and len(key) > 2:
                _refuse_unknown(key, list(_SOURCES), target)
    elif isinstance(entry, int | float | None) or (isinstance(entry, str) and entry.lstrip()[:1] not in ("{", "[")):
        close = closest(target, ["file", "fit"])
        hint = f"did you mean the key {close[0]!r}?" if close else f"for a file write {target}: {{file: ...}}"
        raise ConfigError(
            f"{target} = {entry!r}: expected {{file: ...}}, a mapping of elements to values, or a list by atomic "
            f"number; {hint}"
        )
    return references_of(entry, target)


def _from_source(target: str, keys: Sequence[str], sources: Sequence[str], entry: Any) -> LinearReferences:
    unknown = [key for key in keys if key not in (sources[0], *_SOURCES[sources[0]])]
    if unknown:
        raise ConfigError(
            f"{target} has the keys {keys}: expected one of {list(_SOURCES)} alone, with {_SOURCES[sources[0]]} beside "
            f"{sources[0]!r} at most"
        )
    unit = entry.get("unit", "hartree")
    if sources[0] == "file":
        references = create_element_references(entry["file"], target=entry.get("target"), unit=unit)
    else:
        references = references_of(entry[sources[0]], target, unit)
    references.unseen_elements = unseen_policy(entry.get("unseen_elements", "error"))
    return references


def _references_of_file(path: Path) -> dict[str, LinearReferences]:
    """Reads the references of several targets from one file."""
    content = read_reference_file(path)
    if ONLY_TARGET in content:
        raise StatisticsError(
            f"{path}: holds the references of a single target; name the target: <target>: {{file: {path}}} "
        )
    return {target: references_of(state, f"{path}: {target!r}") for target, state in content.items()}


def _warn_of_conflicts(in_file: Mapping[str, Any], fit_targets: Sequence[str], own: Mapping[str, Any]) -> None:
    for target in sorted({*in_file, *fit_targets, *own}):
        places = (("its own entry", own), ("'file'", in_file), ("'fit'", fit_targets))
        sources = [name for name, targets in places if target in targets]
        if len(sources) > 1:
            warnings.warn(
                f"the references of {target!r} have several sources, {' and '.join(sources)}: {sources[0]} is used",
                stacklevel=3,
            )


def _fitted_before(targets: Sequence[str], checkpoint_dir: str | Path | None) -> dict[str, LinearReferences]:
    path = None if checkpoint_dir is None else Path(checkpoint_dir) / CHECKPOINT_NAME
    if path is None or not path.is_file():
        raise ConfigError(
            f"fit.fitted is true, but {'checkpoint_dir is not given' if path is None else f'{path} does not exist'}: "
            "give the folder of the run that fitted, or remove fit.fitted to fit again"
        )
    references = _references_of_file(path)
    missing = [target for target in targets if target not in references]
    if missing:
        raise StatisticsError(
            f"{path}: lacks the references of {missing}; it has {sorted(references)}: remove fit.fitted to fit again "
        )
    return {target: references[target] for target in targets}


def _mark_fitted(fit: Any) -> None:
    if isinstance(fit, DictConfig):
        with open_dict(fit):
            fit["fitted"] = True
    else:
        fit["fitted"] = True


def _save(references: Mapping[str, LinearReferences], folder: Path) -> None:
    state = {target: module.state_dict() for target, module in references.items()}
    with written_whole(folder / CHECKPOINT_NAME) as file:
        torch.save(state, file)
