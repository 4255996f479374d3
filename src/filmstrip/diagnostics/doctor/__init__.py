"""The checkpoint doctor: everything that is wrong with a checkpoint directory, not only the first thing."""

from filmstrip.diagnostics.doctor.examine import diagnose
from filmstrip.diagnostics.doctor.findings import Diagnosis, Finding

__all__ = ["Diagnosis", "Finding", "diagnose"]
