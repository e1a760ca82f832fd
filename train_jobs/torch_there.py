"""Whether torch is installed, which only the training job of ours needs."""

from importlib.util import find_spec


class NoTorchError(ValueError):
    """torch is not installed; the message says what needs it and how to install it."""


def check_torch(what: str, otherwise: str = "") -> None:
    """Raises NoTorchError. ``what`` needs torch; ``otherwise`` says what else one can do."""
    if find_spec("torch") is None:
        raise NoTorchError(f"{what} needs torch, which is not installed: pip install 'wattray[train]'{otherwise}")
