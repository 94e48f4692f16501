"""What a server says when it begins."""

from typing import Any

import pytest
import torch

from app.announcement import address, announce, runs
from app.api.config import ServerConfig
from app.engine import EngineConfig
from app.replicas import Opened
from app.replicas import serve as serve_replicas
from app.server import ways
from mm_rwkv7.int8 import quantise
from mm_rwkv7.pipeline import Pipeline
from tests.conftest import make_model

KEY = "a key"  # pragma: allowlist secret


@pytest.mark.parametrize(
    ("host", "told"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("localhost", "http://localhost:80"),
        ("example.com", "http://example.com:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),
        ("::", "http://[::1]:80"),
        ("::1", "http://[::1]:80"),
        ("192.168.0.7", "http://192.168.0.7:80"),
    ],
)
def test_the_address_is_one_that_can_be_called(host: str, told: str) -> None:
    assert address(host, 80) == told


def test_device_and_precision_are_those_of_the_weights(tiny_model: Any) -> None:
    assert runs(Pipeline(tiny_model)) == "on cpu in fp32"
    model = make_model(8)
    assert runs(Pipeline(model.to(torch.bfloat16))) == "on cpu in bf16"
    quantise(model.lm)
    assert runs(Pipeline(model)) == "on cpu in int8"


def test_every_way_in_is_told_and_no_key(capsys: pytest.CaptureFixture[str]) -> None:
    announce("nano on cpu in fp32", "127.0.0.1", 80, ways(ServerConfig()))
    announce("nano", "::", 80, ways(ServerConfig(api_key=KEY, page_password=KEY, tools=True)))
    announce("2 replicas", "0.0.0.0", 80, ways(ServerConfig(api_key=KEY, page_password=KEY), page=False))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "mm-rwkv7 serves nano on cpu in fp32; Ctrl-C ends it",
        "  clients  http://127.0.0.1:80/v1, no key is wanted",
        "  page     http://127.0.0.1:80/, open to all",
        "mm-rwkv7 serves nano; Ctrl-C ends it",
        "  clients  http://[::1]:80/v1, with the API key as bearer token",
        "  page     http://[::1]:80/, for the user mm-rwkv7 with the page's password",
        "  tools    http://[::1]:80/tools/gradio_api/mcp/, with the API key as bearer token",
        "mm-rwkv7 serves 2 replicas; Ctrl-C ends it",
        "  clients  http://127.0.0.1:80/v1, with the API key as bearer token",
    ]


def test_replicas_offer_no_tools() -> None:
    with pytest.raises(ValueError, match="give either --replicas or --mcp"):
        serve_replicas(Opened("nano", "cpu", "fp32"), 2, "127.0.0.1", 80, ServerConfig(tools=True), EngineConfig())
