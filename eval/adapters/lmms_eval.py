"""lmms-eval: `python -m lmms_eval --model mm_rwkv7 --model_args pretrained=MODEL ...`, found by its entry point."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from lmms_eval.api.instance import GenerationResult
from lmms_eval.api.model import lmms
from PIL import Image
from tqdm import tqdm

from eval.adapters.adapter import Adapter
from eval.adapters.options import sampling

LONGEST = 128  # tokens written where a task does not say


def manifest() -> Any:
    """What the entry point gives: the model's name and its class."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("mm_rwkv7", simple_class_path=f"{__name__}.RWKV7Harness")


class RWKV7Harness(Adapter, lmms):
    """Reads a task's pictures and sounds before its text."""

    is_simple = True

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        found = []
        for request in tqdm(requests, desc="generate_until"):
            text, options, visuals, doc_id, task, split = request.args
            messages = question(text, self._media(visuals, doc_id, task, split))
            found.append(self.pipeline.chat(messages, sampling(options, LONGEST)).text)
        return found

    def loglikelihood(self, requests: Sequence[Any]) -> list[Any]:
        """(loss, greedy) each. The harness takes the least of a question's numbers for its answer, so they are not the
        logarithms that its documentation asks for but the same with the other sign. lmms-eval 0.7.3 makes a text of
        whatever a model returns, pairs too, unless it is wrapped as what was generated."""
        found: list[Any] = []
        bar = tqdm(total=len(requests), desc="loglikelihood")
        # The choices of a question differ in nothing but the second argument.
        for _, group in groupby(requests, key=lambda request: (request.args[0], *request.args[3:])):
            several = list(group)
            text, _, visuals, doc_id, task, split = several[0].args
            answers = [self._target(request.args) for request in several]
            read = self.pipeline.likelihood(question(text, self._media(visuals, doc_id, task, split)), answers)
            found += [GenerationResult(text=(-one.total, one.greedy)) for one in read]
            bar.update(len(several))
        bar.close()
        return found

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        raise NotImplementedError("tasks of several rounds build each prompt from the answer before; not done here")

    def _media(self, visuals: Any, doc_id: int, task: str, split: str) -> list[Any]:
        return list(visuals(self.task_dict[task][split][doc_id]) or ())

    def _target(self, arguments: Sequence[Any]) -> str:
        _, target, _, doc_id, task, split = arguments
        return str(target if isinstance(target, str) else target(self.task_dict[task][split][doc_id])).strip()


def question(text: str, media: Sequence[Any]) -> list[dict[str, Any]]:
    """One user's message: the pictures (PIL) and sounds (an `array` with its `sampling_rate`), then the text."""
    return [{"role": "user", "content": [*map(part, media), {"type": "text", "text": text}]}]


def part(medium: Any) -> dict[str, Any]:
    """A picture or a sound as a part of a message. Videos come as the name of a file and are refused."""
    if isinstance(medium, Image.Image):
        return {"type": "image", "image": medium}
    if isinstance(medium, Mapping) or hasattr(medium, "get_all_samples"):  # decoded, or decoding when it is asked
        return {"type": "audio", "audio": (medium["array"], int(medium["sampling_rate"]))}
    raise ValueError(f"the task shows {medium!r:.80}, expected a PIL picture or a sound with its sampling rate")
