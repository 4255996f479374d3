"""Which layout the stored names follow, and which parameter each of them is."""

from collections import defaultdict
from dataclasses import dataclass, field

from filmstrip.checkpoint.layouts import FAMILY_LAYOUTS, layouts_of
from filmstrip.checkpoint.rules import Drop, Layout, Mapped, closest_layout
from filmstrip.config.model import FAMILIES
from filmstrip.diagnostics.doctor.findings import Findings, counted, some
from filmstrip.diagnostics.doctor.weights import Stored

FAMILY_TITLES = FAMILIES | {"llama": "LLaMA", "clip": "CLIP"}


@dataclass
class Matched:
    """What became of the stored names: `entries` are those that a layout maps to a parameter.

    `lost` are parameters that an index places in a file that is absent or cannot be read; `elsewhere` are components
    whose weights lie in a repository that was not read.
    """

    layout: Layout | None = None
    entries: dict[str, Mapped] = field(default_factory=dict)
    lost: set[str] = field(default_factory=set)
    elsewhere: set[str] = field(default_factory=set)

    @property
    def canonical(self) -> dict[str, str]:
        """Stored name to parameter."""
        return {name: entry.canonical for name, entry in self.entries.items()}

    def holds(self, component: str) -> bool:
        """Whether any tensor of a component, such as `image_tower`, is among them."""
        return any(entry.canonical.startswith(f"{component}.") for entry in self.entries.values())

    def include(self, part: "Matched", prefix: str) -> None:
        """Add what another directory holds, under names that begin with `prefix`."""
        self.entries |= {prefix + name: entry for name, entry in part.entries.items()}
        self.lost |= part.lost


def recognise(stored: Stored, family: str | None, findings: Findings, component: str = "") -> Matched:
    """Find the layout that most names follow, and report the others.

    `family` is the one that config.json names; None: it cannot be told, and all are tried. `component` is put in front
    of the parameters' names: `image_tower.` for a tower in a directory of its own.
    """
    names = sorted(stored.tensors)
    if not names:
        return Matched()
    layouts = tuple(layouts_of(family).values()) if family is not None else _all_layouts()
    layout, unknown = closest_layout(names, layouts)
    if unknown and family is not None:
        other, left = closest_layout(names, _all_layouts())
        if not left:
            what = f"config.json is of the family {family}, the names are all of the {title(other)}"
            findings.add("family-differs", "tensors", what)
            return Matched(other)
    if len(unknown) == len(names):
        findings.add("layout-unknown", "tensors", f"{counted(len(unknown), 'tensor')}, such as {some(unknown)}")
        return Matched()
    placed = layout.placed(component) if component else layout
    matched = Matched(layout)
    dropped: dict[str, list[str]] = defaultdict(list)
    for name in stored.tensors:
        entry = placed.to_canonical(name)
        if isinstance(entry, Mapped):
            matched.entries[name] = entry
        elif isinstance(entry, Drop):
            dropped[entry.why].append(name)
    for why, names in dropped.items():
        findings.add("tensors-left-out", "tensors", f"{counted(len(names), 'tensor')} ({some(names)}): {why}")
    lost = (placed.to_canonical(name) for name in stored.lost)
    matched.lost = {entry.canonical for entry in lost if isinstance(entry, Mapped)}
    _report_unknown(layout, unknown, layouts, matched, findings)
    return matched


def family_of(layout: Layout) -> str:
    """The family whose table a layout is."""
    return next(family for family, layouts in FAMILY_LAYOUTS.items() if layout in layouts.values())


def title(layout: Layout) -> str:
    """A layout's title, and whose it is."""
    return f"{layout.title} of {FAMILY_TITLES[family_of(layout)]}"


def _all_layouts() -> tuple[Layout, ...]:
    return tuple(layout for layouts in FAMILY_LAYOUTS.values() for layout in layouts.values())


def _report_unknown(
    layout: Layout, unknown: list[str], layouts: tuple[Layout, ...], matched: Matched, findings: Findings
) -> None:
    """Names foreign to the closest layout: of another published layout, or of none."""
    others: dict[str, list[str]] = defaultdict(list)
    foreign = []
    for name in unknown:
        for other in layouts:
            entry = other.to_canonical(name)
            if entry is not None:
                others[other.title].append(name)
                if isinstance(entry, Mapped):
                    matched.entries[name] = entry
                break
        else:
            foreign.append(name)
    for other_title, names in others.items():
        few = f"{counted(len(names), 'tensor')} of the {other_title}: {some(names)}"
        what = f"most names are of the {layout.title}, but {few}"
        findings.add("layouts-mixed", "tensors", what)
    if foreign:
        what = f"the closest is the {layout.title}, which does not know {counted(len(foreign), 'tensor')}"
        findings.add("tensors-foreign", "tensors", f"{what}: {some(foreign)}")
