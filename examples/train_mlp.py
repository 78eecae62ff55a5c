"""Train a small network on three spiral arms, stop early, and leave a log, a checkpoint and a picture.

    python examples/train_mlp.py [FOLDER]

Start it again with the same folder after Ctrl-C: it goes on where it was, with the same bits.
"""

import sys
from pathlib import Path

from loratk import nn
from loratk.autograd import ops
from loratk.errors import DependencyError
from loratk.nn.optim import AdamW
from loratk.train import EarlyStopping, Trainer, accuracy, spiral, split


def main(folder: Path) -> float:
    folder.mkdir(parents=True, exist_ok=True)
    train, validation, test = split(*spiral(900, rng=0), (0.7, 0.15, 0.15), seed=0)
    model = nn.Sequential(nn.Linear(2, 64, rng=1), nn.ReLU(), nn.Dropout(0.05, rng=2), nn.Linear(64, 3, rng=3))
    trainer = Trainer(
        model,
        AdamW(model.trainable(), lr=0.02),
        ops.cross_entropy,
        metrics=[accuracy],
        clip_norm=1.0,
        callbacks=[EarlyStopping("val_loss", patience=10)],
        log=folder / "log.jsonl",
        checkpoint=folder / "checkpoint.npz",
    )
    if trainer.checkpoint.exists():
        trainer.resume(trainer.checkpoint)
    history = trainer.fit(train, epochs=60, batch_size=64, validation=validation)

    found = trainer.evaluate(test, batch_size=256)
    print(f"trained {len(history)} epochs{f' ({trainer.stopped})' if trainer.stopped else ''}, best: epoch {history.best()['epoch']}")
    print(f"test loss {found['loss']:.3f}, accuracy {found['accuracy']:.1%}")
    try:
        history.plot(folder / "history.png")
    except DependencyError as error:
        print(error)
    return found["accuracy"]


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "train_mlp_out"))
