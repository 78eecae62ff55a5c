"""The door to all formats: which one is taken, what is checked, what is refused and what is baked."""

from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
from states import dense, module, state

from loratk.errors import ConfigError, FormatError, StoreError, UnknownNameError
from loratk.exchange import FEATURES, AdapterFormat, Option, Reading, detect_format, load_adapter, save_adapter
from loratk.hookspecs import hookimpl
from loratk.io import Hdf5Store
from loratk.plugins import build_registry


class Plain(AdapterFormat):
    """A format that keeps nothing but factors, in memory, for files that begin with MARK."""

    name, title, suffixes = "plain", "plain factors", (".plain",)
    carries = dict.fromkeys(FEATURES, "no") | {"names": "yes"}
    options: ClassVar = {"flavour": Option("which one", "sweet")}
    mark = b"MARK"

    def __init__(self):
        self.kept, self.asked, self.missing = {}, [], []

    def detect(self, path):
        return f"begins with {self.mark!r}" if path.is_file() and path.read_bytes().startswith(self.mark) else None

    def adapters(self, path):
        return ["default"]

    def read(self, path, request):
        self.asked.append(request)
        for name in self.missing:
            request.may_miss(name)
        return Reading(self.kept[path], ["alpha is made up"])

    def write(self, path, states, request):
        self.asked.append(request)
        path.write_bytes(self.mark)
        self.kept[path] = list(states)
        return [f"it is {self.option(request, 'flavour')}"]


@pytest.fixture
def plain():
    return Plain()


@pytest.fixture
def registry(plain):
    plugin = SimpleNamespace(register_formats=hookimpl(lambda: [plain]))
    return build_registry(extra=[("plain", plugin)])


def simple(**fields):
    return state({"a": module(alpha=2.0)}, **fields)


def test_a_file_is_known_by_its_content_whatever_its_name(registry, plain, tmp_path):
    assert save_adapter(tmp_path / "x.plain", simple(), registry=registry) == ["it is sweet"]
    (tmp_path / "x.plain").rename(tmp_path / "x.h5")
    plain.kept[tmp_path / "x.h5"] = plain.kept.pop(tmp_path / "x.plain")
    found = detect_format(tmp_path / "x.h5", registry=registry)
    assert (found.format, found.evidence) == (plain, "begins with b'MARK'")
    reading = load_adapter(tmp_path / "x.h5", registry=registry)
    assert reading.notes == ["read as plain factors: begins with b'MARK'", "alpha is made up"]
    assert np.array_equal(reading.states[0].tensors["a.lora_A"], simple().tensors["a.lora_A"])


def test_two_formats_that_recognise_a_file_are_an_error(plain, tmp_path):
    other = type("Other", (Plain,), {"name": "other", "title": "the other"})()
    plugin = SimpleNamespace(register_formats=hookimpl(lambda: [plain, other]))
    registry = build_registry(extra=[("two", plugin)])
    (tmp_path / "x").write_bytes(b"MARK")
    with pytest.raises(ConfigError, match=r"several formats recognise it; name one of them(.|\n)*other: begins(.|\n)*plain: begins"):
        detect_format(tmp_path / "x", registry=registry)
    assert detect_format(tmp_path / "x", format="other", registry=registry).format is other
    with pytest.raises(ConfigError, match="the formats 'other', 'plain' all use this suffix"):
        save_adapter(tmp_path / "y.plain", simple(), registry=registry)


def test_what_no_format_recognises(registry, tmp_path):
    with pytest.raises(StoreError, match="No such file"):
        load_adapter(tmp_path / "none", registry=registry)
    with pytest.raises(UnknownNameError, match=r"no format named 'ghost'; there are .*'hdf5'"):
        load_adapter(tmp_path, format="ghost", registry=registry)
    (tmp_path / "x.bin").write_bytes(b"")
    with pytest.raises(FormatError, match=r"it holds 'x\.bin'; loratk reads a file of torch\.save only if its format is named"):
        load_adapter(tmp_path, registry=registry)
    with pytest.raises(ConfigError, match=r"no format has its suffix '\.xyz'"):
        save_adapter(tmp_path / "x.xyz", simple(), registry=registry)


