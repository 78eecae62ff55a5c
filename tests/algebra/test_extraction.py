"""Adapters extracted from checkpoints that differ by something known."""

import numpy as np
import pytest
from algebra_states import known, update

import loratk
from loratk.algebra import Rule
from loratk.convert import export_merged
from loratk.errors import ConfigError, LoratkError, StoreError
from loratk.exchange import load_adapter
from loratk.exchange.hub import state_faults
from loratk.io import Hdf5Store, SafetensorsStore, write_safetensors

RNG = np.random.default_rng(0)
BASE = {
    "embed_tokens.weight": RNG.standard_normal((50, 40)),
    "block.q.weight": RNG.standard_normal((30, 40)),
    "block.q.bias": RNG.standard_normal(30),
    "block.v.weight": RNG.standard_normal((30, 40)),
    "conv.weight": RNG.standard_normal((8, 5, 3, 3)),
    "norm.weight": RNG.standard_normal(40),
    "norm.bias": RNG.standard_normal(40),
    "experts.up": RNG.standard_normal((3, 12, 9)),
}
BASE = {name: array.astype(np.float32) for name, array in BASE.items()}


def low(shape, values, seed=1):
    """A change of this shape, seen as (outputs, rest), with these singular values."""
    a, b = known(values, d=shape[0], k=int(np.prod(shape[1:])), seed=seed)
    return (a @ b).reshape(shape)


def write(path, arrays, bfloat16=frozenset()):
    write_safetensors(path, arrays, {}, bfloat16)


def tuned(**changes):
    return BASE | {name: (BASE[name] + change).astype(np.float32) for name, change in changes.items()}


CHANGES = {
    "block.q.weight": low((30, 40), [4.0, 2.0]),
    "block.q.bias": RNG.standard_normal(30),
    "conv.weight": low((8, 5, 3, 3), [3.0]),
    "norm.weight": RNG.standard_normal(40),
    "experts.up": np.stack([low((12, 9), [value], seed) for seed, value in enumerate([1.0, 2.0, 3.0])]),
}


@pytest.fixture
def pair(tmp_path):
    """The paths of a base and of a tuned checkpoint."""
    write(tmp_path / "base.safetensors", BASE)
    write(tmp_path / "tuned.safetensors", tuned(**CHANGES))
    return tmp_path / "base.safetensors", tmp_path / "tuned.safetensors"


