"""Every way jpgen can fail. Each error says what it got, what it wanted and what to do.

    JpgenError
    ├── PromptError (ValueError)          the prompt cannot be read
    ├── SettingError (ValueError)         a sampling setting is out of range
    ├── UnknownNameError (KeyError)       no such model, scheduler, file …; the nearest name is offered
    ├── IncompatibleError (ValueError)    an encoder and a backbone do not fit
    ├── WeightsError (ValueError)         a weight file is missing, damaged or not what it says
    ├── RecipeError (ValueError)          a merge recipe is not valid
    ├── StudyError (ValueError)           a search cannot be begun or continued
    ├── MetadataError (ValueError)        a picture does not say how it was made
    ├── OutputError (OSError)             a file cannot be written
    ├── TrainingDataError (ValueError)    what training reads is not there
    ├── MissingExtraError (ImportError)   an optional dependency is not installed
    ├── LicenseError (PermissionError)    the licence of a model has not been accepted
    └── Cancelled                         the step callback asked to stop
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class JpgenError(Exception):
    """Anything jpgen raises on purpose."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class PromptError(JpgenError, ValueError):
    """The prompt cannot be read."""


class SettingError(JpgenError, ValueError):
    """A sampling setting is out of range."""


class UnknownNameError(JpgenError, KeyError):
    """No such name; the message offers the nearest one."""

    @classmethod
    def of(cls, kind: str, got: str, known: Iterable[str]) -> UnknownNameError:
        """The error for `got`, an unknown name of this `kind` among the `known` ones."""
        names = sorted(known)
        near = difflib.get_close_matches(got.lower(), names, n=1, cutoff=0.5)
        hint = f"もしかして {near[0]} ですか / did you mean {near[0]!r}?" if near else f"使えるのは / known: {', '.join(names)}"
        return cls(f"{kind} {got!r} はありません / unknown {kind} {got!r}: {hint}")


class IncompatibleError(JpgenError, ValueError):
    """An encoder and a backbone do not fit together."""


class WeightsError(JpgenError, ValueError):
    """A weight file is missing, damaged, or not what it says."""


class RecipeError(JpgenError, ValueError):
    """A merge recipe is not valid."""


class StudyError(JpgenError, ValueError):
    """A search cannot be begun, or its log cannot be continued."""


class MetadataError(JpgenError, ValueError):
    """A picture does not say how it was made, or says it wrongly."""


class OutputError(JpgenError, OSError):
    """A file cannot be written."""


class TrainingDataError(JpgenError, ValueError):
    """What training reads is missing or damaged."""


class MissingExtraError(JpgenError, ImportError):
    """An optional dependency is not installed."""


class LicenseError(JpgenError, PermissionError):
    """The licence of a model has not been accepted."""


class Cancelled(JpgenError):
    """The step callback asked to stop; nothing was made."""
