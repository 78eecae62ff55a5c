"""Makes tests/data/keras/*: files of keras-hub 0.32 (Keras 3.15, torch), and the kernels that its layers had with and without LoRA.

    KERAS_BACKEND=torch python tests/data/make_keras.py

gemma.lora.h5: a GemmaBackbone of two blocks. layers.lora.h5: a Backbone of one Dense, EinsumDense, Conv1D and Conv2D each, and
layers.weights.h5 its merged weights. kernels.npz: <file>/<layer number>/base and /merged.
"""

from pathlib import Path

import keras
import keras_hub
import numpy as np

FOLDER = Path(__file__).parent / "keras"


class Layers(keras_hub.models.Backbone):
    """One layer of each kind that can have LoRA and is saved."""

    def __init__(self, **more):
        image = keras.Input((5, 4, 3))
        x = keras.layers.Conv2D(4, (3, 2), name="conv2d")(image)
        x = keras.layers.Reshape((9, 4))(x)
        x = keras.layers.Conv1D(6, 3, name="conv1d")(x)
        x = keras.layers.EinsumDense("abc,cde->abde", (None, 2, 4), name="value")(x)
        x = keras.layers.Reshape((7, 8))(x)
        super().__init__(image, keras.layers.Dense(5, name="query")(x), **more)


def main():
    keras.utils.set_random_seed(0)
    FOLDER.mkdir(exist_ok=True)
    sizes = {"num_query_heads": 4, "num_key_value_heads": 2, "hidden_dim": 12, "intermediate_dim": 8, "head_dim": 6}
    models = {"gemma": keras_hub.models.GemmaBackbone(vocabulary_size=7, num_layers=2, **sizes), "layers": Layers()}
    rng = np.random.default_rng(0)
    kernels = {}
    for name, model in models.items():
        model.enable_lora(3, None if name == "gemma" else ["query", "value", "conv1d", "conv2d"])
        layers = [layer for layer in model._flatten_layers(include_self=False) if layer.weights]
        for index in model._lora_enabled_layers:
            layer = layers[index]
            layer.lora_kernel_b.assign(rng.standard_normal(layer.lora_kernel_b.shape))
            kernels[f"{name}/{index}/base"] = keras.ops.convert_to_numpy(layer._kernel)
            kernels[f"{name}/{index}/merged"] = keras.ops.convert_to_numpy(layer.kernel)
        model.save_lora_weights(str(FOLDER / f"{name}.lora.h5"))
    models["layers"].save_weights(str(FOLDER / "layers.weights.h5"))
    np.savez_compressed(FOLDER / "kernels.npz", **kernels)


if __name__ == "__main__":
    main()