def test_known_changes_come_back_within_the_stated_error(pair):
    done = loratk.extract(*pair, error=1e-4)
    modules = done.state.modules
    assert {name: (record["method"], record.get("rank")) for name, record in modules.items()} == {
        "block.q": ("lora", 2), "conv": ("lora", 1), "norm": ("full", None), "experts.up": ("lora", 1),
    }  # fmt: skip
    wants = {"block.q": CHANGES["block.q.weight"].T, "experts.up": CHANGES["experts.up"],
             "conv": CHANGES["conv.weight"].transpose(2, 3, 1, 0).reshape(45, 8)}  # fmt: skip
    for path, want in wants.items():
        assert np.linalg.norm(update(done.state, path) - want) <= 1e-4 * np.linalg.norm(want)
        assert done.certificate.modules[path].norm == pytest.approx(np.linalg.norm(want), rel=1e-5)
    assert modules["conv"]["kernel"] == [3, 3]
    np.testing.assert_allclose(done.state.tensors["block.q.bias"], CHANGES["block.q.bias"], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(done.state.tensors["norm.weight"], tuned(**CHANGES)["norm.weight"])
    np.testing.assert_array_equal(done.state.tensors["norm.bias"], BASE["norm.bias"])
    assert done.unchanged == 2
    assert not list(state_faults([done.state]))


@pytest.mark.parametrize("rule", [{"rank": 1}, {"energy": 0.85}, {"error": 0.3}, {"rank": 3, "energy": 0.99}])
def test_the_certificate_is_true_of_what_is_stored(pair, rule):
    done = loratk.extract(*pair, **rule, dtype="bfloat16", include=["block.q", "experts.up"])
    new = tuned(**CHANGES)
    for path, delta in {
        "block.q": (new["block.q.weight"].astype(float) - BASE["block.q.weight"]).T,
        "experts.up": new["experts.up"].astype(float) - BASE["experts.up"],
    }.items():
        entry = done.certificate.modules[path]
        want = np.linalg.norm(delta - update(done.state, path)) / np.linalg.norm(delta)
        assert entry.error == pytest.approx(want, rel=1e-9)
        assert done.state.modules[path]["dtypes"] == {"lora_A": "bfloat16", "lora_B": "bfloat16"}


@pytest.mark.parametrize("name", ["peft", "a.h5"])
def test_merging_what_was_extracted_gives_the_tuned_checkpoint(pair, tmp_path, name):
    exclude = ["experts.up"] if name == "peft" else []
    loratk.extract(*pair, tmp_path / name, error=1e-6, exclude=exclude, to="peft" if name == "peft" else None)
    load_adapter(tmp_path / name)
    export_merged(tmp_path / name, pair[0], tmp_path / "merged.safetensors")
    got = SafetensorsStore().read(tmp_path / "merged.safetensors").arrays
    for key, want in (tuned(**CHANGES)).items():
        if key not in ("experts.up",) or not exclude:
            np.testing.assert_allclose(got[key], want, rtol=1e-4, atol=1e-4, err_msg=key)


def test_an_input_first_checkpoint_gives_the_same_updates(pair, tmp_path):
    for name, arrays in (("base.h5", BASE), ("tuned.h5", tuned(**CHANGES))):
        turned = {key: array.T if key.startswith("block") else array for key, array in arrays.items()}
        turned["conv.weight"] = arrays["conv.weight"].transpose(2, 3, 1, 0)
        Hdf5Store().write(tmp_path / name, turned, {})
    one = loratk.extract(*pair, error=1e-4).state
    two = loratk.extract(tmp_path / "base.h5", tmp_path / "tuned.h5", error=1e-4).state
    for path in ("block.q", "conv", "experts.up"):
        np.testing.assert_allclose(update(one, path), update(two, path), atol=1e-5)
        assert one.modules[path] == two.modules[path]
    whole = loratk.extract(tmp_path / "base.h5", tmp_path / "tuned.h5", rank=1, full=["conv", "q"]).state
    np.testing.assert_array_equal(whole.tensors["conv.weight"], tuned(**CHANGES)["conv.weight"])
    np.testing.assert_array_equal(whole.tensors["block.q.weight"], tuned(**CHANGES)["block.q.weight"])


def test_patterns_choose_what_is_kept_and_how(pair, tmp_path):
    done = loratk.extract(*pair, energy=0.5, patterns={"q": Rule(energy=0.99)}, full=["conv"], exclude=["experts.*"], whole="diff")
    assert {name: (record["method"], record.get("rank")) for name, record in done.state.modules.items()} == {
        "block.q": ("lora", 2), "conv": ("diff", None), "norm": ("diff", None),
    }  # fmt: skip
    np.testing.assert_allclose(done.state.tensors["conv.weight"], CHANGES["conv.weight"], atol=1e-5)
    assert "norm.bias" not in done.state.tensors
    assert any("1 modules were not looked at" in note for note in done.notes)
    write(tmp_path / "e.safetensors", tuned(**{"embed_tokens.weight": low((50, 40), [2.0, 1.0])}))
    assert loratk.extract(pair[0], tmp_path / "e.safetensors", rank=4).state.modules["embed_tokens"]["method"] == "full"
    table = loratk.extract(pair[0], tmp_path / "e.safetensors", error=1e-4, embeddings="lora").state
    assert table.modules["embed_tokens"]["layer_type"] == "embedding"
    np.testing.assert_allclose(update(table, "embed_tokens"), low((50, 40), [2.0, 1.0]), atol=1e-4)
    named = loratk.extract(*pair, error=1e-4, embeddings="lora", tables=["q"]).state
    assert named.modules["block.q"]["shape"] == [30, 40]
    np.testing.assert_allclose(update(named, "block.q"), CHANGES["block.q.weight"], atol=1e-4)


def test_large_weights_are_sketched_with_a_seed_and_the_error_holds(tmp_path):
    rng = np.random.default_rng(3)
    base = {"w.weight": rng.standard_normal((600, 700)).astype(np.float32)}
    change = low((600, 700), 0.8 ** np.arange(40))
    write(tmp_path / "a.safetensors", base)
    write(tmp_path / "b.safetensors", {"w.weight": (base["w.weight"] + change).astype(np.float32)})
    paths = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    first, again, other = (loratk.extract(*paths, error=0.05, seed=seed) for seed in (1, 1, 2))
    assert first.state.modules["w"]["rank"] in (14, 15)  # 0.8^14 = 0.044 of the norm is left
    assert np.linalg.norm(update(first.state, "w") - change.T) <= 0.0501 * np.linalg.norm(change)
    np.testing.assert_array_equal(first.state.tensors["w.lora_A"], again.state.tensors["w.lora_A"])
    np.testing.assert_allclose(update(first.state, "w"), update(other.state, "w"), atol=1e-2)


def test_the_numbers_of_a_module_depend_on_its_name_and_on_no_other_module(tmp_path):
    rng = np.random.default_rng(3)
    change = low((300, 310), 0.9 ** np.arange(60))
    base = {f"{name}.weight": np.zeros((300, 310), np.float32) for name in "ab"}
    base["c.weight"] = rng.standard_normal((300, 310)).astype(np.float32)
    write(tmp_path / "a.safetensors", base)
    write(tmp_path / "b.safetensors", {name: (array + change).astype(np.float32) for name, array in base.items()})
    paths = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    whole, part = loratk.extract(*paths, rank=5).state, loratk.extract(*paths, rank=5, include=["b", "c"]).state
    for name in ("b", "c"):
        np.testing.assert_array_equal(whole.tensors[f"{name}.lora_A"], part.tensors[f"{name}.lora_A"])
    assert (whole.tensors["a.lora_A"] != whole.tensors["b.lora_A"]).any()  # the same change, other vectors drawn


def test_what_does_not_fit_is_listed_before_anything_is_done(pair, tmp_path):
    odd = {key: array for key, array in tuned(**CHANGES).items() if key != "conv.weight"} | {
        "block.v.weight": np.zeros((31, 40), np.float32), "head.weight": np.ones((2, 40), np.float32)}  # fmt: skip
    write(tmp_path / "odd.safetensors", odd)
    with pytest.raises(ConfigError) as caught:
        loratk.extract(pair[0], tmp_path / "odd.safetensors", rank=1)
    said = str(caught.value)
    assert "'conv.weight' is in the base only" in said
    assert "'block.v.weight' has the shape (30, 40) in the base and (31, 40) in the tuned checkpoint" in said
    assert "'head.weight' is in the tuned checkpoint only" in said
    done = loratk.extract(pair[0], tmp_path / "odd.safetensors", rank=1, exclude=["conv", "v"], full=["head"])
    assert done.state.modules["head"] == {"method": "full", "orientation": "torch"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "needs a rule for the rank"),
        ({"rank": 1, "full": ["nothing"]}, "'nothing' matches no module"),
        ({"rank": 1, "include": ["re:("]}, "no regular expression"),
        ({"rank": 1, "patterns": {"norm": Rule(rank=2)}}, "'norm' decides about no module that is kept as factors"),
        ({"rank": 1, "whole": "half"}, "whole must be one of 'diff', 'full', found 'half'"),
        ({"rank": 1, "dtype": "int8"}, "dtype must be one of"),
    ],
)
def test_requests_without_sense_are_refused(pair, given, said):
    with pytest.raises(ConfigError, match=said):
        loratk.extract(*pair, **given)