def test_options_reach_the_format_and_unknown_ones_are_refused(registry, plain, tmp_path):
    assert save_adapter(tmp_path / "x.plain", simple(), options={"flavour": "sour"}, registry=registry) == ["it is sour"]
    load_adapter(tmp_path / "x.plain", options={"flavour": "sour"}, registry=registry)
    assert plain.asked[-1].options == {"flavour": "sour"}
    for call in (lambda: save_adapter(tmp_path / "y.plain", simple(), options={"color": 1}, registry=registry),
                 lambda: load_adapter(tmp_path / "x.plain", options={"color": 1}, registry=registry)):  # fmt: skip
        with pytest.raises(ConfigError, match="The format 'plain' has no option 'color'; its options: 'flavour'"):
            call()


def test_what_may_be_missing_has_to_be_missed(registry, plain, tmp_path):
    save_adapter(tmp_path / "x.plain", simple(), registry=registry)
    plain.missing = ["a.lora_C", "b"]
    load_adapter(tmp_path / "x.plain", allow_missing=["a.lora_C", "b"], registry=registry)
    load_adapter(tmp_path / "x.plain", allow_missing="b", registry=registry)
    assert plain.asked[-1].allow_missing == ["b"]
    want = r"'c' may be missing, but reading '.*x.plain' as plain factors missed no tensor of that name; .* \(allow_missing, --allow"
    with pytest.raises(ConfigError, match=want):
        load_adapter(tmp_path / "x.plain", allow_missing=["b", "c"], registry=registry)
    save_adapter(tmp_path / "x.h5", simple())
    with pytest.raises(ConfigError, match=r"'a.lora_A' may be missing, but"):
        load_adapter(tmp_path / "x.h5", allow_missing=["a.lora_A"])


def test_adapters_are_chosen_by_name_and_modules_renamed(tmp_path):
    save_adapter(tmp_path / "a.h5", [simple(), state({"b.c": module()}, "other")])
    (got,) = load_adapter(tmp_path / "a.h5", adapters="other", rename={"b": "x"}).states
    assert list(got.modules) == ["x.c"]
    with pytest.raises(UnknownNameError, match="no adapter named 'ghost'; it holds 'mine', 'other'"):
        load_adapter(tmp_path / "a.h5", adapters=["mine", "ghost"])


def test_unsound_states_are_neither_read_nor_written(registry, plain, tmp_path):
    bad = state({"a": module()})
    bad.tensors["a.lora_B"] = bad.tensors["a.lora_B"][:, :3]
    bad.modules["a"]["alpha"] = float("inf")
    bad.tensors["b.lora_A"] = np.full((2, 2), np.nan)
    wants = (
        "alpha must be a finite number",
        "lora_B must have shape (2, 4), found (2, 3)",
        "module 'b' has tensors",
        "tensor 'b.lora_A' has 4 values",
    )
    with pytest.raises(ConfigError) as caught:
        save_adapter(tmp_path / "x.plain", [bad], registry=registry)
    assert [want for want in wants if want not in str(caught.value)] == []
    assert not (tmp_path / "x.plain").exists()
    (tmp_path / "y").write_bytes(b"MARK")
    plain.kept[tmp_path / "y"] = [bad]
    with pytest.raises(FormatError) as caught:
        load_adapter(tmp_path / "y", registry=registry)
    assert [want for want in wants if want not in str(caught.value)] == []
    with pytest.raises(ConfigError, match="two adapters are named 'mine'"):
        save_adapter(tmp_path / "x.plain", [simple(), simple()], registry=registry)
    with pytest.raises(ConfigError, match="there is no adapter"):
        save_adapter(tmp_path / "x.plain", [], registry=registry)


def test_values_may_be_asked_not_to_be_finite(registry, plain, tmp_path):
    bad = simple()
    bad.tensors["a.lora_A"][0] = np.nan
    (tmp_path / "y").write_bytes(b"MARK")
    plain.kept[tmp_path / "y"] = [bad]
    with pytest.raises(FormatError, match="training diverged"):
        load_adapter(tmp_path / "y", registry=registry)
    reading = load_adapter(tmp_path / "y", finite=False, registry=registry)
    assert "adapter 'mine': tensor 'a.lora_A' has 2 values that are NaN or infinite: training diverged" in reading.notes


