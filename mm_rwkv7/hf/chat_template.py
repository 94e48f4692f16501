"""The prompt template of a checkpoint in jinja, as transformers wants it: the same ids as from our Processor."""

import json

from mm_rwkv7.config import PromptTemplate
from mm_rwkv7.hf.tokenization import AUDIO, END, IMAGE, MMRWKV7Tokenizer

# Turn by turn as `Processor.segments`; NAMES in capitals stand for the template's texts.
_JINJA = """
{%- if not messages -%}{{ raise_exception("there are no messages") }}{%- endif -%}
{%- for message in messages -%}
{%- set role = message["role"] -%}
{%- if role not in ["system", "user", "assistant"] -%}
{{ raise_exception("a message has role '" ~ role ~ "', expected one of system, user, assistant") }}
{%- endif -%}
{%- if "content" not in message -%}{{ raise_exception("a message has no content") }}{%- endif -%}
{%- set text = {"type": "text", "text": message["content"]} -%}
{%- set parts = [text] if message["content"] is string else message["content"] -%}
{#- `after` is the text that follows a picture, written once something follows it. -#}
{%- set turn = namespace(after="", words=false, line=false, empty=true) -%}
{{- SYSTEM if role == "system" else USER if role == "user" else ASSISTANT -}}
{%- for part in parts -%}
{%- if part is not mapping or "type" not in part -%}
{{ raise_exception("a message has a part without a type, expected text or image") }}
{%- endif -%}
{%- if part["type"] == "image" -%}
{%- if role != "user" -%}{{ raise_exception("a picture is from '" ~ role ~ "', expected 'user'") }}{%- endif -%}
{{- turn.after ~ BEFORE_IMAGE ~ IMAGE -}}
{%- set turn.after, turn.line, turn.empty = AFTER_IMAGE, false, false -%}
{%- elif part["type"] == "text" -%}
{%- if part["text"] is not string -%}{{ raise_exception("a message has a text that is no string") }}{%- endif -%}
{%- for token in SPECIAL if token in part["text"] -%}
{{ raise_exception("a text holds " ~ token ~ ", which stands for something else") }}
{%- endfor -%}
{%- for line in part["text"].strip().splitlines() if line.strip() -%}
{{- turn.after -}}
{%- if turn.line -%}{{- "\\n" -}}{%- elif role == "assistant" -%}{{- ANSWER -}}{%- endif -%}
{{- line -}}
{%- set turn.after, turn.line, turn.words, turn.empty = "", true, true, false -%}
{%- endfor -%}
{%- else -%}
{{ raise_exception("a message has a part of type '" ~ part["type"] ~ "', expected text or image") }}
{%- endif -%}
{%- endfor -%}
{%- if role == "user" and (turn.empty or loop.last and add_generation_prompt and not turn.words) -%}
{{ raise_exception("the question is empty") }}
{%- endif -%}
{%- if not (role == "user" and loop.last and not turn.words) -%}{{- turn.after ~ TURN_END -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{%- if messages[-1]["role"] != "user" -%}
{{ raise_exception("the last message is from '" ~ messages[-1]["role"] ~ "', expected 'user'") }}
{%- endif -%}
{{- ASSISTANT -}}
{%- endif -%}
"""


def chat_template(template: PromptTemplate, tokenizer: MMRWKV7Tokenizer) -> str:
    """`template` as jinja.

    Our Processor tokenizes a prompt's pieces each by itself, transformers the text between two pictures in one go.
    A ValueError says so where that would not give the same ids.
    """
    if template.images_first or template.image_start is not None or template.image_end is not None:
        raise ValueError(
            "the prompt template sets pictures before the turn or between marks, and the transformers adapter cannot: "
            "use mm_rwkv7.Pipeline"
        )
    starts = (template.system, template.user, template.assistant)
    for left, right in [*((template.turn_end, start) for start in starts), (template.assistant, template.turn_end)]:
        _check_seam(left, right, tokenizer)
    _check_seam(template.assistant, template.answer, tokenizer)
    before, _, after = template.image.partition("{image}")
    texts = {
        "SYSTEM": template.system,
        "USER": template.user,
        "ASSISTANT": template.assistant,
        "ANSWER": template.answer,
        "TURN_END": template.turn_end,
        "BEFORE_IMAGE": before,
        "AFTER_IMAGE": after,
        "IMAGE": IMAGE,
        "SPECIAL": [END, IMAGE, AUDIO],
    }
    named = "".join(f"{{%- set {name} = {json.dumps(text, ensure_ascii=False)} -%}}\n" for name, text in texts.items())
    return named + _JINJA.strip()


def _check_seam(left: str, right: str, tokenizer: MMRWKV7Tokenizer) -> None:
    """No token may hold the end of `left` and the beginning of `right`."""
    seam = left.encode()[-1:] + right.encode()[:1]
    native = tokenizer.native
    if len(seam) < 2 or any(seam in native.token_bytes(token) for token in range(native.size)):
        raise ValueError(
            f"the prompt template has {left!r} before {right!r}: a token may lie across, no jinja can cut it: "
            "use mm_rwkv7.Pipeline"
        )
