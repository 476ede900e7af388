"""Code and commands of the README and of the guide's pages."""

import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import ofdft_norm
from tests.hydra.composing import composed

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
GUIDE = Path(ofdft_norm.__file__).parent / "guide"
CONFIGS = ("train", "fit", "predict")  # Hydra commands and their config files


def code_blocks(language: str, page: Path) -> list[str]:
    """Returns the blocks of code of a page in a language."""
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.DOTALL)


def commands(page: Path) -> Iterator[list[str]]:
    """Yields the words of each `ofdft-norm` command of a page: blocks, and the table of overrides."""
    for block in code_blocks("bash", page):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(os.path.expandvars(line), comments=True)
            if "ofdft-norm" in words:
                yield words[words.index("ofdft-norm") + 1 :]
    for row in re.findall(r"^\|.*\| `([^`]+)` \|$", page.read_text(), flags=re.MULTILINE):
        if re.match(r"[a-z./_]+=", row):
            yield ["train", *shlex.split(row)]


def check_command(words: list[str]) -> None:
    """Composes the configuration of a Hydra command; raises Hydra's error for an unknown key or option."""
    name, *overrides = words
    launcher = "submitit" in " ".join(overrides)  # of a package that is not installed here
    if name not in CONFIGS or "--help" in overrides:
        return
    given = [word for word in overrides if not word.startswith("-") and not (launcher and word.startswith("hydra"))]
    composed(name, *(word for word in given if not word.startswith("hydra.")))
