"""How adapters lie to each other, against dense matrices."""

import json
import math

import numpy as np
import pytest
from algebra_states import beside, known, module, state, update
from hypothesis import given, settings
from hypothesis import strategies as st

import loratk
from loratk.algebra.energy import block_of, kind_of
from loratk.algebra.interference import compare, plan
from loratk.errors import AnomalyError, ConfigError, FormatError
from loratk.exchange import AdapterState
from loratk.exchange.factors import nearest_pair


def pair(one, two, **options):
    """The pair of two modules, and their report."""
    report = compare([state({"m": one}, "a"), state({"m": two}, "b")], **options)
    return report.pairs[0].modules[0], report


def lora(a, b, scaling=1.0, **record):
    d, k = a.shape[0], b.shape[1]
    facts = {"method": "lora", "layer_type": "linear", "shape": [d, k], "rank": a.shape[1], "alpha": scaling * a.shape[1]}
    return facts | {"scaling": scaling} | record, {"lora_A": a, "lora_B": b}


def projector(matrix):
    u, s, _ = np.linalg.svd(matrix)
    u = u[:, : np.count_nonzero(s > 1e-9 * s[0])]
    return u @ u.T


def test_loratk_has_it_under_the_name_of_the_command():
    assert loratk.compare is compare


def test_an_adapter_and_itself():
    found, report = pair(module(d=20, k=15, rank=3), module(d=20, k=15, rank=3))
    assert found.sum.cosine == pytest.approx(1, abs=1e-15)
    assert found.sum.interference == pytest.approx(1)
    assert found.sum.norm == pytest.approx(2 * found.sum.norms[0])
    for space in (found.inputs, found.outputs):
        assert max(space.angles) < 1e-14
        assert (space.similarity, *space.shares) == pytest.approx((1, 1, 1))
        assert space.phi == pytest.approx([1, 1, 1])
    assert found.shares == pytest.approx((1, 1))
    assert (found.signs.share, found.signs.error, found.signs.exact) == (0, 0, True)
    assert report.matrix()[0] == pytest.approx([1, 1])


def test_an_adapter_and_its_negation_cancel_to_the_last_digit():
    record, held = module(d=30, k=20, rank=3, dtype=np.float32)
    turn = np.linalg.qr(np.random.default_rng(1).standard_normal((3, 3)))[0]
    opposed = {"lora_A": held["lora_A"].astype("f8") @ turn, "lora_B": -turn.T @ held["lora_B"].astype("f8")}
    found, report = pair((record, held), (record, opposed))
    assert found.sum.cosine == pytest.approx(-1)
    assert found.sum.interference == pytest.approx(-1)
    assert found.sum.norm < 1e-14 * found.sum.norms[0]
    assert report.pairs[0].sum.norm < 1e-14 * found.sum.norms[0]
    assert found.signs.share == 1


def test_factorings_of_one_update_are_one_update():
    """Another rank, and float32: the directions that are rounding alone are none of the spaces."""
    a, b = known([5.0, 2.0, 1.0], d=60, k=50)
    wide = tuple(factor.astype(np.float32) for factor in nearest_pair((a @ b).astype(np.float32), 8))
    assert np.linalg.matrix_rank(wide[0] @ wide[1].astype("f8")) == 8
    found, _ = pair(lora(a, b), lora(*wide))
    assert found.inputs.dimensions == found.outputs.dimensions == (3, 3)
    assert max(found.inputs.angles + found.outputs.angles) < 1e-5
    assert found.sum.cosine == pytest.approx(1)


def test_updates_that_share_nothing():
    frame = np.linalg.qr(np.random.default_rng(5).standard_normal((20, 6)))[0]
    b = np.random.default_rng(6).standard_normal((3, 12))
    found, report = pair(lora(frame[:, :3], b), lora(frame[:, 3:], b))
    assert found.sum.cosine == pytest.approx(0, abs=1e-15)
    assert found.sum.norm == pytest.approx(math.hypot(*found.sum.norms))
    assert found.inputs.angles == pytest.approx([math.pi / 2] * 3)
    assert found.inputs.similarity == pytest.approx(0, abs=1e-15)
    assert max(found.outputs.angles) < 1e-7  # the same rows
    assert found.outputs.shares == pytest.approx((1, 1))
    assert found.shares == pytest.approx((0, 0), abs=1e-15)
    assert report.pairs[0].shares["inputs"] == pytest.approx((0, 0), abs=1e-15)


