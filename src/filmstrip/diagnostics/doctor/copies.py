"""Tensors that hold the same bytes: tied weights and shared towers must, most others must not."""

from collections import defaultdict
from collections.abc import Mapping

from filmstrip.diagnostics.doctor.findings import Findings, counted, some
from filmstrip.diagnostics.doctor.names import Expected
from filmstrip.diagnostics.doctor.recognise import Matched
from filmstrip.diagnostics.doctor.values import Content, same_bytes
from filmstrip.diagnostics.doctor.weights import Stored
from filmstrip.errors import CheckpointError

TOWERS = ("image_tower.", "video_tower.")


def check_copies(
    stored: Stored,
    matched: Matched,
    expected: Expected | None,
    contents: Mapping[str, Content],
    findings: Findings,
    *,
    copied_towers: bool = False,
) -> None:
    """Report tied weights that disagree, and copies where training makes none.

    `copied_towers`: the checkpoint records that its video tower began as a copy of its image tower.
    """
    owner = expected.owner if expected is not None else {}
    canonical = {name: role for name, role in matched.canonical.items() if name in contents}
    _check_tied(stored, canonical, owner, findings)
    groups = _equal_groups(stored, contents)
    _check_towers(canonical, owner, groups, contents, stored, copied_towers, findings)
    for group in groups:
        roles = {_role(canonical.get(name, name), owner) for name in group}
        matrix = len(stored.tensors[group[0]].shape) > 1
        if len(roles) > 1 and matrix and not contents[group[0]].constant:
            size = stored.tensors[group[0]].end - stored.tensors[group[0]].begin
            findings.add("tensors-identical", group[0], f"the same {size:,} bytes as {some(group[1:])}")


def _check_tied(stored: Stored, canonical: Mapping[str, str], owner: Mapping[str, str], findings: Findings) -> None:
    """Parameters that the configuration makes one and that are stored more than once."""
    names: dict[str, list[str]] = defaultdict(list)
    for name, role in canonical.items():
        if role in owner:
            names[owner[role]].append(name)
    equal = []
    for group in names.values():
        first, *copies = sorted(group, key=lambda name: (canonical[name] not in names, name))
        for copy in copies:
            if canonical[first] == canonical[copy]:
                continue  # stored twice under one role: reported with the names
            if _same(stored, first, copy, findings):
                equal.append(copy)
            else:
                findings.add("tied-differ", copy, f"differs from {first}")
    if equal:
        what = f"{counted(len(equal), 'tensor')} stored again although config.json makes them one: {some(equal)}"
        findings.add("copies-expected", "tensors", what)


def _equal_groups(stored: Stored, contents: Mapping[str, Content]) -> list[list[str]]:
    """Names whose tensors are byte for byte the same; candidates by checksum, then compared."""
    candidates: dict[tuple[str, tuple[int, ...], int], list[str]] = defaultdict(list)
    for name, content in contents.items():
        info = stored.tensors[name]
        candidates[info.dtype, info.shape, content.checksum].append(name)
    groups = []
    for names in candidates.values():
        first, *others = sorted(names)
        # Tensors of one number, of which a broken file has many, are equal when their checksums are.
        same = [name for name in others if contents[name].constant or _same(stored, first, name, None)]
        if same:
            groups.append([first, *same])
    return groups


def _same(stored: Stored, first: str, second: str, findings: Findings | None) -> bool:
    try:
        return same_bytes(stored.tensors[first], stored.tensors[second])
    except CheckpointError as error:
        if findings is not None:
            findings.add("values-unreadable", second, str(error))
        return False


def _check_towers(
    canonical: Mapping[str, str],
    owner: Mapping[str, str],
    groups: list[list[str]],
    contents: Mapping[str, Content],
    stored: Stored,
    copied: bool,
    findings: Findings,
) -> None:
    """How much of the two towers is the same; in the published checkpoint nearly all is (reference sheet 2.5).

    Matrices are counted, as norms and biases of small models agree by themselves. That a few of many are equal is what
    a conversion leaves that mixed the towers up, or stopped half-way.
    """
    places = {role: name for name, role in canonical.items()}
    image, video = TOWERS
    twins = [
        role.removeprefix(image)
        for role in places
        if role.startswith(image) and video + role.removeprefix(image) in places
    ]
    if not twins or any(owner.get(video + tail) == image + tail for tail in twins):
        return
    group_of = {name: number for number, group in enumerate(groups) for name in group}
    differ = [
        tail for tail in twins if group_of.get(places[image + tail], -1) != group_of.get(places[video + tail], -2)
    ]
    if not differ:
        code = "towers-assembled" if copied else "towers-identical"
        findings.add(code, "video_tower", f"all {counted(len(twins), 'tensor')} are the image tower's")
        return
    names = {tail: places[image + tail] for tail in twins}
    matrices = [
        tail for tail, name in names.items() if len(stored.tensors[name].shape) > 1 and not contents[name].constant
    ]
    equal = [tail for tail in matrices if tail not in differ]
    if equal:
        few = 2 * len(equal) < len(matrices)
        which = f"equal: {some(equal)}" if few else f"different: {some(differ)}"
        what = f"{len(equal)} of {len(matrices)} matrices are the image tower's; {which}"
        findings.add("towers-alike", "video_tower", what, severity="warning" if few and not copied else None)


def _role(canonical: str, owner: Mapping[str, str]) -> str:
    """What a parameter is, the same for parameters that are equal in honest checkpoints.

    Those are tied ones; the two towers; temporal attention that begins as a copy of the spatial one; and a head that
    was copied from the embeddings.
    """
    role = owner.get(canonical, canonical)
    role = role.replace("video_tower.", "image_tower.", 1).replace(".temporal.attention.", ".attention.")
    return role.replace("lm_head.", "token_embedding.")
