"""What a training step costs, as ratios in one run: against PEFT on PyTorch, and against the bare matrix products."""