def test_one_planted_direction_that_both_read():
    rng = np.random.default_rng(7)
    frame = np.linalg.qr(rng.standard_normal((40, 7)))[0]
    one, two = frame[:, [0, 1, 2, 3]], frame[:, [0, 4, 5, 6]]
    outputs = np.linalg.qr(rng.standard_normal((30, 8)))[0].T
    found, _ = pair(lora(one * [3, 1, 1, 1], outputs[:4]), lora(two, outputs[4:]))
    assert found.inputs.angles[0] < 1e-14
    assert found.inputs.angles[1:] == pytest.approx([math.pi / 2] * 3)
    assert found.inputs.similarity == pytest.approx(1 / 4)
    assert found.inputs.shares == pytest.approx((9 / 12, 1 / 4))
    assert found.shares == pytest.approx((0, 0), abs=1e-15)


SIZES = st.tuples(st.integers(1, 9), st.integers(1, 9))


@given(seed=st.integers(0, 999), sizes=SIZES, ranks=SIZES)
@settings(max_examples=60, deadline=None)
def test_against_dense_matrices(seed, sizes, ranks):
    d, k = sizes
    one, two = module(seed, d=d, k=k, rank=ranks[0]), module(seed + 1, d=d, k=k, rank=ranks[1], alpha=-3.0)
    found, report = pair(one, two)
    x, y = (update(state({"m": item}), "m") for item in (one, two))
    norms = np.linalg.norm(x), np.linalg.norm(y)
    assert found.sum.norms == pytest.approx(norms)
    assert found.sum.cosine == pytest.approx(np.sum(x * y) / norms[0] / norms[1], abs=1e-12)
    assert found.sum.norm == pytest.approx(np.linalg.norm(x + y), abs=1e-12)
    want = (np.linalg.norm(x + y) ** 2 - norms[0] ** 2 - norms[1] ** 2) / (norms[0] ** 2 + norms[1] ** 2)
    assert found.sum.interference == pytest.approx(want, abs=1e-12)
    assert found.signs.share == pytest.approx(np.mean(x * y < 0))
    (px, py), (qx, qy) = (projector(x), projector(y)), (projector(x.T), projector(y.T))
    share = lambda kept, whole: np.linalg.norm(kept) ** 2 / np.linalg.norm(whole) ** 2  # noqa: E731
    assert found.inputs.shares == pytest.approx((share(py @ x, x), share(px @ y, y)), abs=1e-10)
    assert found.outputs.shares == pytest.approx((share(x @ qy, x), share(y @ qx, y)), abs=1e-10)
    assert found.shares == pytest.approx((share(py @ x @ qy, x), share(px @ y @ qx, y)), abs=1e-10)
    assert found.inputs.similarity == pytest.approx(np.trace(px @ py) / min(found.inputs.dimensions), abs=1e-10)
    assert report.pairs[0].sum.cosine == pytest.approx(found.sum.cosine, abs=1e-12)


@pytest.mark.parametrize("kind", [{"groups": 2}, {"experts": 3}])
def test_parts_that_share_no_entry(kind):
    """Groups and experts: each part has spaces of its own, all count together."""
    one, two = (module(seed, d=10, k=8, rank=4, **kind) for seed in (1, 2))
    found, report = pair(one, two)
    x, y = (update(state({"m": item}), "m") for item in (one, two))
    assert found.sum.cosine == pytest.approx(np.sum(x * y) / np.linalg.norm(x) / np.linalg.norm(y))
    assert found.sum.norm == pytest.approx(np.linalg.norm(x + y))
    assert found.signs.share == pytest.approx(np.mean(x * y < 0))
    parts = list(zip(*(np.split(z, 2, axis=1) if "groups" in kind else z for z in (x, y)), strict=True))
    kept = sum(np.linalg.norm(projector(b) @ a) ** 2 for a, b in parts)
    assert found.inputs.shares[0] == pytest.approx(kept / np.linalg.norm(x) ** 2)
    count = sum(np.linalg.matrix_rank(a) for a, _ in parts)
    assert found.inputs.dimensions == found.outputs.dimensions == (count, count)
    traces = sum(np.trace(projector(a.T) @ projector(b.T)) for a, b in parts)
    assert found.outputs.similarity == pytest.approx(traces / count)
    assert report.adapters[0].layers[0].shape == [10, 8]


