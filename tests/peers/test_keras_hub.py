"""keras-hub loads what loratk writes and loratk what keras-hub writes, and both compute the same."""

import contextlib
import importlib.util
import json
import os
import re
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "torch")
if importlib.util.find_spec("keras_hub") is None:
    pytest.skip("keras-hub is not installed; these tests compare with it", allow_module_level=True)
sys.path.append(str(Path(__file__).parents[1] / "formats"))

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import keras
    import keras_hub

from keras_files import loaded, updates

from loratk.errors import ConfigError
from loratk.exchange import Checkpoint, detect_format, load_adapter, save_adapter
from loratk.io import Hdf5Store

pytestmark = pytest.mark.filterwarnings("default")
PAGE = (Path(__file__).parents[2] / "docs" / "keras.md").read_text(encoding="utf-8")
RECIPES = re.findall(r"```python\n(.*?)\n *```", PAGE, re.DOTALL)
SIZES = {"vocabulary_size": 11, "num_layers": 2, "num_query_heads": 4, "num_key_value_heads": 2, "hidden_dim": 12, "intermediate_dim": 16}
TOKENS = {"token_ids": np.array([[1, 5, 2, 7], [3, 3, 9, 0]]), "padding_mask": np.ones((2, 4), bool)}
RANK = 3


class Layers(keras_hub.models.Backbone):
    """One layer of each kind that keras-hub saves the LoRA of, a grouped convolution too."""

    def __init__(self, **more):
        image = keras.Input((5, 4, 4))
        x = keras.layers.Conv2D(4, (3, 2), groups=2, name="conv2d")(image)
        x = keras.layers.Reshape((9, 4))(x)
        x = keras.layers.Conv1D(6, 3, name="conv1d")(x)
        x = keras.layers.EinsumDense("abc,cde->abde", (None, 2, 4), name="value")(x)
        x = keras.layers.Activation("gelu")(x)
        x = keras.layers.EinsumDense("abde,def->abf", (None, 6), name="output")(x)
        super().__init__(image, keras.layers.Dense(5, name="query")(x), **more)


LLAMA = ["query", "key", "value", "attention_output", "feedforward_gate_dense"]
TARGETS = ["query", "value", "output", "conv1d", "conv2d"]
IMAGE = np.random.default_rng(3).standard_normal((2, 5, 4, 4)).astype(np.float32)
MODELS = {
    "gemma": (lambda: keras_hub.models.GemmaBackbone(**SIZES, head_dim=6), TOKENS, None),
    "llama": (lambda: keras_hub.models.LlamaBackbone(**SIZES | {"hidden_dim": 16}), TOKENS, LLAMA),
    "layers": (Layers, IMAGE, TARGETS),
}  # fmt: skip
models = pytest.mark.parametrize("kind", MODELS)


class Trained:
    """A model with LoRA whose factors are random, its layers by number, and the same model without."""

    def __init__(self, kind):
        make, self.x, self.targets = MODELS[kind]
        self.make = make
        keras.utils.set_random_seed(4)
        self.model = make()
        self.weights = self.model.get_weights()
        self.enable(self.model)
        rng = np.random.default_rng(5)
        for layer in self.layers().values():
            layer.lora_kernel_b.assign(rng.standard_normal(layer.lora_kernel_b.shape) * 0.3)

    def enable(self, model, rank=RANK):
        model.enable_lora(rank, self.targets)

    def layers(self, model=None):
        model = model or self.model
        every = [layer for layer in model._flatten_layers(include_self=False) if layer.weights]
        return {index: every[index] for index in model._lora_enabled_layers}

    def output(self, model=None):
        return keras.ops.convert_to_numpy((model or self.model)(self.x))

    def fresh(self, rank=RANK):
        """The model without LoRA's effect, ready to load factors."""
        model = self.make()
        model.set_weights(self.weights)
        self.enable(model, rank)
        return model

    def map(self, folder):
        """The map that docs/keras.md has Keras print."""
        with contextlib.chdir(folder):
            exec(textwrap.dedent(RECIPES[0]), {"backbone": self.model, "json": json})
        return str(folder / "map.json")


@pytest.fixture
def trained(kind):
    return Trained(kind)


@pytest.fixture
def theirs(trained, tmp_path):
    trained.model.save_lora_weights(str(tmp_path / "theirs.lora.h5"))
    return tmp_path / "theirs.lora.h5"


@models
def test_we_read_theirs(trained, theirs, tmp_path):
    """Each layer's update is theirs, and so is the whole model's output with our updates in its kernels."""
    assert detect_format(theirs).format.name == "keras"
    state, _ = loaded(theirs, options={"map": trained.map(tmp_path)})
    assert {record["keras_layer"] for record in state.modules.values()} == set(trained.layers())
    ours = updates(state)
    plain = trained.make()
    plain.set_weights(trained.weights)
    every = [layer for layer in plain._flatten_layers(include_self=False) if layer.weights]
    for name, record in state.modules.items():
        layer = every[record["keras_layer"]]
        assert name == layer.path.replace("/", ".")
        layer.kernel.assign(keras.ops.convert_to_numpy(layer.kernel) + ours[name].reshape(layer.kernel.shape))
    np.testing.assert_allclose(trained.output(plain), trained.output(), atol=1e-5)
    assert np.abs(trained.output(trained.fresh()) - trained.output()).max() > 0.01


