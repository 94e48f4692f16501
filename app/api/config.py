"""What a server allows. Every bound is checked before the work that it bounds."""

from dataclasses import dataclass
from urllib.parse import urlsplit

MB = 1 << 20


@dataclass(frozen=True)
class ServerConfig:
    """`api_key` None leaves the interface open; `page_password` protects the page, whose user is `PAGE_USER`.

    Pictures come as data URIs, or from one of the origins in `fetch_from` ("https://example.com", a port where it is
    not the usual one). A picture has at most `pixels`, a sound lasts at most `sound_s`, and a request holds at most
    `media` of them. States that clients asked to keep take at most `state_bytes` of RAM, and `state_disk_bytes` on disk
    where the engine has a folder; the ones used least recently go. Clients must call the server by one of `hosts` or by
    a name of this machine's alone, unless it is None. With `tools` other models are served by the MCP.
    """

    api_key: str | None = None
    page_password: str | None = None
    fetch_from: tuple[str, ...] = ()
    hosts: tuple[str, ...] | None = None
    tools: bool = False
    body_bytes: int = 48 * MB
    bodies_bytes: int = 512 * MB  # of all requests that are being read or answered
    json_keys: int = 100_000  # of one body, and
    json_values: int = 1_000_000
    uploads_bytes: int = 4096 * MB  # that lie in the page's folder
    body_s: float = 60.0  # for a request to arrive in full
    send_s: float = 60.0  # for a client to take what it was sent
    pixels: int = 36_000_000
    sound_s: float = 3600.0
    media: int = 32
    choices: int = 8  # answers to one prompt
    inputs: int = 256  # prompts, or texts to embed, of one request
    answer_tokens: int = 16_384
    scores: int = 1 << 20  # log-probabilities of one request's prompts
    answer_s: float = 600.0
    state_bytes: int = 1024 * MB
    state_disk_bytes: int = 8192 * MB
    readers: int = 4  # requests whose media are decoded at once

    def __post_init__(self) -> None:
        for origin in self.fetch_from:
            parts = urlsplit(origin)
            if (
                parts.scheme not in ("http", "https")
                or not parts.netloc
                or origin != f"{parts.scheme}://{parts.netloc}"
            ):
                raise ValueError(f"{origin!r} is no origin to fetch from, expected one such as https://example.com")
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.strip()):
            raise ValueError("the API key is blank or holds more than ASCII")
