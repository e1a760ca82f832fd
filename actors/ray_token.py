"""The token that HTTP calls to Ray's dashboard must carry where Ray runs in token mode."""

from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled


def ray_token_headers() -> dict[str, str]:
    """The header, or nothing without token mode. Ray has no public call for it; its own clients use this one."""
    headers: dict[str, str] = get_auth_headers_if_auth_enabled({})
    return headers
