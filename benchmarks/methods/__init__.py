"""Adapter methods side by side on one task: what each reaches, trains, takes a step and takes on disk. See docs/methods.md."""
