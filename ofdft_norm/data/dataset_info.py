"""What STRUCTURES25's `dataset_info.yaml` says of a data set's bases."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ofdft_norm.data.plain_files import read_yaml
from ofdft_norm.errors import BasisError

_EVEN_TEMPERED = re.compile(r"even_tempered_(\d+(?:\.\d+)?)")


@dataclass(frozen=True)
class DatasetInfo:
    """What `dataset_info.yaml` says of the bases.

    Attributes:
        orbital_basis: Name of the Kohn-Sham calculation's basis, in PySCF's spelling.
        beta: Ratio of neighbouring exponents of the even-tempered density basis.
    """

    orbital_basis: str
    beta: float


def read_dataset_info(path: Path) -> DatasetInfo:
    """Reads ``kohn_sham.basis`` and ``of_basis_set`` (``even_tempered_2.5``).

    Args:
        path: A data set's `dataset_info.yaml`; its interpolations are not resolved.

    Raises:
        BasisError: If the file cannot be read, lacks one of the keys, or names another kind of density basis.
    """
    try:
        content = read_yaml(path)
    except (OSError, ValueError) as error:
        raise BasisError(f"{path}: cannot read the bases: {error} (config: data.source.basis_info)") from error
    orbital = _nested(content, "kohn_sham", "basis")
    density = _nested(content, "of_basis_set")
    match = _EVEN_TEMPERED.fullmatch(str(density))
    if not isinstance(orbital, str) or match is None:
        raise BasisError(
            f"{path}: has kohn_sham.basis = {orbital!r} and of_basis_set = {density!r}; expected the name of an "
            "orbital basis and 'even_tempered_<beta>': give the basis as JSON instead (config: data.source.basis_info)"
        )
    return DatasetInfo(orbital, float(match[1]))


def _nested(content: Any, *keys: str) -> Any:
    for key in keys:
        content = content.get(key) if isinstance(content, dict) else None
    return content
