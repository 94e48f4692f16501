"""A folder that `export` wrote, in a process that knows nothing of it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mm_rwkv7.config import MMConfig
from mm_rwkv7.hf import MMRWKV7ForConditionalGeneration, MMRWKV7Processor, export, register
from mm_rwkv7.pipeline import Pipeline
from mm_rwkv7.sampling import Sampling
from mm_rwkv7.sources import BUNDLED

ROOT = Path(__file__).resolve().parents[3]
PICTURES = [str(ROOT / "app" / "examples" / f"scene-{number}.png") for number in (19, 23)]
QUESTIONS = ("What is this?", "What colour is the largest thing in the picture?")

LOAD = """
import json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
folder, conversations = sys.argv[1], json.loads(sys.argv[2])
assert "mm_rwkv7" not in sys.modules
pipe = pipeline("image-text-to-text", folder, trust_remote_code=True)
answers = pipe(text=conversations, return_full_text=False, batch_size=2)
lm = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
hello = [{"role": "user", "content": "Hello"}]
ids = tokenizer.apply_chat_template(hello, add_generation_prompt=True, return_dict=False)
print(json.dumps([[answer[0]["generated_text"] for answer in answers], type(lm).__name__, ids]))
"""
MISSING = """
import sys
sys.modules["mm_rwkv7"] = None  # as if it were not installed
from transformers import AutoModelForCausalLM
AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
"""


@pytest.fixture(scope="module")
def nano() -> Pipeline:
    return Pipeline.from_pretrained("nano", "cpu", "fp32")


@pytest.fixture(scope="module")
def folder(nano: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "nano"
    export(nano.model, folder, "# nano\n")
    return folder


def fresh_process(folder: Path, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "HF_MODULES_CACHE": str(folder.parent / "modules"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-c", code, str(folder), *arguments]
    return subprocess.run(
        command, env=environment, cwd=folder.parent, capture_output=True, text=True, timeout=300, check=False
    )


def conversation(question: str, picture: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": question}]}]


@pytest.mark.slow
def test_a_fresh_process_answers_as_we_do(folder: Path, nano: Pipeline) -> None:
    conversations = [conversation(*asked) for asked in zip(QUESTIONS, PICTURES, strict=True)]
    done = fresh_process(folder, LOAD, json.dumps(conversations))
    assert done.returncode == 0, done.stderr
    answers, model, ids = json.loads(done.stdout)
    expected = [nano.chat(messages, Sampling(temperature=0)).text for messages in conversations]
    assert [answer.strip() for answer in answers] == expected
    assert model == "MMRWKV7ForConditionalGeneration"
    assert ids == nano.processor([{"role": "user", "content": "Hello"}]).ids[0].tolist()


@pytest.mark.slow
def test_without_the_package_a_process_is_told_what_to_install(folder: Path) -> None:
    done = fresh_process(folder, MISSING)
    assert done.returncode != 0
    assert "ImportError: this model needs the package mm-rwkv7" in done.stderr


def test_the_auto_classes_know_ours_once_registered(folder: Path, nano: Pipeline) -> None:
    from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor

    register()
    register()
    assert AutoConfig.from_pretrained(folder).core == nano.model.config
    model = AutoModelForImageTextToText.from_pretrained(folder)
    assert type(model) is MMRWKV7ForConditionalGeneration
    assert torch.equal(model.model.lm.head.weight, nano.model.lm.head.weight)
    processor = AutoProcessor.from_pretrained(folder)
    assert type(processor) is MMRWKV7Processor
    assert AutoImageProcessor.from_pretrained(folder).to_dict() == processor.image_processor.to_dict()


def test_the_bundled_model_comes_back_as_it_is(folder: Path, tmp_path: Path) -> None:
    MMRWKV7ForConditionalGeneration.from_pretrained(folder).to_native(tmp_path / "nano", "# nano\n", torch.float16)
    assert MMConfig.load(tmp_path / "nano" / "config.json") == MMConfig.load(BUNDLED["nano"] / "config.json")
    found, expected = (load_file(home / "model.safetensors") for home in (tmp_path / "nano", BUNDLED["nano"]))
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype == expected[name].dtype, name
        assert torch.equal(tensor, expected[name]), name


def test_export_stores_the_weights_once(folder: Path) -> None:
    weights = [file for file in folder.iterdir() if file.suffix in (".safetensors", ".bin")]
    assert [file.name for file in weights] == ["model.safetensors"]
    assert (folder / "README.md").read_text("utf-8") == "# nano\n"
    code = (folder / "remote_code.py").read_text("utf-8")
    assert code == (ROOT / "mm_rwkv7" / "hf" / "remote_code.py").read_text("utf-8")


def test_only_a_save_of_the_same_kind_is_replaced(nano: Pipeline, folder: Path, tmp_path: Path) -> None:
    export(nano.model, folder, "# nano\n")
    model = MMRWKV7ForConditionalGeneration.from_core(nano.model)
    native = tmp_path / "native"
    for _ in range(2):
        model.to_native(native, "# nano\n")
    with pytest.raises(ValueError, match="is not \\(only\\) an export"):
        export(nano.model, native, "# nano\n")
    (native / "notes.txt").write_text("kept", "utf-8")
    for taken in (native, folder):
        with pytest.raises(ValueError, match="is not \\(only\\) a checkpoint"):
            model.to_native(taken, "# nano\n")
    assert (native / "notes.txt").exists()
    (tmp_path / "file").write_text("kept", "utf-8")
    with pytest.raises(ValueError, match="is not \\(only\\) an export"):
        export(nano.model, tmp_path / "file", "# nano\n")
