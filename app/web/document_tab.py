"""The page's tab for a long text: read once with a progress bar, asked many times, its state taken away and back."""

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.processing_utils import save_bytes_to_cache
from gradio.utils import get_upload_folder

from app.document import load_document, portions, read_in
from app.media import user_message
from app.models import Engines
from app.requests import Request
from app.state_files import dump, load
from app.web.growing import growing
from app.web.media_panel import AT_ONCE
from app.web.progress_bar import progress_bar, progress_place
from app.web.refusals import REFUSED, refusals_as_messages
from app.web.shelf import Handle, Shelf, size_of
from app.web.stop_button import stop_button, stoppable, stoppable_until
from mm_rwkv7.pipeline import Timings
from mm_rwkv7.state import State

KEPT = 512 << 20  # bytes of all visitors' states; the ones used least recently go
FILE = "document.safetensors"
FEW_WORDS = (
    "**This model knows no texts:** it has the words of questions about pictures and sounds, and spells all others. "
    "It will read a text, and can say little about it."
)
Outputs = tuple[Any, ...]
Turns = list[dict[str, Any]]


def add_document(engines: Engines, model: gr.components.Component) -> None:
    """The tab's components, inside the running `gr.Blocks`. `model` holds the name of the model that is asked."""
    shelf = Shelf(KEPT)

    def read(name: str, file: str | None, pasted: str) -> Iterator[Outputs]:
        """Read a text, of a file or else a pasted one, so that it can be asked about."""
        with refusals_as_messages([file] if file else []), engines(name) as engine:
            if not file and not pasted.strip():
                raise ValueError("there is no text to read")
            pieces = portions(engine.pipeline, load_document(file) if file else pasted)
            total, began = sum(map(len, pieces)), time.perf_counter()
            yield progress_bar(0, total, f"0 of {total:,} tokens read"), None, [], [], _nothing_to_take()
            for state in read_in(engine, pieces):
                told = f"{state.tokens_seen:,} of {total:,} tokens read"
                yield progress_bar(state.tokens_seen, total, told), *[gr.skip()] * 4
            took = time.perf_counter() - began
            yield ready(state, f"{total:,} tokens read in {took:,.1f} s")

    def bring(name: str, file: str) -> Iterator[Outputs]:
        """Go on from the state of a document that was read before: what lies there is another one."""
        with refusals_as_messages([file]), engines(name) as engine:
            state = load(Path(file).read_bytes(), engine.pipeline)
            yield *ready(state, f"{state.tokens_seen:,} tokens were read before"), None, ""

    def ready(state: State, told: str) -> Outputs:
        told = f"{told}; what is remembered takes {size_of(state) / 1e6:.2f} MB"
        path = save_bytes_to_cache(dump(state), FILE, get_upload_folder())
        return progress_bar(1, 1, told), shelf.put(state), [], [], gr.DownloadButton(value=path, interactive=True)

    def ask(name: str, document: Handle | None, question: str, turns: Turns) -> Iterator[Outputs]:
        """Answer a question from the state after the document, whatever was asked before."""
        with refusals_as_messages(), engines(name) as engine:
            if document is None:
                raise ValueError("no document has been read yet")
            request = Request(user_message(question), state=shelf.get(document))
            turns = [*turns, {"role": "user", "content": question}]
            with engine.submit(request) as ticket:
                for text in growing(ticket):
                    yield *_said(turns, text), "", "Writing …"
                answer = ticket.result()
            yield *_said(turns, answer.text), "", _figures(answer.timings)

    def hint(name: str) -> str:
        with suppress(*REFUSED), engines(name) as engine:
            return "" if engine.pipeline.model.config.vocabulary is None else FEW_WORDS
        return ""  # the tab of the chat says why the model cannot be used

    gr.Markdown(
        "A text of any length is read once, at constant memory, and every question is answered from the state after it."
    )
    gr.on(None, hint, model, gr.Markdown(elem_id="document-hint"), api_visibility="private", show_progress="hidden")
    document = gr.State(None)
    said = gr.State([])  # the chat itself is never an input: it would open any file that a client names
    with gr.Row():
        file = gr.File(label="Text file", file_types=[".txt", ".md"], height=160, scale=1, elem_id="document-file")
        pasted = gr.Textbox(label="Or the text itself", lines=5, max_lines=5, scale=2, elem_id="document-text")
    with gr.Row():
        run = gr.Button("Read", variant="primary", min_width=110, elem_id="document-read")
        stop = stop_button("document-stop")
        take = gr.DownloadButton("Take the state", interactive=False, min_width=110, elem_id="document-take")
        back = gr.UploadButton("Bring a state", file_types=[".safetensors"], min_width=110, elem_id="document-bring")
    progress = progress_place("document-progress")
    chat = gr.Chatbot(
        label="Questions and answers",
        height=300,
        render_markdown=False,
        feedback_options=None,
        buttons=[],
        elem_id="document-chat",
    )
    with gr.Row():
        question = gr.Textbox(label="Question about it", max_lines=4, scale=5, elem_id="document-question")
        send = gr.Button("Ask", variant="primary", min_width=110, scale=1, elem_id="document-ask")
    figures = gr.Markdown(elem_id="document-figures")

    shown = [progress, document, said, chat, take]
    stoppable(stop, "read", [run.click])
    stoppable(stop, "ask", [send.click, question.submit])
    reading = run.click(read, [model, file, pasted], shown, api_name="read_document", show_progress="hidden")
    back.upload(bring, [model, back], [*shown, file, pasted], api_visibility="private", show_progress="hidden")
    asking = gr.on(
        [send.click, question.submit],
        ask,
        [model, document, question, said],
        [said, chat, question, figures],
        api_name="ask_document",
        show_progress="hidden",
    )
    chat.clear(list, None, said, **AT_ONCE)
    stop.click(lambda: "", None, figures, cancels=[reading, asking], **AT_ONCE)
    stoppable_until(stop, "read", reading)
    stoppable_until(stop, "ask", asking)


def _said(turns: Turns, answer: str) -> tuple[Turns, Turns]:
    """With the answer, to be kept and to be shown."""
    turns = [*turns, {"role": "assistant", "content": answer}]
    return turns, turns


def _figures(timings: Timings) -> str:
    return f"first token after {timings.first_token_s:.2f} s · {timings.decode_tokens_per_s:,.0f} tokens a second"


def _nothing_to_take() -> Any:
    return gr.DownloadButton(value=None, interactive=False)