@models
def test_einsum_layers_as_linear_ones(trained, theirs, tmp_path):
    """x W with the plain layer is what EinsumDense gives, for every equation of these models."""
    state, _ = loaded(theirs, options={"map": trained.map(tmp_path), "einsum": "linear"})
    ours, checked = updates(state), 0
    layers = trained.layers()
    rng = np.random.default_rng(6)
    for name, record in state.modules.items():
        layer = layers[record["keras_layer"]]
        if not hasattr(layer, "equation"):
            continue
        given, kernel = layer.equation.split("->")[0].split(",")
        sizes = dict(zip(kernel, layer.kernel.shape, strict=True))
        x = rng.standard_normal([sizes.get(letter, 2) for letter in given]).astype(np.float32)
        both, plain = (keras.ops.convert_to_numpy(keras.ops.einsum(layer.equation, x, weight)) for weight in (layer.kernel, layer._kernel))
        inputs = sum(letter in kernel for letter in given)
        got = x.reshape(*x.shape[: x.ndim - inputs], -1) @ ours[name]
        np.testing.assert_allclose(got.reshape(both.shape), both - plain, atol=1e-5)
        checked += 1
    assert checked >= 2


@models
@pytest.mark.parametrize("dual", [False, True], ids=["plain", "dual"])
@pytest.mark.parametrize("scaling", [1.0, 0.7])
def test_they_load_ours(trained, theirs, tmp_path, dual, scaling):
    """keras-hub loads what we wrote of an adapter with names, and with a scaling, and computes as with its own."""
    state, _ = loaded(theirs, options={"map": trained.map(tmp_path)})
    for name, record in state.modules.items():
        record |= {"scaling": scaling, "alpha": scaling * RANK}
        state.tensors[f"{name}.lora_B"] = state.tensors[f"{name}.lora_B"] / np.float32(scaling)
    save_adapter(tmp_path / "ours.lora.h5", state, format="keras", options={"dual": dual})
    assert detect_format(tmp_path / "ours.lora.h5").format.name == ("hdf5" if dual else "keras")
    model = trained.fresh()
    model.load_lora_weights(str(tmp_path / "ours.lora.h5"))
    np.testing.assert_allclose(trained.output(model), trained.output(), atol=1e-5)
    again, _ = loaded(tmp_path / "ours.lora.h5")
    for name, update in updates(state).items():
        np.testing.assert_allclose(updates(again)[name], update, atol=1e-6)
    model.save_lora_weights(str(tmp_path / "back.lora.h5"))
    back, _ = loaded(tmp_path / "back.lora.h5")
    assert len(back.modules) == len(state.modules)


def test_a_model_without_lora_loads_ours(tmp_path):
    """Their default targets are what a family's names give; the loader turns LoRA on by the rank in the file."""
    trained = Trained("gemma")
    trained.model.save_lora_weights(str(tmp_path / "theirs.lora.h5"))
    state, _ = loaded(tmp_path / "theirs.lora.h5", options={"family": "gemma", "names": "hf"})
    save_adapter(tmp_path / "ours.lora.h5", state, format="keras", options={"family": "gemma", "head_dim": 6, "dual": True}, bake=True)
    model = trained.make()
    model.set_weights(trained.weights)
    model.load_lora_weights(str(tmp_path / "ours.lora.h5"))
    np.testing.assert_allclose(trained.output(model), trained.output(), atol=1e-5)


@models
def test_their_weights_as_a_base(trained, tmp_path):
    trained.model.save_weights(str(tmp_path / "merged.weights.h5"))
    with Checkpoint(tmp_path / "merged.weights.h5", {"hdf5": Hdf5Store()}) as base:
        held = [base.weight(module).reshape(-1).tolist() for module in base.modules() if len(base.shape(module)) > 1]
    for layer in trained.layers().values():
        kernel = keras.ops.convert_to_numpy(layer.kernel).reshape(-1).tolist()
        assert any(len(one) == len(kernel) and np.allclose(one, kernel, atol=1e-6) for one in held)


def test_bfloat16_as_keras_writes_it(tmp_path):
    """Weights of a model in bfloat16, read as float32 without ml_dtypes."""
    keras.utils.set_random_seed(8)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, dtype="bfloat16")])
    model.save_weights(str(tmp_path / "x.weights.h5"))
    kernel = keras.ops.convert_to_numpy(model.layers[0].kernel).astype(np.float32)
    with Checkpoint(tmp_path / "x.weights.h5", {"hdf5": Hdf5Store()}) as base:
        np.testing.assert_array_equal(base.weight("layers.dense"), kernel)


