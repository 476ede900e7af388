"""In which order the functions of a p shell stand in a label file, and that a data set holds one order only."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from ofdft_norm.data.basis_info import P_ORDERS, POrder
from ofdft_norm.errors import LabelFileError

# The code of STRUCTURES25 writes PySCF's order, and no attribute that says so.
STRUCTURES25_P_ORDER: POrder = "xyz"


def stated_p_order(attributes: Mapping[str, Any], where: str) -> POrder | None:
    """Reads the order out of the attributes of a label file.

    Args:
        attributes: Of the file's root.
        where: The file, for the message.

    Returns:
        The order; None if the file does not say, as those of STRUCTURES25's code.

    Raises:
        LabelFileError: If the file says something else.
    """
    # the generator of version 0.1.0 wrote the shells among the attributes, but not their order
    order = attributes.get("p_order", "yzx" if "irreps_per_atom" in attributes else None)
    if order is not None and order not in P_ORDERS:
        raise LabelFileError(
            f"{where}: attribute 'p_order' is {order!r}, expected one of {list(P_ORDERS)}: make the label again, or "
            "leave the molecule out (config: data.source.exclude)"
        )
    return cast("POrder | None", order)


class POrderCheck:
    """Compares the order in each label file that is read with the basis's, and with the first file's.

    A file that does not say is one of STRUCTURES25's (x, y, z). A basis that says otherwise is believed: files without
    the attribute may be somebody else's. Together with files that do say, they are refused.

    Args:
        p_order: The order that the basis says.
    """

    def __init__(self, p_order: POrder) -> None:
        self.p_order = p_order
        self._first: tuple[Path, POrder] | None = None

    def __call__(self, path: Path, stated: POrder | None) -> None:
        """Checks one file.

        Args:
            path: The file.
            stated: What it says, from `stated_p_order`.

        Raises:
            LabelFileError: If it says another order than the basis, or than the file that was read first.
        """
        if stated is not None and stated != self.p_order:
            raise LabelFileError(
                f"{path}: attribute 'p_order' is {stated!r}, but the basis has {self.p_order!r}: give the basis that "
                'these labels were made with, with its "p_order" (config: data.source.basis_info), or leave the file '
                "out (config: data.source.exclude)"
            )
        order = stated or STRUCTURES25_P_ORDER
        self._first = self._first or (path, order)
        if order != self._first[1]:
            raise LabelFileError(
                f"{path}: its p functions stand in the order {order!r}, those of {self._first[0]} in "
                f"{self._first[1]!r} (files without an attribute 'p_order' are STRUCTURES25's, in "
                f"{STRUCTURES25_P_ORDER!r}); a data set has one order: leave the files of the other out (config: "
                "data.source.paths, data.source.exclude)"
            )