@pytest.mark.parametrize(
    ("modules", "want"),
    [
        ({"a": module(alpha=4.0)}, "alpha ('a'); --portable multiplies the scaling into lora_B, exactly"),
        ({"a": module(alpha=2.0), "b": module(rank=3, alpha=3.0)}, "a rank and an alpha for each module ('mine'); --portable fills"),
        ({"a": module(alpha=4.0, rslora=True)}, "rank-stabilised scaling ('a')"),
        ({"a": module(alpha=2.0, layer_type="conv2d")}, "convolutions ('a')"),
        ({"a": module(alpha=2.0, layer_type="embedding")}, "embeddings ('a')"),
        ({"a": module(alpha=2.0, layer_type="einsum")}, "kernels of more axes (EinsumDense) ('a')"),
        ({"a": ({"method": "full"}, {"weight": np.ones((2, 2))})}, "whole modules beside the adapter ('a')"),
        ({"a": ({"method": "loha"}, {"w": np.ones((2, 2))})}, "other methods (LoHa, LoKr, VeRA, ...) ('a')"),
        ({"a": ({"method": "bias"}, {"bias": np.ones(2)})}, "changes of biases ('a')"),
        ({str(i): module(alpha=4.0) for i in range(6)}, "alpha ('0', '1', '2', '3' and 2 more)"),
    ],
)
def test_what_a_format_cannot_hold_is_refused_by_name(registry, tmp_path, modules, want):
    with pytest.raises(ConfigError) as caught:
        save_adapter(tmp_path / "x.plain", state(modules), registry=registry)
    assert "the format 'plain' (plain factors) cannot hold all of it" in str(caught.value)
    assert want in str(caught.value)
    assert not (tmp_path / "x.plain").exists()


def test_metadata_and_the_fingerprint_are_left_out_with_a_note(registry, tmp_path):
    notes = save_adapter(tmp_path / "x.plain", simple(metadata={"a": "b"}, fingerprint="f"), registry=registry)
    assert notes[:2] == [
        "metadata is left out: plain factors has no place for it",
        "the base's fingerprint is left out: plain factors has no place for it",
    ]


def test_scalings_and_ranks_are_baked_exactly(registry, plain, tmp_path):
    modules = {"a": module(alpha=4.0), "b": module(rank=3, alpha=5.0, rslora=True)}
    with pytest.raises(ConfigError):
        save_adapter(tmp_path / "x.plain", state(modules), registry=registry)
    notes = save_adapter(tmp_path / "x.plain", state(modules), bake=True, registry=registry)
    assert "one rank in all modules, and the scaling in lora_B: exact but for rounding" in notes
    (got,) = plain.kept[tmp_path / "x.plain"]
    for name, (record, held) in modules.items():
        np.testing.assert_allclose(dense(got.modules[name], got.parameters()[name]), dense(record, held), rtol=1e-12)


def dora(weight):
    record, held = module(alpha=2.0, method="dora")
    moved = weight + dense(record, held)
    held["magnitude"] = np.linalg.norm(moved, axis=0) * 1.5
    return record, held, 1.5 * moved - weight


def test_dora_is_baked_with_the_base_and_tells_what_is_lost(registry, plain, tmp_path):
    weight = np.random.default_rng(5).standard_normal((6, 4))
    record, held, want = dora(weight)
    Hdf5Store().write(tmp_path / "base.h5", {"a.weight": weight, "b.weight": weight[:, :3]}, {})
    adapter = state({"a": (record, held)})
    with pytest.raises(ConfigError, match="--bake with --base makes the nearest plain LoRA of it"):
        save_adapter(tmp_path / "x.plain", adapter, bake=True, registry=registry)
    for rank in (4, None):
        notes = save_adapter(tmp_path / "x.plain", adapter, bake=True, bake_rank=rank, base=tmp_path / "base.h5", registry=registry)
        (got,) = plain.kept[tmp_path / "x.plain"]
        off = np.linalg.norm(dense(got.modules["a"], got.parameters()["a"]) - want) / np.linalg.norm(want)
        values = np.linalg.svd(want, compute_uv=False)
        assert off == pytest.approx(np.linalg.norm(values[rank or 2 :]) / np.linalg.norm(values), abs=1e-6)
        assert any(f"DoRA baked to rank {rank or 2}, {off:.2%} of it lost" in note for note in notes)
        assert got.modules["a"]["method"] == "lora"
    misfits = state({"b": (record, held), "c": (record, held)})
    with pytest.raises(ConfigError, match=r"module 'b': its weight acts as \(6, 3\)(.|\n)*module 'c': the base .* has no module 'c'"):
        save_adapter(tmp_path / "x.plain", misfits, bake=True, base=tmp_path / "base.h5", registry=registry)
