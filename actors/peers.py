"""What a control actor hears when another one does not answer."""


class PeerAwayError(RuntimeError):
    """Another actor does not exist now, failed, or did not answer in time; the caller goes on with what it knows."""
