"""How a server is to behave, beyond what its service allows."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ServerOptions:
    """
    Attributes:
        model_name: by which clients ask for the model.
        api_keys: of which a client must show one; none: everybody may ask.
        allowed_urls: hosts (`example.org`, `example.org:8443`) from which images are fetched; none: from nowhere.
        cors_origins: origins of web pages that may ask (`https://example.org`, or `*` for all).
        allowed_hosts: names by which the server may be addressed (the `Host` header); None: by any.
        max_body_bytes: most bytes of a request.
        log_prompts: write what is asked into the log.
    """

    model_name: str = "bagel"
    api_keys: tuple[str, ...] = ()
    allowed_urls: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] | None = None
    max_body_bytes: int = 64 << 20
    log_prompts: bool = False
