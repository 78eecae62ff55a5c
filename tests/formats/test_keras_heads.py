"""EinsumDense kernels as plain linear layers, and linear layers as kernels of heads."""

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras_files import GEMMA, HF, OUTPUT, QUERY, loaded, module, pair, state_of, updates, written

from loratk.errors import ConfigError, FormatError
from loratk.exchange import load_adapter, save_adapter

EQUATIONS = {
    "btd,ndh->btnh": (3, 4, 5),
    "bqm,muh->bquh": (4, 3, 5),
    "btnh,nhd->btd": (3, 4, 5),
    "...x,xy->...y": (4, 5),
    "bij,ikjl->bkl": (2, 3, 4, 5),
}


@pytest.mark.parametrize(("equation", "kernel"), EQUATIONS.items(), ids=EQUATIONS)
def test_a_kernel_of_heads_is_a_linear_layer_of_more_rank(equation, kernel, tmp_path):
    a, b = pair(kernel)
    state, _ = loaded(written(tmp_path / "a.lora.h5", {3: (a, b)}), options={"einsum": equation})
    given, axes = equation.split("->")[0].replace("...", "b").split(",")
    x = np.random.default_rng(1).standard_normal(
        [{**dict(zip(axes, kernel, strict=True)), "b": 2, "t": 2, "q": 2}[letter] for letter in given]
    )
    want = np.einsum(equation.replace("...", "b"), x, a @ b)
    inputs = [at for at, letter in enumerate(given) if letter in axes]
    assert inputs == list(range(x.ndim - len(inputs), x.ndim))
    got = x.reshape(*x.shape[: -len(inputs)], -1) @ updates(state)["layer_3"]
    np.testing.assert_allclose(got.reshape(want.shape), want, atol=1e-5)
    copies = {"btd,ndh->btnh": 3, "bqm,muh->bquh": 3, "bij,ikjl->bkl": 3}.get(equation, 1)
    assert state.modules["layer_3"]["rank"] == 2 * copies


def test_the_factors_of_section_9_exactly(tmp_path):
    """lora_A = A.transpose(0, 2, 1).reshape(n r, d), lora_B = kron(I, B^T) for [n, d, h]; A.reshape(n h, r)^T and B^T for [n, h, d]."""
    (a, b), (c, e) = pair((3, 4, 5)), pair((3, 5, 4), seed=1)
    path = written(tmp_path / "a.lora.h5", {0: (a, b), 1: (c, e)})
    entries = {0: {"name": "q", "equation": QUERY}, 1: {"name": "o", "equation": OUTPUT}}
    state, _ = loaded(path, options={"map": entries, "einsum": "linear"})
    got = {name: array.T for name, array in state.tensors.items()}
    np.testing.assert_array_equal(got["q.lora_A"], a.transpose(0, 2, 1).reshape(6, 4))
    np.testing.assert_array_equal(got["q.lora_B"], np.kron(np.eye(3), b.T))
    np.testing.assert_array_equal(got["o.lora_A"], c.reshape(15, 2).T)
    np.testing.assert_array_equal(got["o.lora_B"], e.T)
    assert [state.modules[name]["rank"] for name in "qo"] == [6, 2]
    assert [(record["alpha"], record["scaling"]) for record in state.modules.values()] == [(6.0, 1.0), (2.0, 1.0)]


def test_heads_from_linear_layers_and_back(tmp_path):
    state, _ = loaded(GEMMA, options=HF)
    with pytest.raises(ConfigError, match=r"(?s)q_proj': its layer is an EinsumDense with a kernel \[4, 12, 6\] there.*--bake"):
        save_adapter(tmp_path / "a.lora.h5", state)
    notes = save_adapter(tmp_path / "a.lora.h5", state, bake=True)
    assert sum("nearest factors of rank 3" in note and "0.00% of it lost" in note for note in notes) == 4
    got, _ = loaded(tmp_path / "a.lora.h5", options={"family": "gemma"})
    for name, update in updates(loaded(GEMMA, options={"family": "gemma"})[0]).items():
        np.testing.assert_allclose(updates(got)[name], update, atol=2e-6)


