"""Persona: real-time personalisation of on-device models by prototype-based, back-propagation-free parameter editing.

The names below are what a program of its own needs; each is loaded when it is first asked for, so that a device without torch
can import ``persona``. Importing sets nothing: call ``persona.runtime.configure()`` before torch is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from persona.adaptive import AdaptiveLayers
    from persona.attachment import Attached, attach
    from persona.bounds import Bound
    from persona.editor import EditorConfig, ParameterEditor
    from persona.edits import Edit
    from persona.prototypes import PrototypeBank, Server, fit_bank, refine
    from persona.training.loop import fit
    from persona.training.objective import FitConfig

__version__ = "0.1.0"

__all__ = [
    "AdaptiveLayers",
    "Attached",
    "Bound",
    "Edit",
    "EditorConfig",
    "FitConfig",
    "ParameterEditor",
    "PrototypeBank",
    "Server",
    "attach",
    "fit",
    "fit_bank",
    "refine",
]

_MODULES = {
    "AdaptiveLayers": "persona.adaptive",
    "Attached": "persona.attachment",
    "Bound": "persona.bounds",
    "Edit": "persona.edits",
    "EditorConfig": "persona.editor",
    "FitConfig": "persona.training.objective",
    "ParameterEditor": "persona.editor",
    "PrototypeBank": "persona.prototypes",
    "Server": "persona.prototypes",
    "attach": "persona.attachment",
    "fit": "persona.training.loop",
    "fit_bank": "persona.prototypes",
    "refine": "persona.prototypes",
}


def __getattr__(name: str) -> Any:
    """Load an exported name (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    """Loaded and exported names."""
    return sorted({*globals(), *__all__})
