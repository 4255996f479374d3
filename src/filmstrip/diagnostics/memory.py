"""Memory of a model from its configuration alone: a documented formula for every phase of a call.

In each phase some things stay (weights, key/value cache, inputs, what earlier phases left) and some come and go
(activations). The estimate of a phase is what stays plus the worst moment of what comes and goes, as this package's
code holds it (`memory_blocks`); the peak is the worst phase. Not in it: the CUDA context, kernels' workspaces,
fragmentation, Python itself.
"""

from dataclasses import dataclass

from filmstrip.checkpoint.describe import AnyConfig
from filmstrip.diagnostics.memory_inference import inference_phases
from filmstrip.diagnostics.memory_training import training_phases
from filmstrip.diagnostics.memory_workload import Extent, PhaseEstimate, Workload, measure_extent


@dataclass(frozen=True)
class Estimate:
    """All phases of a workload, in order."""

    workload: Workload
    extent: Extent
    phases: tuple[PhaseEstimate, ...]

    @property
    def peak(self) -> PhaseEstimate:
        """The phase that needs most."""
        return max(self.phases, key=lambda phase: phase.total)

    def phase(self, name: str) -> PhaseEstimate:
        """A phase by name. Raises `KeyError` when the workload has none of that name."""
        found = [phase for phase in self.phases if phase.name == name]
        if not found:
            raise KeyError(name)
        return found[0]


def estimate(config: AnyConfig, workload: Workload) -> Estimate:
    """Bytes of every phase. Raises `ConfigError` for a workload that the model cannot do."""
    extent = measure_extent(config, workload)
    phases = training_phases if workload.training else inference_phases
    return Estimate(workload, extent, tuple(phases(config, workload, extent)))
