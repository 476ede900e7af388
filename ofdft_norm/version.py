"""The installed version of the package, for whatever is written to disk."""

from importlib.metadata import PackageNotFoundError, version


def package_version() -> str:
    """Returns the installed version of ofdft-norm, or "(not installed)"."""
    try:
        return version("ofdft-norm")
    except PackageNotFoundError:
        return "(not installed)"


__version__ = package_version()
