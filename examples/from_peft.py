"""Take an adapter that PEFT trained, use it and train it on without PyTorch, and give it back to PEFT.

    python examples/from_peft.py [FOLDER]

A PEFT adapter is a folder with adapter_config.json and adapter_model.safetensors. The one here is made below as PEFT would write it, for a
`torch.nn.Sequential` in the attribute `net`, whose linear layers are `net.0` and `net.2`; loratk's network calls them `0` and `2`.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from loratk import LoraModel, Trainer, load_adapter, ops
from loratk.io import write_safetensors
from loratk.nn import MLP, AdamW

SIZES = [6, 16, 3]
NAMES = {"net.0": "0", "net.2": "2"}


def as_peft_writes_it(folder: Path) -> None:
    """An adapter of rank 2 on both layers, with twice the alpha on the second: torch's factors are (r, in) and (out, r)."""
    rng = np.random.default_rng(0)
    tensors = {}
    for layer, d, k in (("net.0", SIZES[0], SIZES[1]), ("net.2", SIZES[1], SIZES[2])):
        tensors[f"base_model.model.{layer}.lora_A.weight"] = 0.3 * rng.standard_normal((2, d)).astype(np.float32)
        tensors[f"base_model.model.{layer}.lora_B.weight"] = 0.3 * rng.standard_normal((k, 2)).astype(np.float32)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "alpha_pattern": {"net.2": 8}, "target_modules": ["net.0", "net.2"]}
    folder.mkdir()
    write_safetensors(folder / "adapter_model.safetensors", tensors, {"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(config))


def main(folder: Path) -> None:
    as_peft_writes_it(folder / "theirs")

    # What is in it, and how it was understood: notes tell each decision, records where alpha came from.
    reading = load_adapter(folder / "theirs")
    print(reading.notes[0])
    for module, record in reading.states[0].modules.items():
        print(f"  {module}: rank {record['rank']}, scaling {record['scaling']:g} ({record['alpha_source']})")

    # Into a model: every tensor has to fit, or nothing is loaded and all that is wrong is told.
    model = LoraModel.from_file(MLP(SIZES, rng=1), folder / "theirs", rename=NAMES)
    x = np.random.default_rng(2).standard_normal((64, SIZES[0])).astype(np.float32)
    y = (x[:, 0] > x[:, 1]).astype(np.int64)
    before = ops.cross_entropy(model(x), y).item()
    Trainer(model, AdamW(model.trainable(), lr=1e-2), ops.cross_entropy, seed=3).fit((x, y), epochs=10, batch_size=16)
    print(f"loss {before:.3f} before, {ops.cross_entropy(model(x), y).item():.3f} after training on")

    # Back to PEFT, with its names: PeftModel.from_pretrained takes the folder. And into one HDF5 file.
    theirs = {ours: name for name, ours in NAMES.items()}
    model.save(folder / "ours", format="peft", rename=theirs, options={"task_type": "SEQ_CLS"})
    config = json.loads((folder / "ours" / "adapter_config.json").read_text())
    print({key: config[key] for key in ("r", "lora_alpha", "alpha_pattern", "target_modules", "task_type")})
    model.save(folder / "ours.h5")
    again = LoraModel.from_file(MLP(SIZES, rng=1), folder / "ours", rename=NAMES)
    print(f"the same output to the last bit: {np.array_equal(again(x).numpy(), model(x).numpy())}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(Path(folder))
