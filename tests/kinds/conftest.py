"""The console's fixtures, for the faults that people met."""

from surface.conftest import cli as cli
from surface.conftest import environment as environment
from surface.conftest import good as good
from surface.conftest import models as models
