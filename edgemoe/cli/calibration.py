"""What `--calibration` names, for `edgemoe convert` to either format."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .status import note

if TYPE_CHECKING:
    from ..converters.calibration import Calibration
    from ..converters.imatrix import ImportanceMatrix
    from ..converters.source import Source


def load_calibration(source: Source, name: str) -> Calibration | ImportanceMatrix:
    """The file, checked against the model; what it cannot give is said."""
    from ..converters import calibration, imatrix

    known = imatrix.load(Path(name).expanduser(), source)
    for line in imatrix.notes(known, calibration.check_same_model(known.columns, source)):
        note(f"{name}: {line}")
    return known
