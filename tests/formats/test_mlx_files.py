"""Folders of mlx-lm that are broken, hostile or odd, and what a write leaves as it was."""

import json
import random
import re

import numpy as np
import pytest
from mlx_adapters import Base, adapter, assert_same, blocks, module
from mlx_loader import tiny

from loratk.errors import ConfigError, FormatError, LoratkError, StoreError
from loratk.exchange import detect_format, load_adapter, save_adapter
from loratk.io import write_safetensors

Q = "model.layers.0.self_attn.q_proj"
PARAMETERS = {"rank": 2, "scale": 1.5, "dropout": 0.0, "keys": ["self_attn.q_proj"]}
CONFIG = {"fine_tune_type": "lora", "num_layers": -1, "lora_parameters": PARAMETERS, "model": "tiny"}
A, B = np.ones((8, 2), np.float32), np.ones((2, 12), np.float32)
PAIR = {f"{Q}.lora_a": A, f"{Q}.lora_b": B}


def folder(tmp_path, config=CONFIG, tensors=PAIR):
    """A folder with a config (a dict, text or bytes; None leaves it out) and tensors."""
    place = tmp_path / "adapter"
    place.mkdir(exist_ok=True)
    text = json.dumps(config) if isinstance(config, dict | list) else config
    if text is not None:
        (place / "adapter_config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    if tensors is not None:
        write_safetensors(place / "adapters.safetensors", tensors, {})
    return place


def config(**changes):
    return {key: value for key, value in (CONFIG | changes).items() if value is not ...}


def parameters(**changes):
    return config(lora_parameters={key: value for key, value in (PARAMETERS | changes).items() if value is not ...})


HOSTILE = {
    "no JSON": (b'{"fine_tune_type', PAIR, "is no JSON"),
    "no UTF-8": (b'{"lora_parameters": "\xff"}', PAIR, "is no JSON"),
    "a list": ([1], PAIR, "must be a JSON object"),
    "NaN": ('{"lora_parameters": {"scale": NaN}}', PAIR, "NaN is not JSON"),
    "a key twice": ('{"num_layers": 1, "num_layers": 2}', PAIR, "a key is given twice"),
    "nested too deeply": ('{"lora_parameters":' + "[" * 100_000, PAIR, "is no JSON"),
    "a number too long": ('{"lora_parameters": ' + "1" * 5000 + "}", PAIR, "is no JSON"),
    "a config too long": (b" " * (5 << 20), PAIR, "is longer than"),
    "another type": (config(fine_tune_type="qlora"), PAIR, "fine_tune_type must be one of lora, dora, full, found 'qlora'"),
    "a type that is no text": (config(fine_tune_type=[]), PAIR, "fine_tune_type must be one of"),
    "no layers": (config(num_layers=...), PAIR, "num_layers must be a whole number, found nothing"),
    "half a layer": (config(num_layers=1.5), PAIR, "num_layers must be a whole number, found 1.5"),
    "huge layers": (config(num_layers=1 << 40), PAIR, "num_layers must be a whole number"),
    "no parameters": (config(lora_parameters=...), PAIR, "lora_parameters must be an object"),
    "no rank": (parameters(rank=...), PAIR, "rank must be a whole number from 1 up, found nothing"),
    "rank 0": (parameters(rank=0), PAIR, "rank must be a whole number from 1 up, found 0"),
    "rank true": (parameters(rank=True), PAIR, "rank must be a whole number"),
    "huge rank": (parameters(rank=10**400), PAIR, "rank must be a whole number"),
    "no scale": (parameters(scale=...), PAIR, "scale must be a finite number, found nothing"),
    "alpha for scale": (parameters(scale=..., alpha=16), PAIR, "mlx-lm's scale is alpha / rank"),
    "scale as text": (parameters(scale="20"), PAIR, "scale must be a finite number, found '20'"),
    "huge scale": ('{"num_layers": 1, "lora_parameters": {"rank": 2, "dropout": 0, "scale": 1e999}}', PAIR, "too large for a number"),
    "a scale of many digits": (parameters(scale=10**400), PAIR, "scale must be a finite number"),
    "dropout 1": (parameters(dropout=1), PAIR, "dropout must be a number from 0 to below 1"),
    "keys as text": (parameters(keys="self_attn.q_proj"), PAIR, "keys must be a list"),
    "no keys in the list": (parameters(keys=[]), PAIR, "keys must be a list"),
    "keys that are no text": (parameters(keys=[1]), PAIR, "keys must be a list"),
    "no text": ('{"num_layers": 1, "lora_parameters": {}, "x": "\\ud800"}', PAIR, "'x' is no text"),
    "no tensors": (CONFIG, None, "but no adapters.safetensors"),
    "an empty file": (CONFIG, {}, "the keys 'self_attn.q_proj' are promised, but no tensor is there for them"),
    "an empty file for all layers": (parameters(keys=...), {}, "it holds no tensors of an adapter"),
    "another tensor": (CONFIG, PAIR | {f"{Q}.weight": A}, f"unexpected tensor '{Q}.weight'"),
    "a tensor of no module": (CONFIG, PAIR | {"lora_a": A}, "unexpected tensor 'lora_a'"),
    "half a pair": (CONFIG, {f"{Q}.lora_a": A}, f"tensor '{Q}.lora_b' is missing"),
    "magnitudes without DoRA": (CONFIG, PAIR | {f"{Q}.m": A[:, 0]}, "magnitudes belong to fine_tune_type 'dora'"),
    "DoRA without magnitudes": (config(fine_tune_type="dora"), PAIR, f"tensor '{Q}.m' is missing"),
    "magnitudes of another length": (config(fine_tune_type="dora"), PAIR | {f"{Q}.m": np.ones(5)}, "must have 12 magnitudes"),
    "another rank": (parameters(rank=3), PAIR, "has factors of rank 2: lora_a (8, 2), lora_b (2, 12); adapter_config.json promises 3"),
    "factors that do not fit": (CONFIG, PAIR | {f"{Q}.lora_b": A}, "has factors that do not fit each other"),
    "factors of PEFT's order": (CONFIG, {f"{Q}.lora_a": A.T, f"{Q}.lora_b": B.T}, "has factors that do not fit each other"),
    "a vector": (CONFIG, PAIR | {f"{Q}.lora_b": B[0]}, "factors of 2 axes, or of 3 for experts"),
    "nothing in it": (CONFIG, {f"{Q}.lora_a": A[:, :0], f"{Q}.lora_b": B[:0]}, "factors of 2 axes"),
    "experts that disagree": (CONFIG, {f"{Q}.lora_a": np.ones((3, 2, 8)), f"{Q}.lora_b": np.ones((2, 12, 2))}, "do not fit each other"),
    "whole numbers": (CONFIG, {key: array.astype(np.uint32) for key, array in PAIR.items()}, "floating-point numbers, found uint32"),
    "NaN in a tensor": (CONFIG, PAIR | {f"{Q}.lora_a": A * np.nan}, "NaN or infinite"),
    "control characters": (CONFIG, PAIR | {"a\x1b[2J.lora_a": A}, "characters that no name has"),
    "an empty part": (CONFIG, PAIR | {"a..b.lora_a": A}, "an empty part in its name"),
    "a module that is not among the keys": (parameters(keys=["mlp.up_proj"]), PAIR, "neither it nor 'self_attn.q_proj' is among the keys"),
    "a module below the last layers": (config(num_layers=1), PAIR | {key.replace(".0.", ".3."): array for key, array in PAIR.items()},
                                       "num_layers 1 means the blocks from 3 on"),
    "a module beside the blocks": (parameters(keys=...), {"lm_head.lora_a": A, "lm_head.lora_b": B}, "it lies in no block"),
    "a key without tensors": (parameters(keys=["self_attn.q_proj", "mlp.up_proj"]), PAIR, "the keys 'mlp.up_proj' are promised"),
}  # fmt: skip


@pytest.mark.parametrize(("record", "tensors", "said"), HOSTILE.values(), ids=HOSTILE.keys())
def test_a_broken_folder_is_refused(record, tensors, said, tmp_path):
    place = folder(tmp_path, record, tensors)
    with pytest.raises(FormatError, match=re.escape(said)):
        load_adapter(place, format="mlx")


def test_a_broken_container(tmp_path):
    place = folder(tmp_path)
    content = (place / "adapters.safetensors").read_bytes()
    (place / "adapters.safetensors").write_bytes(content[:-5])
    with pytest.raises(FormatError, match="cut short"):
        load_adapter(place)


def test_all_faults_are_told_at_once(tmp_path):
    place = folder(tmp_path, config(num_layers=None, lora_parameters=PARAMETERS | {"scale": "x", "keys": ["b"]}),
                   {f"{Q}.lora_a": A, "x": A, "b.lora_a": A, "b.lora_b": A})  # fmt: skip
    with pytest.raises(FormatError) as caught:
        load_adapter(place)
    for part in (
        "num_layers must be",
        "scale must be",
        f"'{Q}.lora_b' is missing",
        "unexpected tensor 'x'",
        "'b' has factors",
        "among the keys",
    ):
        assert part in str(caught.value)


def test_what_mlx_lm_allows(tmp_path):
    """No fine_tune_type, no keys, a key that older versions had, alpha beside the scale."""
    record = {"lora_layers": 4, "lora_parameters": {"rank": 2, "scale": 1.5, "alpha": 9, "dropout": 0}}
    reading = load_adapter(folder(tmp_path, record))
    assert reading.states[0].modules[Q]["scaling"] == 1.5
    assert any("lora_layers" in note for note in reading.notes)
    assert any("mlx-lm goes by scale alone" in note for note in reading.notes)


@pytest.mark.parametrize("named", [False, True], ids=["by its shape", "by its name"])
def test_an_embedding_under_dora_is_not_taken_for_what_it_is_not(named, tmp_path):
    """Its magnitudes are of the rows, those that loratk knows of the columns."""
    path = "model.embed_tokens" if named else "net.table"
    d, k = (6, 6) if named else (6, 9)
    tensors = {f"{path}.lora_a": np.ones((d, 2)), f"{path}.lora_b": np.ones((2, k)), f"{path}.m": np.ones(d)}
    place = folder(tmp_path, config(fine_tune_type="dora", lora_parameters=PARAMETERS | {"keys": [path]}), tensors)
    with pytest.raises(ConfigError, match="a magnitude for each row; loratk knows one for each column"):
        load_adapter(place)


def test_further_tables(tmp_path):
    tensors = {"net.tokens.lora_a": A, "net.tokens.lora_b": B}
    place = folder(tmp_path, parameters(keys=["net.tokens"]), tensors)
    assert load_adapter(place).states[0].modules["net.tokens"]["layer_type"] == "linear"
    got = load_adapter(place, options={"embeddings": "pos, tokens"}).states[0]
    assert got.modules["net.tokens"]["layer_type"] == "embedding"


def test_with_the_base_nothing_may_be_missing(tmp_path):
    state = adapter(blocks(0, 1, 2, 3))
    save_adapter(tmp_path / "x", adapter(blocks(0, 1, 3)), format="mlx", options={"num_blocks": 4})
    record = json.loads((tmp_path / "x" / "adapter_config.json").read_text())
    record["lora_parameters"]["keys"] = ["self_attn.q_proj", "mlp.up_proj"]
    (tmp_path / "x" / "adapter_config.json").write_text(json.dumps(record))
    notes = load_adapter(tmp_path / "x").notes
    assert any("'model.layers.N.mlp.up_proj' has no tensors for N = 2" in note for note in notes)
    with pytest.raises(FormatError, match=r"tensors of module 'model.layers.2.mlp.up_proj' are missing: .* the base has it"):
        load_adapter(tmp_path / "x", base=Base(tiny(4)))
    allowed = [f"{path}.lora_{half}" for path in blocks(2) for half in "ab"]
    load_adapter(tmp_path / "x", base=Base(tiny(4)), allow_missing=allowed)
    load_adapter(tmp_path / "x", base=Base(tiny(4)), allow_missing=allowed[::2])
    with pytest.raises(ConfigError, match=r"'model.layers.1.mlp.up_proj.lora_a' may be missing, but .* missed no tensor of that name"):
        load_adapter(tmp_path / "x", base=Base(tiny(4)), allow_missing=[*allowed, "model.layers.1.mlp.up_proj.lora_a"])
    save_adapter(tmp_path / "x", state, format="mlx")
    load_adapter(tmp_path / "x", base=Base(tiny(4)))


def test_what_may_be_missing(tmp_path):
    place = folder(tmp_path, parameters(keys=["self_attn.q_proj", "lm_head"]), PAIR | {"lm_head.lora_a": A})
    reading = load_adapter(place, allow_missing=["lm_head.lora_b"])
    assert list(reading.states[0].modules) == [Q]
    assert any("'lm_head' left out: 'lm_head.lora_b' is missing, as allowed" in note for note in reading.notes)
    place = folder(tmp_path, parameters(keys=["self_attn.q_proj", "lm_head"]), PAIR)
    load_adapter(place, allow_missing=["lm_head.lora_a"])


def test_whole_modules_that_loratk_cannot_turn(tmp_path):
    place = folder(tmp_path, {"fine_tune_type": "full", "num_layers": 1}, {"conv.weight": np.ones((2, 3, 4), np.float32)})
    with pytest.raises(ConfigError, match=r"'conv.weight' has 3 axes, which mlx orders otherwise than torch"):
        load_adapter(place)


def test_it_is_told_from_peft_by_the_content(tmp_path):
    place = folder(tmp_path)
    assert (detect_format(place).format.name, detect_format(place).evidence) == ("mlx", "adapter_config.json has 'lora_parameters'")
    (place / "adapter_config.json").write_text('{"peft_type": "LORA", "lora_parameters": {}}')
    (place / "adapters.safetensors").rename(place / "adapter_model.safetensors")
    [mlx] = [found for name, found in _formats().items() if name == "mlx"]
    assert mlx.detect(place) is None
    with pytest.raises(ConfigError, match="holds an adapter of PEFT"):
        save_adapter(place, adapter(["lm_head"]), format="mlx")
    assert (place / "adapter_config.json").read_text().startswith('{"peft_type"')


def _formats():
    from loratk.exchange import formats_of
    from loratk.plugins import default_registry

    return formats_of(default_registry())


def test_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    for place, said in ((tmp_path / "file", "it is a file"), (tmp_path / "no" / "x", "there is no folder")):
        with pytest.raises(StoreError, match=said):
            save_adapter(place, adapter(["lm_head"]), format="mlx")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file"]


def test_other_files_of_the_folder_stay(tmp_path):
    place = folder(tmp_path)
    (place / "README.md").write_text("mine")
    (place / "0000100_adapters.safetensors").write_bytes((place / "adapters.safetensors").read_bytes())
    save_adapter(place, adapter(["lm_head"]), format="mlx")
    names = ["0000100_adapters.safetensors", "README.md", "adapter_config.json", "adapters.safetensors"]
    assert sorted(entry.name for entry in place.iterdir()) == names
    assert_same(load_adapter(place).states[0], adapter(["lm_head"]))


def test_a_config_that_stays_is_not_touched(tmp_path):
    """So that mlx-lm, which knows of no mark, meets one pair or the other."""
    place = tmp_path / "x"
    save_adapter(place, adapter(["lm_head"]), format="mlx")
    inode = (place / "adapter_config.json").stat().st_ino
    state = adapter(["lm_head"])
    state.tensors["lm_head.lora_A"] = state.tensors["lm_head.lora_A"] * 2
    save_adapter(place, state, format="mlx")
    assert_same(load_adapter(place).states[0], state)
    assert (place / "adapter_config.json").stat().st_ino == inode


def test_any_config_is_an_error_of_loratk(tmp_path):
    """Configs with values put in, taken out and replaced at random: read, or refused with a LoratkError."""
    chance, refused = random.Random(3), 0
    odd = [None, True, 0, -1, 2, 1.5, 1e308, "", "lora", "dora", "full", [], ["lm_head"], [[]], {}, {"rank": 2}, "\ud800", 10**30]
    place = folder(tmp_path, CONFIG, PAIR | {f"{Q}.m": np.ones(12, np.float32)})
    for _ in range(800):
        record = json.loads(json.dumps(config(fine_tune_type=chance.choice(["lora", "dora", "full"]))))
        for _ in range(chance.randint(1, 3)):
            target = chance.choice([record, record.get("lora_parameters")])
            if isinstance(target, dict):
                key = chance.choice([*target, "alpha", "keys", "rank", "x"])
                target[key] = chance.choice(odd)
                if chance.random() < 0.2:
                    del target[key]
        (place / "adapter_config.json").write_text(json.dumps(record))
        try:
            load_adapter(place, format="mlx")
        except LoratkError:
            refused += 1
    assert 400 < refused < 800


def test_any_damage_to_the_tensors_is_an_error_of_loratk(tmp_path):
    place = folder(tmp_path, parameters(keys=["mlp.switch_mlp.up_proj", "self_attn.q_proj"]))
    save_adapter(
        place, adapter(blocks(0, 1), rest={path: module(path) for path in blocks(0, 1, inner=["mlp.switch_mlp.up_proj"])}), format="mlx"
    )
    good = (place / "adapters.safetensors").read_bytes()
    chance, refused = random.Random(4), 0
    for _ in range(800):
        content = bytearray(good)
        for _ in range(chance.randint(1, 3)):
            at = chance.randrange(8 + int.from_bytes(good[:8], "little"))
            content[at] = chance.choice([*b'0123456789[]{},:"', chance.randrange(256)])
        (place / "adapters.safetensors").write_bytes(content)
        try:
            load_adapter(place, format="mlx")
        except LoratkError:
            refused += 1
    assert refused > 700