def test_linear_layers_of_another_tool_as_heads(tmp_path):
    """A plain q, v and o of HF names: the numbers by the family, the kernels by the size of a head; what is lost is said, and true."""
    modules = {
        f"model__layers__1__self_attn__{name}_proj": module(*shape, 2, seed=7)
        for name, shape in (("q", (12, 24)), ("v", (12, 12)), ("o", (24, 12)))
    }
    state, options = state_of(**modules), {"family": "gemma", "head_dim": "6"}
    with pytest.raises(ConfigError, match=r"say how large one is \(head_dim=\)"):
        save_adapter(tmp_path / "a.lora.h5", state, options={"family": "gemma"}, bake=True)
    notes = save_adapter(tmp_path / "a.lora.h5", state, options=options, bake=True)
    got, _ = loaded(tmp_path / "a.lora.h5", options={"einsum": "linear"})
    assert [(name.split(".")[-1], record["keras_layer"], record["keras_kernel"]) for name, record in got.modules.items()] == [
        ("o_proj", 18, [4, 6, 12]), ("v_proj", 19, [2, 12, 6]), ("q_proj", 21, [4, 12, 6]),
    ]  # fmt: skip
    for name, update in updates(state).items():
        np.testing.assert_allclose(updates(got)[name], update, atol=1e-5)
    assert not any("lost" in note and "0.00%" not in note for note in notes)
    options["rank"] = 3
    notes = save_adapter(tmp_path / "a.lora.h5", state, options=options, bake=True)
    got, _ = loaded(tmp_path / "a.lora.h5", options={"einsum": "linear"})
    for name, update in updates(state).items():
        lost = np.linalg.norm(updates(got)[name] - update) / np.linalg.norm(update)
        heads = update.reshape(12, -1, 6).reshape(-1, 6)
        values = np.linalg.svd(heads, compute_uv=False) if "o_proj" not in name else [1.0, 0, 0, 0]
        best = np.linalg.norm(values[3:]) / np.linalg.norm(values)
        assert lost == pytest.approx(best, abs=1e-6)
        assert "o_proj" in name or any(name in note and f"{best:.2%} of it lost" in note for note in notes)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.sampled_from(["btd,ndh->btnh", "bqd,dnh->bqnh"]))
def test_any_einsum_kernel_survives_being_linear(tmp_path_factory, heads, d, size, rank, equation):
    folder = tmp_path_factory.mktemp("h")
    kernel = (heads, d, size) if "ndh" in equation else (d, heads, size)
    a, b = pair(kernel, rank, seed=heads * 100 + d)
    state, _ = loaded(written(folder / "a.lora.h5", {1: (a, b)}, rank), options={"einsum": equation})
    save_adapter(folder / "b.lora.h5", state, bake=True)
    with h5py.File(folder / "b.lora.h5") as file:
        got = [file[f"lora/1/vars/lora_kernel_{half}"][:] for half in "ab"]
    np.testing.assert_allclose(got[0] @ got[1], a @ b, atol=2e-5)
    assert got[0].shape[:-1] == kernel[:-1]
    assert got[1].shape[0] <= max(rank, 1)


def test_what_is_needed_to_make_heads_linear(tmp_path):
    with pytest.raises(ConfigError, match=r"(?s)layer 8: which axes of its kernel \[2, 12, 6\] are inputs is not known.*layer 21"):
        load_adapter(GEMMA, options={"einsum": "linear"})
    with pytest.raises(ConfigError, match="say which with family="):
        load_adapter(GEMMA, options={"names": "hf"})
    with pytest.raises(ConfigError, match="names=hf needs einsum=linear"):
        load_adapter(GEMMA, options=HF | {"einsum": "keep"})
    for wrong, said in {
        "bd,dh": "no equation",
        "bd,dd->bd": "a letter twice",
        "bd,hd->bh": "an output as its last axis",
        "btd,ndh->bth": "neither",
    }.items():
        with pytest.raises(ConfigError, match=said):
            load_adapter(GEMMA, options={"einsum": wrong})
    with pytest.raises(ConfigError, match=r"which axes of its kernel \[2, 12, 6\]"):
        load_adapter(GEMMA, options={"einsum": "bij,ikjl->bkl"})
    for option in ({"names": "us"}, {"three_axes": "dense"}, {"head_dim": "0"}, {"rank": 1.5}, {"dual": "maybe"}):
        with pytest.raises(ConfigError, match=f"the option {next(iter(option))} must be"):
            load_adapter(GEMMA, options=option)


def test_heads_without_end_are_refused_before_they_take_memory(tmp_path):
    """A small file of 30,000 heads would be a linear layer of 3.6 GB."""
    path = written(tmp_path / "a.lora.h5", {0: pair((30_000, 1, 1), 1)}, 1)
    assert path.stat().st_size < 1 << 18
    with pytest.raises(FormatError, match=r"layer 0: as a linear layer its kernel \[30000, 1, 1\] declares 3600120000 bytes"):
        load_adapter(path, options={"einsum": QUERY})


def test_numbers_too_large_to_take_apart(tmp_path):
    """Products beyond float64, of which there are no singular values."""
    a, b = (array.astype(np.float64) * 1e200 for array in pair((3, 4, 5)))
    state, _ = loaded(written(tmp_path / "a.lora.h5", {0: (a, b)}), options={"einsum": QUERY})
    with pytest.raises(ConfigError, match=r"its nearest factors for the kernel \[3, 4, 5\] cannot be computed"):
        save_adapter(tmp_path / "b.lora.h5", state, bake=True)


def test_an_option_without_effect_is_told(tmp_path):
    state, notes = loaded(GEMMA, options={"head_dim": 6})
    assert "the option head_dim has no effect on reading" in notes
    assert "the option einsum has no effect on writing" in save_adapter(tmp_path / "a.lora.h5", state, options={"einsum": "linear"})