def test_zero_and_huge_and_tiny_updates():
    record, held = module(d=8, k=6)
    nothing = held | {"lora_B": np.zeros_like(held["lora_B"])}
    found, report = pair((record, held), (record, nothing))
    assert (found.sum.cosine, found.sum.interference) == (None, 0)
    assert found.inputs.angles == found.inputs.phi == []
    assert (report.adapters[1].zero, report.matrix()[1]) == (["m"], [None, None])
    for factor in (1e150, 1e-150):
        one, two = ({key: array * factor for key, array in module(seed, d=8, k=6)[1].items()} for seed in (0, 1))
        found, report = pair((record, one), (record, two))
        plain, _ = pair(module(0, d=8, k=6), module(1, d=8, k=6))
        assert found.sum.cosine == pytest.approx(plain.sum.cosine)
        assert found.inputs.shares == pytest.approx(plain.inputs.shares)
        assert report.pairs[0].sum.cosine == pytest.approx(plain.sum.cosine)


def test_whole_adapters_are_one_vector_each():
    """With modules of one only: they are in the norms."""
    mine = {"x.0.q": module(1), "x.1.q": module(2), "x.1.v": module(3)}
    other = {"x.0.q": module(4), "x.1.v": module(5), "x.2.v": module(6, k=9)}
    report = compare([state(mine, "a"), state(other, "b")])
    (found,) = report.pairs
    dense = [{name: update(state(held), name) for name in held} for held in (mine, other)]
    common = ("x.0.q", "x.1.v")
    norms = [math.sqrt(sum(np.sum(z**2) for z in held.values())) for held in dense]
    inner = sum(np.sum(dense[0][name] * dense[1][name]) for name in common)
    assert found.sum.norms == pytest.approx(tuple(norms))
    assert found.sum.cosine == pytest.approx(inner / norms[0] / norms[1])
    assert found.sum.norm == pytest.approx(math.sqrt(norms[0] ** 2 + norms[1] ** 2 + 2 * inner))
    assert (found.only_a, found.only_b, found.not_compared) == (["x.1.q"], ["x.2.v"], {})
    opposed = np.concatenate([(dense[0][name] * dense[1][name] < 0).ravel() for name in common])
    assert found.sign_conflicts == pytest.approx(np.mean(opposed))
    (a, _) = report.adapters
    assert a.kinds == pytest.approx({"x.q": a.layers[0].share + a.layers[1].share, "x.v": a.layers[2].share})
    assert a.blocks == pytest.approx({"x.0": a.layers[0].share, "x.1": a.layers[1].share + a.layers[2].share})
    assert sum(a.kinds.values()) == pytest.approx(1)
    assert a.layers[0].share == pytest.approx(np.sum(dense[0]["x.0.q"] ** 2) / norms[0] ** 2)


def test_kinds_and_blocks_of_paths():
    paths = ["model.layers.10.mlp.experts.3.up", "lm_head", "0"]
    assert [kind_of(path) for path in paths] == ["model.layers.mlp.experts.up", "lm_head", "0"]
    assert [block_of(path) for path in paths] == ["model.layers.10", "lm_head", "0"]


def test_spikes_are_those_of_inspect():
    report = compare([state({"m": lora(*known([100.0, 1.0, 1.0]))}, "a"), state({"m": lora(*known([1.0, 1.0, 1.0]))}, "b")])
    assert [adapter.spikes for adapter in report.adapters] == [["m"], []]
    assert report.adapters[0].layers[0].spectrum.values == pytest.approx([100, 1, 1])


