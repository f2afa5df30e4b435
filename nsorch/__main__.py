"""``python -m nsorch``: the same as the ``nsorch`` command."""

from nsorch.cli import main

main()
