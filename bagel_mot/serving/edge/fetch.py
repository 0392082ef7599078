"""Images from addresses on the web, for servers that allow some hosts.

Clients choose these addresses, so each is suspect: only allowed hosts, only http and https, no redirects, and only
addresses of the public internet. The name is resolved once, the resolved address is checked, and that very address is
connected to, so that a name cannot resolve to another one in between.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence

import anyio
import httpx2

from bagel_mot.errors import ImageError

MAX_BYTES = 32 << 20
SECONDS = 20.0
_PORTS = {"http": 80, "https": 443}
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet: not private, loopback, link-local, reserved or multicast."""
    found = ipaddress.ip_address(address)
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour or (found.teredo[1] if found.teredo else None)
        if found in _NAT64:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if inner is not None:  # an IPv4 address in disguise
            return is_public(str(inner))
    return found.is_global and not found.is_multicast


def allowed_url(url: str, hosts: Sequence[str]) -> httpx2.URL:
    """Checks an address against the hosts allowed: `example.org` at the usual ports, `example.org:8443` at this one.

    Raises:
        ImageError: it must not be fetched.
    """
    if not hosts:
        raise ImageError("this server fetches no pictures: send a data URI, data:image/png;base64,….")
    try:
        parsed = httpx2.URL(url)
    except (httpx2.InvalidURL, ValueError) as error:
        raise ImageError("the address of a picture cannot be read: write https://HOST/PATH.") from error
    if parsed.scheme not in _PORTS:
        raise ImageError(f"a picture's address has the scheme {parsed.scheme!r}: it must be https, http or data.")
    port = parsed.port or _PORTS[parsed.scheme]
    names = {f"{parsed.host}:{port}", *([parsed.host] if port == _PORTS[parsed.scheme] else [])}
    if parsed.userinfo or not names & {host.lower() for host in hosts}:
        raise ImageError(f"this server fetches pictures from {', '.join(hosts)} alone: send a data URI instead.")
    return parsed


async def fetch(url: str, hosts: Sequence[str]) -> bytes:
    """The bytes at an address.

    Raises:
        ImageError: it must not be fetched, or cannot be.
    """
    parsed = allowed_url(url, hosts)
    try:
        with anyio.fail_after(SECONDS):
            return await _read(parsed, await _resolve(parsed))
    except TimeoutError as error:
        raise ImageError(f"the picture at {parsed.host} did not arrive within {SECONDS:g} seconds.") from error
    except (httpx2.HTTPError, OSError) as error:
        raise ImageError(f"the picture at {parsed.host} cannot be fetched.") from error


async def _resolve(url: httpx2.URL) -> str:
    """An address of the host, all of whose addresses must be public."""
    port = url.port or _PORTS[url.scheme]
    found = [str(entry[4][0]) for entry in await anyio.getaddrinfo(url.host, port, type=socket.SOCK_STREAM)]
    if not found or not all(is_public(address) for address in found):
        raise ImageError(f"{url.host} is not on the public internet: this server fetches nothing from there.")
    return found[0]


async def _read(url: httpx2.URL, address: str) -> bytes:
    """The bytes behind a URL, from this very address, with the certificate of the name."""
    headers = {"Host": url.netloc.decode("ascii"), "Accept": "image/*", "Accept-Encoding": "identity"}
    # Without trust_env a proxy named there would resolve the name anew.
    async with (
        httpx2.AsyncClient(trust_env=False, follow_redirects=False, timeout=SECONDS) as client,
        client.stream(
            "GET", url.copy_with(host=address), headers=headers, extensions={"sni_hostname": url.host}
        ) as response,
    ):
        if response.status_code != 200:
            hint = ", a redirect, which is not followed" if response.is_redirect else ""
            raise ImageError(f"{url.host} answered with status {response.status_code}{hint}.")
        data = bytearray()
        async for chunk in response.aiter_raw():
            data += chunk
            if len(data) > MAX_BYTES:
                raise ImageError(f"the picture at {url.host} has more than {MAX_BYTES >> 20} MiB.")
        return bytes(data)
