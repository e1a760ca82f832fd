"""`python -m wattray` is the `wattray` command: what `ray job submit` runs."""

from wattray.cli import main

main()