def test_equal_checkpoints_and_broken_values_are_refused(pair, tmp_path):
    with pytest.raises(ConfigError, match=r"is the same as the base .* in all 6 modules"):
        loratk.extract(pair[0], pair[0], rank=1)
    broken = tuned(**CHANGES) | {"block.v.weight": np.full((30, 40), np.nan, np.float32)}
    write(tmp_path / "nan.safetensors", broken)
    with pytest.raises(LoratkError, match=r"module 'block.v': 1200 of its values are NaN or infinite"):
        loratk.extract(pair[0], tmp_path / "nan.safetensors", rank=1)
    (tmp_path / "there.h5").write_bytes(b"x")
    with pytest.raises(StoreError, match="is there already"):
        loratk.extract(*pair, tmp_path / "there.h5", rank=1)


def test_dtypes_that_differ_are_told_and_whole_modules_keep_theirs(pair, tmp_path):
    write(tmp_path / "half.safetensors", tuned(**CHANGES), frozenset(BASE))
    done = loratk.extract(pair[0], tmp_path / "half.safetensors", rank=1, include=["norm"])
    assert any("8 arrays are float32 in the base and bfloat16 in the tuned checkpoint" in note for note in done.notes)
    assert done.state.modules["norm"]["dtypes"] == {"bias": "bfloat16", "weight": "bfloat16"}


def test_the_lineage_and_the_fingerprint_are_kept(pair):
    done = loratk.extract(*pair, rank=1, seed=3)
    assert len(done.state.fingerprint) == 64
    assert '"rule": "extract", "base": "base.safetensors", "tuned": "tuned.safetensors", "seed": 3' in done.state.metadata["lineage"]
