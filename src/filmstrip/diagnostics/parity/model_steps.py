"""The steps inside the model: every named activation of two runs, total and introduced, as is and in float64."""

from dataclasses import dataclass, field

import torch

from filmstrip.diagnostics.activations import Difference, compare_site, fold, is_text_site
from filmstrip.diagnostics.parity.inputs import Inputs
from filmstrip.diagnostics.parity.report import Step, Verdict
from filmstrip.diagnostics.parity.side import OurSide, Precision, Side
from filmstrip.errors import FilmstripError
from filmstrip.inputs.collate import Batch
from filmstrip.models.record import Activations
from filmstrip.shapes import Float, Int, Tensor

# In float64 the same equations agree to about 1e-13 of an activation's range over a few hundred products; an epsilon
# that is wrong by 1e-6 moves a normalised value of size one by 5e-7. The bound lies between, nearer to the first.
SAME_EQUATION = 1e-9
# What one step may add by rounding in each dtype, relative; above it the difference is no rounding of one step, even
# if it vanishes in float64 (a step that one side computes in a narrower type).
ONE_STEP = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02, torch.float64: SAME_EQUATION}
# How far whole runs may be apart in float64 when no step adds anything: rotary tables, which are float32 on both sides,
# and what layers make of their rounding. Above it something differs that the replay did not see.
UNEXPLAINED = 1e-3
ROTARY = "text_tower.rotary."
FLOAT32_EPS = torch.finfo(torch.float32).eps


class Comparison:
    """Taps that compare each value of ours with the reference's at once, so that ours need not be kept.

    With `replay` the reference's value takes the place of ours and so becomes the input of the next step. `kept` has
    our values of the few sites that hints are read off.
    """

    def __init__(self, theirs: Activations, ours: Batch, reference: Batch, replay: bool) -> None:
        self.found: dict[str, Difference] = {}
        self.problems: dict[str, str] = {}
        self.rounded_tables: set[str] = set()
        self.kept: Activations = {}
        self.sites: list[str] = []
        self._theirs, self._replay = theirs, replay
        self._mask, self._their_mask = ours.attention_mask, reference.attention_mask

    def __call__(self, site: str, value: Tensor) -> Tensor:
        """Compare, and return what the next step shall read."""
        self.sites.append(site)
        if site.startswith(ROTARY) or site.endswith(".selected"):
            self.kept[site] = value.detach()
        theirs = self._theirs.get(site)
        if theirs is None:
            self.problems[site] = "the reference has no such step"
            return value
        ours = value.detach().cpu()
        if site == "logits" and ours.shape[-1] != theirs.shape[-1]:  # vocabularies padded to different sizes
            common = min(ours.shape[-1], theirs.shape[-1])
            ours, theirs = ours[..., :common], theirs[..., :common]
        try:
            self.found[site] = self._compare(site, ours, theirs)
        except ValueError as error:
            self.problems[site] = str(error).removeprefix(f"{site}: ")
        return self._replacement(site, value, theirs) if self._replay else value

    def _compare(self, site: str, ours: Tensor, theirs: Tensor) -> Difference:
        mask, their_mask = self._mask.cpu(), self._their_mask.cpu()
        found = compare_site(site, ours, theirs.cpu(), mask, their_mask)
        if site.startswith(ROTARY) and found.finite and found.max_abs:
            last_bit = torch.finfo(ours.dtype).eps if ours.dtype.itemsize < 4 else 0.0  # a table in half precision
            allowed = last_bit + rotary_rounding(site, fold(theirs.cpu(), tuple(ours.shape)), their_mask)
            apart = (ours[mask.bool()].double() - theirs.cpu().expand_as(ours)[their_mask.bool()].double()).abs()
            if bool((apart <= allowed).all()):
                self.rounded_tables.add(site)
        return found

    def _replacement(self, site: str, value: Tensor, theirs: Tensor) -> Tensor:
        """The reference's value in our shape; what padding holds stays ours, since theirs may be anything there."""
        replacement = fold(theirs, tuple(value.shape)).to(value)
        if not is_text_site(site) or replacement.shape != value.shape:
            return replacement
        kept = self._mask.bool().to(value.device)
        return torch.where(kept.reshape(*kept.shape, *[1] * (value.dim() - 2)), replacement, value)


