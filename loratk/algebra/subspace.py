"""The part of an adapter that lies in the directions of another: taken out, or kept alone, in factor space.

An update D (d, k) reads the directions of its column space, in the inputs, and writes those of its row space, in the outputs. With
orthonormal bases U (d, q) and V (k, q) of these two spaces of the other update E, P = U U^T and Q = V V^T, the part of D in E is, by space,

inputs     P D               what reads a direction that E reads
outputs    D Q               what writes a direction that E writes
both       P D Q             what reads one of E's and writes one of E's
either     D - (I-P) D (I-Q) what reads one of E's or writes one of E's
update     (<D, E> / <E, E>) E    what points the way of E itself

Each is an orthogonal projection: the energies of the part and of the rest sum to that of D, and the rest is orthogonal to E, <rest, E> = 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..errors import ConfigError, LoratkError, choices, faults
from ..exchange.factors import Pair, together
from ..exchange.state import AdapterState
from .certificate import Certificate, Entry, measured
from .lineage import common_fingerprint, metadata_of
from .linear import Linear, Module, finished, linear_modules, packed, pairs_of
from .ranks import Rule
from .result import Result, Track, untracked
from .rounding import concatenated, svd
from .sums import check_alike

SPACES = ("inputs", "outputs", "both", "either", "update")


@dataclass(frozen=True, eq=False)
class Projected(Result):
    """A result, and the share of the energy of the first adapter's update that lies in the other's directions, by module and in all of
    the modules that both have.
    """

    shares: dict[str, float] = field(default_factory=dict)
    share: float = 0.0


def orthogonalise(
    a: AdapterState,
    *,
    against: AdapterState,
    space: str = "both",
    energy: float = 1.0,
    name: str | None = None,
    any_base: bool = False,
    track: Track = untracked,
) -> Projected:
    """a without its part in the directions of another adapter, as `space` says (one of SPACES, the table above).

    energy: only the strongest directions of the other that hold this share of its energy count; all that are not 0 for 1. Modules that
    the other lacks, biases, and whole modules stay. Raises ConfigError that lists each module that is not linear or of another layout.
    """
    return _projected(a, against, space, energy, name or a.name, any_base, track, keep=False)


def project(
    a: AdapterState,
    *,
    onto: AdapterState,
    space: str = "both",
    energy: float = 1.0,
    name: str | None = None,
    any_base: bool = False,
    track: Track = untracked,
) -> Projected:
    """The part of a in the directions of another adapter alone: what `orthogonalise` takes from it. The two sum to a.

    Modules that the other lacks, biases, and whole modules have no such part, and are left out; a note says which.
    """
    return _projected(a, onto, space, energy, name or a.name, any_base, track, keep=True)


def _projected(
    a: AdapterState, b: AdapterState, space: str, energy: float, name: str, any_base: bool, track: Track, *, keep: bool
) -> Projected:
    if space not in SPACES:
        raise ConfigError(f"space must be one of {choices(SPACES)}, found {space!r}")
    rule, found, notes = Rule(energy=energy), list[str](), list[str]()
    fingerprint = common_fingerprint([a, b], any_base)
    mine, others = linear_modules(a, found), linear_modules(b, found)
    modules: dict[str, Module] = {} if keep else {path: (dict(a.modules[path]), held) for path, held in a.parameters().items()}
    entries: dict[str, Entry] = {}
    inside: list[tuple[float, float]] = []
    shares: dict[str, float] = {}
    common = [path for path, linear in mine.items() if linear.pairs and path in others and others[path].pairs]
    for path in track([] if found else common, "projecting"):
        one, two = mine[path], others[path]
        faulty: list[str] = []
        try:
            check_alike([one, two])
            parts = [_split(d, e, space, rule) for d, e in zip(one.pairs, two.pairs, strict=True)]
        except LoratkError as error:
            found.append(f"module {path!r}: {error}")
            continue
        modules[path], entries[path] = _module(one, [part if keep else rest for part, rest in parts], keep, faulty)
        found += [f"module {path!r}: {fault}" for fault in faulty]
        sizes = [together([part], [whole]).norms for (part, _), whole in zip(parts, one.pairs, strict=True)]
        inside.append(tuple(float(np.linalg.norm(side)) for side in zip(*sizes, strict=True)))  # type: ignore[arg-type]
        shares[path] = (inside[-1][0] / inside[-1][1]) ** 2 if inside[-1][1] else 0.0
    if found:
        raise ConfigError(faults(f"{a.name!r} cannot be projected on {b.name!r}:", found))
    if not common:
        raise ConfigError(f"{a.name!r} and {b.name!r} have no module with an update in common; there is nothing to project")
    if left := [path for path in mine if path not in shares]:
        said = "are left out, as they have no part in it" if keep else "stay as they are"
        notes.append(f"{len(left)} module{'s' * (len(left) != 1)} without an update in {b.name!r} {said}, such as {left[0]!r}")
    metadata, more = metadata_of([a, b], "project" if keep else "orthogonalise", space=space, energy=energy)
    whole = float(np.linalg.norm([size for _, size in inside]))
    share = (float(np.linalg.norm([size for size, _ in inside])) / whole) ** 2 if whole else 0.0
    state = finished(replace(a, fingerprint=fingerprint), modules, name, metadata)
    return Projected(state, Certificate(entries), notes + more, shares, share)


def _split(d: Pair, e: Pair, space: str, rule: Rule) -> tuple[Pair, Pair]:
    """The part of an update in another's directions, and the rest, each of the least rank that loses nothing."""
    a, b = d
    other = svd(e)
    if not other.s.any():
        return _least(concatenated([d], [0.0])), _least(d)
    if space == "update":
        beside = together([d], [e])
        factor = (beside.cosine or 0.0) * beside.norms[0] / beside.norms[1]
        return _least(concatenated([e], [factor])), _least(concatenated([d, e], [1.0, -factor]))
    kept = rule.choose([other.s])
    u, v = other.u[:, :kept], other.v[:kept].T
    inner_a, inner_b = u @ (u.T @ a), (b @ v) @ v.T
    outer_a, outer_b = a - inner_a, b - inner_b
    outer_a, outer_b = outer_a - u @ (u.T @ outer_a), outer_b - (outer_b @ v) @ v.T  # twice is enough (Parlett 1998, sec. 6.9)
    part, rest = {
        "inputs": ([(inner_a, b)], [(outer_a, b)]),
        "outputs": ([(a, inner_b)], [(a, outer_b)]),
        "both": ([(inner_a, inner_b)], [(outer_a, b), (inner_a, outer_b)]),
        "either": ([(inner_a, b), (outer_a, inner_b)], [(outer_a, outer_b)]),
    }[space]
    return _least(concatenated(part)), _least(concatenated(rest))


def _least(pair: Pair) -> Pair:
    whole = svd(pair)
    return whole.pair(Rule().choose([whole.s]))


def _module(linear: Linear, pairs: list[Pair], keep: bool, found: list[str]) -> tuple[Module, Entry]:
    """A module with these parts, filled up with zeros to one rank, and its entry."""
    rank = max(pair[0].shape[1] for pair in pairs)
    filled = [(np.pad(a, ((0, 0), (0, rank - a.shape[1]))), np.pad(b, ((0, rank - len(b)), (0, 0)))) for a, b in pairs]
    arrays: Mapping[str, Any] = {} if keep else linear.arrays
    source = f"projected, from rank {linear.record.get('rank')}, scaling {linear.record.get('scaling', 1.0):g}"
    module = packed(linear.record, filled, arrays, linear.stored, source, found)
    return module, measured(filled, pairs_of(module), module[0]["rank"])
