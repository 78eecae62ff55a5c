"""Fine-tune a network of your own: train a base, freeze it, adapt it to a changed task, and keep only the adapter.

    python examples/fine_tune.py [FOLDER]

The base learns to tell which of two coordinates is larger; in the changed task the second one counts with its sign turned.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

from loratk import LoraConfig, LoraModel, Trainer, ops
from loratk.nn import MLP, AdamW


def accuracy(model: MLP | LoraModel, x: np.ndarray, y: np.ndarray) -> float:
    return float((model(x).numpy().argmax(axis=1) == y).mean())


def main(folder: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1200, 2)).astype(np.float32)
    old, new = (x[:, 0] > x[:, 1]).astype(np.int64), (x[:, 0] > -x[:, 1]).astype(np.int64)
    train, test = slice(0, 1000), slice(1000, None)

    base = MLP([2, 64, 64, 2], rng=1)
    Trainer(base, AdamW(base.parameters(), lr=5e-3), ops.cross_entropy, seed=2).fit((x[train], old[train]), epochs=20, batch_size=50)
    print(f"the base on its own task:    {accuracy(base, x[test], old[test]):.1%}")
    print(f"the base on the changed one: {accuracy(base, x[test], new[test]):.1%}")

    # LoRA+ (Hayou et al. 2024): B learns faster than A, so they are two parameter groups.
    model = LoraModel.adapt(base, LoraConfig(rank=2, alpha=8, seed=3), adapter="turned")
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [{"params": [p for name, p in named if name.endswith("lora_A")]}]
    groups += [{"params": [p for name, p in named if name.endswith("lora_B")], "lr": 4 * 5e-3}]
    Trainer(model, AdamW(groups, lr=5e-3), ops.cross_entropy, seed=4).fit((x[train], new[train]), epochs=20, batch_size=50)
    print(model.summary())
    print(f"with the adapter:            {accuracy(model, x[test], new[test]):.1%}")
    with model.disabled():
        print(f"switched off, on its task:   {accuracy(model, x[test], old[test]):.1%}")

    path = folder / "turned.h5"
    model.save(path, metadata={"task": "the second coordinate turned"})
    print(f"the adapter's file:          {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(Path(folder))
