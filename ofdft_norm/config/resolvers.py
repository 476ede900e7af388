"""What a configuration knows of its data, for the size of a model: ``n_basis: ${ofdft_norm.n_basis:data}``.

The Hydra plug-in registers these names in every application, which imports this package when one of them is used.
"""

from __future__ import annotations

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from ofdft_norm.data.basis_info import BasisInfo
from ofdft_norm.errors import ConfigError


def n_basis(key: str = "data", *, _root_: DictConfig) -> int:
    """Returns the number of basis functions of all elements together, see `BasisInfo`.

    Args:
        key: Where the data module stands in the configuration.
        _root_: The configuration.

    Raises:
        ConfigError: If there is no data module, or its data have no density basis.
    """
    return _basis(key, _root_).n_basis


def atomic_numbers(key: str = "data", *, _root_: DictConfig) -> list[int]:
    """Returns the elements of the density basis; arguments as `n_basis`.

    Args:
        key: Where the data module stands in the configuration.
        _root_: The configuration.
    """
    return [int(number) for number in _basis(key, _root_).atomic_numbers]


def irreps_per_atom(key: str = "data", *, _root_: DictConfig) -> list[str]:
    """Returns the shells of each element, such as ``6x0e+3x1o+1x2e``; arguments as `n_basis`.

    Args:
        key: Where the data module stands in the configuration.
        _root_: The configuration.
    """
    return [str(irreps) for irreps in _basis(key, _root_).irreps_per_atom]


def _basis(key: str, root: DictConfig) -> BasisInfo:
    source = OmegaConf.select(root, f"{key}.source")
    if source is None:
        raise ConfigError(f"{key}.source: the configuration has none, from which to read a basis (config: data.source)")
    basis: BasisInfo | None = instantiate(source).basis()
    if basis is None:
        raise ConfigError(
            f"{key}.source has no density basis: give the model its size and its elements (config: data.source)"
        )
    return basis