def rotary_rounding(
    site: str, theirs_BTH: Float[Tensor, "B T H"], mask_BT: Int[Tensor, "B T"]
) -> Float[Tensor, "tokens H"]:
    """How far a table of cosines or sines may be off at each real token: the rounding of its angles in float32.

    An angle is position times frequency, so its rounding grows with the position. Frequencies are read off the table
    at position one.
    """
    rows = []
    for table_TH, mask_T in zip(theirs_BTH.double(), mask_BT.bool(), strict=True):
        real_TH = table_TH[mask_T]
        at_one = real_TH[min(1, len(real_TH) - 1)].abs().clamp(max=1.0)
        frequency_H = at_one.arccos() if site.endswith("cos") else at_one.arcsin()
        positions_T1 = torch.arange(len(real_TH), dtype=torch.float64)[:, None]
        rows.append(8 * FLOAT32_EPS * (1 + positions_T1 * frequency_H))
    return torch.cat(rows)


@dataclass
class ModelRuns:
    """The comparisons of one precision, and the reference's activations they were made with."""

    theirs: Activations
    total: Comparison
    replay: Comparison
    known: frozenset[str]
    refused: dict[str, str] = field(default_factory=dict)


def run_both(ours: OurSide, theirs: Side, inputs: Inputs, precision: Precision) -> ModelRuns:
    """Run the reference, then ours twice: on our inputs, and step by step on the reference's values."""
    reference = theirs.activations(inputs.theirs, precision)
    total = Comparison(reference, inputs.ours, inputs.theirs, replay=False)
    replay = Comparison(reference, inputs.adopted, inputs.theirs, replay=True)
    runs = ModelRuns(reference, total, replay, frozenset(reference))
    for name, batch, comparison in (("total", inputs.ours, total), ("replay", inputs.adopted, replay)):
        try:
            ours.run(batch, precision, comparison)
        except FilmstripError as error:  # placeholders that do not fit: the text tower runs on the reference's values
            runs.refused[name] = " ".join(str(error).split())
            if name == "replay" and "embeddings" in reference:
                comparison.sites.append("embeddings")
                comparison.problems["embeddings"] = runs.refused[name]
                ours.run_text(reference["embeddings"], inputs.adopted, precision, comparison)
    return runs


def model_steps(working: ModelRuns, double: ModelRuns | None, dtype: torch.dtype, inputs_differ: bool) -> list[Step]:
    """One step per site, with its verdict. `inputs_differ`: the models did not read the same."""
    steps: list[Step] = []
    faulty = inputs_differ
    for site in working.replay.sites:
        step = _step(site, working, double, dtype, faulty)
        faulty = faulty or step.verdict == "introduced"
        steps.append(step)
    return steps


def _step(site: str, working: ModelRuns, double: ModelRuns | None, dtype: torch.dtype, faulty: bool) -> Step:
    introduced, total = working.replay.found.get(site), working.total.found.get(site)
    introduced_64 = None if double is None else double.replay.found.get(site)
    total_64 = None if double is None else double.total.found.get(site)
    problem = working.replay.problems.get(site, "") or working.total.problems.get(site, "")
    verdict: Verdict
    if site not in working.known:
        verdict = "absent"
    elif _is_introduced(site, introduced, introduced_64, working, dtype):
        verdict = "introduced"
    elif total is None:
        verdict = "inherited"
        problem = problem or working.refused.get("total", "")
    elif total.max_abs == 0 and (introduced is None or introduced.max_abs == 0):
        verdict = "equal"
    elif faulty and (total_64 is None or not total_64.relative <= SAME_EQUATION):
        verdict = "inherited"
    elif total_64 is not None and not total_64.relative <= UNEXPLAINED:
        verdict = "introduced"
        problem = "the whole runs differ here although the step adds nothing: it reads something that has no name"
    else:
        verdict = "rounding"
    return Step(0, site, verdict, total, introduced, total_64, introduced_64, problem)


def _is_introduced(
    site: str,
    introduced: Difference | None,
    introduced_64: Difference | None,
    working: ModelRuns,
    dtype: torch.dtype,
) -> bool:
    """Whether a step differs by itself: it stays in float64, or is more than a step's rounding can be."""
    if introduced is None:
        return True
    if site.startswith(ROTARY):  # tables are float32 on both sides in every run
        return introduced.max_abs > 0 and site not in working.replay.rounded_tables
    if not introduced.relative <= ONE_STEP[dtype]:
        return True
    return introduced_64 is not None and not introduced_64.relative <= SAME_EQUATION


def any_difference(runs: ModelRuns) -> bool:
    """Whether anything at all differs, so that a float64 run has something to tell."""
    found = (*runs.total.found.values(), *runs.replay.found.values())
    return bool(runs.refused) or any(item.max_abs for item in found) or any(runs.replay.problems.values())
