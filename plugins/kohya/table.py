"""What a file may hold for one module: the tensors of each method, and how a key splits into a module's name and a tensor's."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

SUFFIXES = {
    "lora_down.weight": "lora_down", "lora_up.weight": "lora_up", "lora_mid.weight": "lora_mid",
    "a1.weight": "a1", "a2.weight": "a2", "b1.weight": "b1", "b2.weight": "b2", "bm.weight": "bm",
} | {
    name: name
    for name in (
        "alpha", "scalar", "dora_scale", "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2",
        "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2", "diff", "diff_b", "w_norm", "b_norm",
        "weight", "on_input", "oft_blocks", "rescale", "bias_indices", "bias_values", "bias_size",
    )
}  # fmt: skip
"""The end of a key, and the name of the parameter it is for."""
KEYS = {parameter: suffix for suffix, parameter in SUFFIXES.items()}

SPARSE = {"bias_indices", "bias_values", "bias_size"}


@dataclass(frozen=True)
class Kind:
    """A method: its name, the sets of parameters of which one must be there whole, those that tell it, and those that may be there."""

    method: str
    needs: tuple[tuple[str, ...], ...]
    marks: tuple[str, ...]
    may: tuple[str, ...] = ()

    def faults(self, held: Collection[str]) -> list[str]:
        """What a module of this kind lacks, or has beside it."""
        whole = min(self.needs, key=lambda names: (len(set(names) - set(held)), len(set(held) - {*names, *self.may})))
        found = [
            f"{KEYS.get(name, name)!r} does not belong to {self.method} of this kind" for name in sorted(set(held) - {*whole, *self.may})
        ]
        lacks = set(whole) - set(held) | (SPARSE - set(held) if not SPARSE.isdisjoint(held) else set())
        return found + [f"{KEYS[name]!r} is missing" for name in sorted(lacks)]


_LOKR = tuple((*one, *two) for one in (("lokr_w1",), ("lokr_w1_a", "lokr_w1_b")) for two in (("lokr_w2",), ("lokr_w2_a", "lokr_w2_b")))
_HADA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
_SCALED = ("alpha", "scalar", "dora_scale", "diff_b")
_DIFF = ("diff", "diff_b", "w_norm", "b_norm")
KINDS = (
    Kind("lora", (("lora_down", "lora_up"),), ("lora_down", "lora_up", "lora_mid"), ("lora_mid", *sorted(SPARSE), *_SCALED)),
    Kind("loha", (_HADA,), (*_HADA, "hada_t1", "hada_t2"), ("hada_t1", "hada_t2", *_SCALED)),
    Kind("lokr", _LOKR, (*sorted({name for names in _LOKR for name in names}), "lokr_t2"), ("lokr_t2", *_SCALED)),
    Kind("glora", (("a1", "a2", "b1", "b2"),), ("a1", "a2", "b1", "b2", "bm"), ("bm", "alpha", "scalar", "diff_b")),
    Kind("oft", (("oft_blocks",),), ("oft_blocks", "rescale"), ("rescale", "alpha")),
    Kind("ia3", (("weight", "on_input"),), ("on_input",)),
    Kind("diff", tuple((name,) for name in _DIFF), _DIFF, (*_DIFF, "alpha")),
)
"""Every method there is, in the order in which the marks are looked for."""


def kind_of(held: Collection[str]) -> Kind | None:
    """The kind of a module with these parameters, or None where none of its tensors tells."""
    return next((kind for kind in KINDS if not set(held).isdisjoint(kind.marks)), None)


def split_key(key: str) -> tuple[str, str] | None:
    """Module name and parameter of a key, or None where it ends in nothing known."""
    parts = key.split(".")
    for count in (2, 1):
        if len(parts) > count and (suffix := ".".join(parts[-count:])) in SUFFIXES:
            return ".".join(parts[:-count]), SUFFIXES[suffix]
    return None


def grouped(keys: Iterable[str]) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Keys by module and parameter, and those that no module can have."""
    modules: dict[str, dict[str, str]] = {}
    strange = []
    for key in keys:
        if (split := split_key(key)) is None:
            strange.append(key)
        else:
            modules.setdefault(split[0], {})[split[1]] = key
    return modules, strange
