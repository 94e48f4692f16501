"""lm-evaluation-harness: `python -m eval.adapters.lm_eval run --model mm_rwkv7 --model_args pretrained=MODEL ...`.

The harness knows no entry points; this module registers the model and then is its command line. Texts go to the
language model as they stand. With `--apply_chat_template` they go through the checkpoint's own prompt template.
"""

import sys
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from tqdm import tqdm

from eval.adapters.adapter import Adapter
from eval.adapters.options import sampling

LONGEST = 256  # tokens written where a task does not say


@register_model("mm_rwkv7")
class RWKV7Harness(Adapter, TemplateLM):
    """A context of any length is read whole: there is no window. The choices of a question are read side by side from
    one state."""

    @property
    def eot_token_id(self) -> int:
        return self.pipeline.tokenizer.end_id

    @property
    def tokenizer_name(self) -> str:
        return self.pipeline.name

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **options: Any) -> list[int]:
        return self.pipeline.tokenizer.encode(string)

    def chat_template(self, chat_template: bool | str = False) -> str:
        return repr(self.pipeline.model.config.template) if chat_template else ""

    def apply_chat_template(self, chat_history: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
        segments = self.pipeline.processor.segments(chat_history, generate=add_generation_prompt)
        return "".join(segment for segment in segments if isinstance(segment, str))

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        **options: Any,
    ) -> list[tuple[float, bool]]:
        found: list[tuple[float, bool]] = []
        bar = tqdm(total=len(requests), disable=disable_tqdm, desc="loglikelihood")
        for context, group in groupby(requests, key=lambda request: request[1]):
            several = list(group)
            read = self.pipeline.token_likelihood(context, [continuation for _, _, continuation in several])
            for (texts, _, _), one in zip(several, read, strict=True):
                found.append((one.total, one.greedy))
                self.cache_hook.add_partial("loglikelihood", texts, found[-1])
            bar.update(len(several))
        bar.close()
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """The state is carried from the beginning of each text to its end."""
        found = []
        for request in tqdm(requests, disable=disable_tqdm, desc="loglikelihood_rolling"):
            (text,) = request.args
            ids = self.tok_encode(text)
            found.append(self.pipeline.token_likelihood([self.eot_token_id], [ids])[0].total if ids else 0.0)
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, found[-1])
        return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        found = []
        for request in tqdm(requests, disable=disable_tqdm, desc="generate_until"):
            text, options = request.args
            found.append(self.pipeline.generate(text, sampling(options, LONGEST)).text)
            self.cache_hook.add_partial("generate_until", request.args, found[-1])
        return found


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    sys.exit(cli_evaluate())
