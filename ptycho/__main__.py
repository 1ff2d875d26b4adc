"""``python -m ptycho`` is the ``ptycho`` command."""

from ptycho.cli import main

main()
