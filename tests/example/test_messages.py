"""What Lightning says, and what it is kept from saying."""

from __future__ import annotations

import logging
import warnings
from types import ModuleType

import pytest

from ofdft_norm.example import messages
from ofdft_norm.example.messages import say_once


def warn_in(module: str, message: str, category: type[Warning]) -> None:
    """Warns as if the line stood in a module of that name."""
    place = ModuleType(module)
    code = f"import warnings; warnings.warn_explicit({message!r}, {category.__name__}, 'file.py', 1, module={module!r})"
    exec(code, place.__dict__)


def test_one_deprecation_in_lightning_is_silent_and_no_other() -> None:
    message = "`isinstance(treespec, LeafSpec)` is deprecated, use another thing"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        say_once()
        warn_in("lightning.pytorch.utilities._pytree", message, FutureWarning)
        assert not caught
        warn_in("somebody.else", message, FutureWarning)
        warn_in("lightning.pytorch.utilities._pytree", "`another` is deprecated", FutureWarning)
        warn_in("lightning.pytorch.utilities._pytree", message, UserWarning)
    assert len(caught) == 3


def test_messages_that_say_nothing_of_the_run_are_dropped_and_others_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with warnings.catch_warnings():
        say_once()
        say_once()
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    with caplog.at_level(logging.INFO, logger=logger.name):
        logger.info("GPU available: False, used: False")
        logger.info("`Trainer.fit` stopped")
    assert [record.getMessage() for record in caplog.records] == ["`Trainer.fit` stopped"]


def test_warnings_of_the_package_are_one_line_and_others_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # put back afterwards
    with warnings.catch_warnings():
        say_once()
    own = warnings.formatwarning("too few samples", UserWarning, str(messages.__file__), 1)
    assert own == "\nwarning: too few samples\n"
    theirs = warnings.formatwarning("too few samples", UserWarning, "/other/ofdft_norm/module.py", 1, "code()")
    assert theirs == "/other/ofdft_norm/module.py:1: UserWarning: too few samples\n  code()\n"
