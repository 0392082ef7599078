"""Options of the HTTP server."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ServerOptions:
    """Options of the HTTP server, beside the limits of its service.

    Attributes:
        model_name: the name by which clients ask for the model.
        aliases: other names by which they may.
        api_keys: a client must show one of these keys; without any, everybody may ask.
        allowed_urls: hosts (`example.org`, `example.org:8443`) whose images are fetched; without any, none are.
        cors_origins: origins of web pages that may ask (`https://example.org`, or `*` for all).
        allowed_hosts: names by which the server may be addressed (the `Host` header); None allows all.
        max_body_bytes: maximum bytes of a request.
        log_prompts: whether prompts are written into the log.
        strict: whether fields are refused that OpenAI's clients send and that have no effect here.
    """

    model_name: str = "bagel"
    aliases: tuple[str, ...] = ()
    api_keys: tuple[str, ...] = ()
    allowed_urls: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] | None = None
    max_body_bytes: int = 64 << 20
    log_prompts: bool = False
    strict: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """All names of the model, each once."""
        return tuple(dict.fromkeys((self.model_name, *self.aliases)))
