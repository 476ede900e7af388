"""Prints the lowest version of each dependency that a pyproject.toml allows, as requirements for pip.

Usage: ``python .ci/lowest_versions.py pyproject.toml``
"""

import sys
import tomllib
from pathlib import Path


def lowest_versions(pyproject: Path) -> list[str]:
    """Returns `name==version` for each lower bound of the dependencies and of every extra that users install."""
    project = tomllib.loads(pyproject.read_text())["project"]
    extras = project["optional-dependencies"]
    bounds = [*project["dependencies"], *extras["labels"], *extras["ase"], *extras["docs"], *extras["test"]]
    return [bound.replace(">=", "==") for bound in dict.fromkeys(bounds) if not bound.startswith(project["name"])]


if __name__ == "__main__":
    print("\n".join(lowest_versions(Path(sys.argv[1]))))
