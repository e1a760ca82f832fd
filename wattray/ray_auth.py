"""Ray's token authentication for the heads that wattray starts, and for talking to them.

Ray looks for the token in RAY_AUTH_TOKEN, then in the file named by RAY_AUTH_TOKEN_PATH, then in ~/.ray/auth_token.
"""

import os
import secrets
import sys
from pathlib import Path

from wattray.errors import WattrayError

MODE = "RAY_AUTH_MODE"
TOKEN, TOKEN_PATH = "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"


def token_file() -> Path:
    """Where Ray looks for the token, unless it is in the environment itself."""
    named = os.environ.get(TOKEN_PATH)
    return Path(named) if named else Path.home() / ".ray" / "auth_token"


def mode() -> str:
    """ "token" or "disabled", as this process talks to Ray."""
    return os.environ.get(MODE, "disabled")


def secure_own_head() -> bool:
    """Turn token mode on for a head to be started and make sure that there is a token, in a file with mode 0600; one
    that exists is used as it is. Returns False, and does nothing, where the user has set RAY_AUTH_MODE=disabled.

    Raises WattrayError where the token file cannot be trusted or written.
    """
    if os.environ.get(MODE) == "disabled":
        return False
    if not os.environ.get(TOKEN):
        _ensure_file(token_file())
    _use_tokens()
    return True


def use_token_if_there_is_one() -> None:
    """As Ray's own `ray.init` does where RAY_AUTH_MODE is unset: a token that exists is used, for HTTP calls too."""
    if MODE not in os.environ and (os.environ.get(TOKEN) or token_file().is_file()):
        _use_tokens()


def _use_tokens() -> None:
    os.environ[MODE] = "token"
    if "ray._raylet" in sys.modules:
        # Ray has read its configuration already; this is how it makes itself read it again.
        sys.modules["ray._raylet"].Config.initialize("")


def _ensure_file(path: Path) -> None:
    try:
        if path.exists():
            if path.stat().st_uid != os.geteuid():
                raise WattrayError(f"the Ray token {path} belongs to another user; name your own with {TOKEN_PATH}")
            if path.stat().st_mode & 0o077:
                path.chmod(0o600)
            if not path.read_text().strip():
                raise WattrayError(f"the Ray token {path} is empty; remove it, or write one there")
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
    except OSError as error:
        raise WattrayError(f"the Ray token {path}: {error.strerror}; name another file with {TOKEN_PATH}") from None


if __name__ == "__main__":
    secure_own_head()
