import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

STEP = 0.02  # seconds a token of the slow page takes, however fast the machine is


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pictures")
    paths = {name: folder / f"{name}.png" for name in ("red", "blue")}
    for name, path in paths.items():
        Image.new("RGB", (40, 40), name).save(path)
    return paths


@dataclass
class SlowPage:
    """A page whose whole answers take 12 seconds, and the tokens that it has written."""

    url: str
    tokens: int = 0


@pytest.fixture(scope="module")
def slow_page(endless_model: Any) -> Iterator[SlowPage]:
    """Served from this process."""
    from app.page import build
    from app.serving import launch
    from mm_rwkv7.pipeline import Pipeline
    from mm_rwkv7.sampling import Sampler

    sample = Sampler.__call__

    def slowly(sampler: Sampler, logits: Any) -> int:
        time.sleep(STEP)
        served.tokens += 1
        return sample(sampler, logits)

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    served = SlowPage(f"http://127.0.0.1:{port}")
    page = build(Pipeline(endless_model, "endless"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sampler, "__call__", slowly)
        launch(page, "127.0.0.1", port)
        yield served
        page.close()