@pytest.mark.parametrize(
    ("one", "two", "want"),
    [
        (module(d=6), module(d=5), "shape [6, 4] and [5, 4]"),
        (module(d=6, k=8, rank=4, groups=2), module(d=6, k=8, rank=4, groups=4), "groups 2 and 4"),
        (module(d=6, k=8, rank=4, groups=2), module(d=6, k=8, rank=4), "parts of shapes 6x4 + 6x4 and 6x8"),
        (module(experts=2), module(experts=3), "experts 2 and 3"),
        (module(columns=[0, 4]), module(columns=[4, 8]), "columns [0, 4] and [4, 8]"),
    ],
)
def test_what_cannot_be_compared_is_named(one, two, want):
    report = compare([state({"m": one, "n": module(9)}, "a"), state({"m": two, "n": module(8)}, "b")])
    (found,) = report.pairs
    assert found.not_compared == {"m": [want]}
    assert [found.name for found in found.modules if found.compared] == ["n"]
    assert len(report.adapters[0].layers) == 2


def test_what_cannot_be_measured_is_named():
    one = {
        "m": ({"method": "mystery"}, {"w": np.ones(2)}),
        "n": ({"method": "lora"}, {"bias": np.ones(3)}),
        "o": beside(module(), bias=[1] * 4),
    }
    report = compare([state(one, "a"), state({name: module() for name in "mno"}, "b")])
    left, _ = report.adapters
    assert left.not_measured["m"].startswith("its method 'mystery' is none that is installed; known are 'adalora'")
    assert left.not_measured["n"] == "it changes a bias alone, no weight"
    assert left.biases == ["n", "o"]
    assert list(report.pairs[0].not_compared) == ["m", "n"]
    assert report.pairs[0].not_compared["m"][0].startswith("a: its method 'mystery'")
    seen = plan([state(one, "a"), state({name: module() for name in "mno"}, "b")])
    assert seen.pairs[0].modules == ["o"]
    assert seen.pairs[0].not_compared.keys() == {"m", "n"}


def test_adapters_of_different_bases_are_warned_of():
    one, two = (state({"m": module()}, name, fingerprint=name * 64) for name in "ab")
    (note,) = compare([one, two]).notes
    assert note.startswith("they were made for different bases ('a' for aaaaaaaaaaaa...; 'b' for bbbbbbbbbbbb...)")
    assert compare([one, state({"m": module()}, "c", fingerprint="a" * 64)]).notes == []


def test_three_adapters_and_their_matrix():
    states = [state({"m": module(seed)}, name) for seed, name in enumerate("abc")]
    report = compare(states)
    assert [(pair.a, pair.b) for pair in report.pairs] == [("a", "b"), ("a", "c"), ("b", "c")]
    matrix = np.array(report.matrix(), float)
    x = np.array([update(held, "m").ravel() for held in states])
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    np.testing.assert_allclose(matrix, x @ x.T, atol=1e-12)
    assert json.loads(json.dumps(report.to_dict()))["cosines"] == report.matrix()


def test_what_makes_no_sense_is_refused():
    one = state({"m": module()}, "a")
    with pytest.raises(ConfigError, match="needs at least two adapters, found 'a'"):
        compare([one])
    with pytest.raises(ConfigError, match="leading must be a whole number from 1 up, found 0"):
        compare([one, one], leading=0)
    with pytest.raises(ConfigError, match="threshold must be a cosine above 0, up to 1, found 2"):
        compare([one, one], threshold=2)
    broken = AdapterState("b", {}, one.tensors | {"m.lora_A": one.tensors["m.lora_A"] * np.nan}, one.modules)
    with pytest.raises(FormatError, match=r"'b': tensor 'm\.lora_A' has 12 values that are NaN"):
        compare([one, broken])
    record, held = module()
    too_large = state({"m": (record, {key: array * 1e200 for key, array in held.items()})}, "huge")
    assert "too large for float64" in compare([one, too_large]).adapters[1].not_measured["m"]
    assert issubclass(AnomalyError, loratk.LoratkError)
