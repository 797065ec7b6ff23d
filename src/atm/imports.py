"""The user's own modules, named in the config: found among the installed ones and in the current folder."""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType


def import_module(name: str) -> ModuleType:
    """Import a user's module. Raises ImportError with one line of reason, whatever the module raised."""
    folder = os.getcwd()
    if folder not in sys.path and "" not in sys.path:
        sys.path.insert(0, folder)
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:  # a script without a main guard may well exit
        if isinstance(error, ModuleNotFoundError) and error.name == name:
            raise ImportError(f"no module {name} (looked in {folder} and the installed ones)") from None
        raise ImportError(f"module {name} cannot be imported: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """What an error says, with its type, without line breaks."""
    return " ".join(f"{type(error).__name__}: {error}".split())