# The tables of families

HEADS = {"vocabulary_size": 11, "num_layers": 3, "num_heads": 2, "hidden_dim": 12, "intermediate_dim": 16}
BLOCKS = SIZES | {"num_layers": 3, "hidden_dim": 16}
GEMMA2 = {
    "use_post_ffw_norm": True, "use_post_attention_norm": True, "final_logit_soft_cap": 30, "attention_logit_soft_cap": 50,
    "use_sliding_window_attention": True, "sliding_window_size": 8,
}  # fmt: skip
FAMILIES = {
    "bert": ("Bert", HEADS),
    "gemma": ("Gemma", BLOCKS | {"head_dim": 6}),
    "gemma2": ("Gemma", BLOCKS | {"head_dim": 6} | GEMMA2),
    "gemma3": ("Gemma3", BLOCKS | {"head_dim": 6, "image_size": 896}),
    "gpt2": ("GPT2", HEADS),
    "llama": ("Llama3", BLOCKS),
    "mistral": ("Mistral", BLOCKS),
    "mixtral": ("Mixtral", BLOCKS | {"num_experts": 2, "top_k": 1}),
    "opt": ("OPT", HEADS),
    "phi3": ("Phi3", BLOCKS),
    "qwen2": ("Qwen", BLOCKS),
    "qwen3": ("Qwen3", BLOCKS | {"head_dim": 6}),
    "roberta": ("Roberta", HEADS),
}


def test_every_family_is_measured():
    from loratk_plugins.keras.families import FAMILIES as KNOWN

    assert KNOWN.keys() == FAMILIES.keys()


@pytest.mark.parametrize("name", FAMILIES)
def test_the_table_of_a_family(name, tmp_path):
    """Number, path, equation and kernel of every layer of the table, in three blocks; and no other table takes its file unseen."""
    from loratk_plugins.keras.families import FAMILIES as KNOWN

    kind, sizes = FAMILIES[name]
    model = getattr(keras_hub.models, f"{kind}Backbone")(**sizes)
    every = [layer for layer in model._flatten_layers(include_self=False) if layer.weights]
    family = KNOWN[name]
    for block in range(3):
        for number, role in family.roles.items():
            index = number + family.stride * block
            assert family.name(role, block, "keras") == every[index].path.replace("/", ".")
            assert role.equation == getattr(every[index], "equation", None)
            assert family.find(index) == (role, block)
            assert family.index(f"model.{family.name(role, block, 'keras')}") == index
    model.enable_lora(2)
    model.save_lora_weights(str(tmp_path / "x.lora.h5"))
    state, _ = loaded(tmp_path / "x.lora.h5", options={"family": name})
    assert len(state.modules) == 6
    assert {path.rsplit(".", 1)[1] for path in state.modules} == {"query", "value"}
    numbers = [record["keras_layer"] for record in state.modules.values()]
    for other in KNOWN:
        if any(KNOWN[other].find(index) != family.find(index) for index in numbers):
            with pytest.raises(ConfigError, match=f"does not fit the family {other!r}"):
                load_adapter(tmp_path / "x.lora.h5", options={"family": other})


@pytest.mark.parametrize("name", ["gemma", "gemma3", "llama", "qwen3", "bert", "roberta"])
def test_the_names_of_transformers(name):
    """Rows of a family's `hf` names are those that keras-hub itself loads from transformers' checkpoints."""
    from loratk_plugins.keras.families import FAMILIES as KNOWN

    file = {"llama": "llama3"}.get(name, name)
    source = Path(keras_hub.__file__).parent / "src" / "utils" / "transformers" / f"convert_{file}.py"
    text = source.read_text(encoding="utf-8")
    assert [role.hf for role in KNOWN[name].roles.values() if f"}}.{role.hf}.weight" not in text] == []


def test_the_recipes_of_the_page(tmp_path, monkeypatch):
    """docs/keras.md: read theirs, write one, by h5py alone."""
    import h5py

    monkeypatch.chdir(tmp_path)
    trained = Trained("gemma")
    trained.model.save_lora_weights("x.lora.h5")
    names = {"h5py": h5py, "np": np}
    exec(RECIPES[1], names)
    for index, layer in trained.layers().items():
        want = keras.ops.convert_to_numpy(layer.lora_kernel_a @ layer.lora_kernel_b)
        np.testing.assert_allclose(names["updates"][index], want, atol=1e-6)
    names["layers"] = {
        index: (*(keras.ops.convert_to_numpy(half) for half in (layer.lora_kernel_a, layer.lora_kernel_b)), 1.0)
        for index, layer in trained.layers().items()
    }
    exec(RECIPES[2], names)
    model = trained.fresh()
    model.load_lora_weights("y.lora.h5")
    np.testing.assert_allclose(trained.output(model), trained.output(), atol=1e-6)
    assert load_adapter("y.lora.h5").states
