import os
import random
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from mm_rwkv7.model import MMRWKV7

TEXTS = ("User: What is in the picture?", "Assistant: a red square", "Describe the picture.", "\n\n")


@pytest.fixture
def seed() -> int:
    """A new one in every run; what fails names it."""
    return random.SystemRandom().randrange(2**31)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data that MM_RWKV7_DATA names; the test skips when the variable is not set."""
    value = os.environ.get("MM_RWKV7_DATA")
    if not value:
        pytest.skip("MM_RWKV7_DATA is not set: no real data here")
    folder = Path(value).resolve()
    if not folder.is_dir():
        raise ValueError(f"MM_RWKV7_DATA is {value!r}, expected an existing folder")
    return folder


def make_model(max_new_tokens: int) -> "MMRWKV7":
    """A small model with random weights whose answers are printable and end at `max_new_tokens`: one unit of
    the head's input is constant, and the head turns it against the end of text and every line break."""
    import torch

    from encoders.timm_tower import TimmTowerConfig
    from mm_rwkv7.config import MMConfig
    from mm_rwkv7.initialisation import initialise
    from mm_rwkv7.model import MMRWKV7
    from mm_rwkv7.projector import ProjectorConfig
    from mm_rwkv7.rwkv7 import RWKV7Config
    from mm_rwkv7.tokenizer import Tokenizer

    vocabulary = Tokenizer.trim(TEXTS)
    ranks = {"decay_rank": 8, "iclr_rank": 8, "value_rank": 8, "gate_rank": 8}
    config = MMConfig(
        RWKV7Config(len(vocabulary), width=128, layers=2, **ranks),
        TimmTowerConfig("test_vit", 32),
        ProjectorConfig(64, 64),
        vocabulary,
        max_new_tokens=max_new_tokens,
    )
    tokenizer = Tokenizer(vocabulary)
    printable = torch.tensor([tokenizer.token_bytes(i).strip(b" ").isalnum() for i in range(tokenizer.size)])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MMRWKV7(config).eval()
        initialise(model.lm)
        with torch.no_grad():
            for parameter in (model.lm.emb.weight, model.lm.head.weight):
                parameter.normal_()
            for block in model.lm.blocks:  # what was read must be heard
                block.time_mix.key.weight.mul_(10)
                block.time_mix.output.weight.normal_()
                block.channel_mix.value.weight.normal_(std=0.25)
            model.lm.ln_out.weight[0] = 0
            model.lm.ln_out.bias[0] = 1
            model.lm.head.weight[:, 0] = torch.where(printable, 0.0, -1000.0)
    return model


@pytest.fixture(scope="session")
def tiny_model() -> "MMRWKV7":
    """An MMRWKV7 with random weights that always writes 8 tokens. It is shared: leave it as it is."""
    return make_model(max_new_tokens=8)


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_model: "MMRWKV7", tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_model` as a native checkpoint's folder."""
    from mm_rwkv7 import checkpoint

    folder = tmp_path_factory.mktemp("tiny") / "model"
    checkpoint.save(tiny_model, folder, "# tiny\n")
    return folder


@pytest.fixture(scope="session")
def listening_model(tiny_model: "MMRWKV7") -> "MMRWKV7":
    """`tiny_model` with ears. It is shared: leave it as it is."""
    from tests.ears import give_ears

    return give_ears(tiny_model)


@pytest.fixture(scope="session")
def listening_checkpoint(listening_model: "MMRWKV7", tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`listening_model` as a native checkpoint's folder."""
    from mm_rwkv7 import checkpoint

    folder = tmp_path_factory.mktemp("listening") / "model"
    checkpoint.save(listening_model, folder, "# listening\n")
    return folder


@pytest.fixture(scope="session")
def endless_model() -> "MMRWKV7":
    """Like `tiny_model`, but it writes 600 tokens: an answer that there is time to stop."""
    return make_model(max_new_tokens=600)


def pytest_configure() -> None:
    from hypothesis import HealthCheck, settings

    # How long an example takes, or the drawing of it, depends on who else uses the machine.
    settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("unhurried")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
