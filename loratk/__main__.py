"""`python -m loratk`."""

from .cli import main

main(prog_name="loratk")
