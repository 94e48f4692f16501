"""The page's chat: where everything in it stands, and which handler answers to what."""

from typing import Any

import gradio as gr

from app.web.handlers import Handlers
from app.web.media_panel import AT_ONCE, camera, examples, heard
from app.web.uploads import MOST
from mm_rwkv7.sampling import Sampling

LONGEST = 1024  # tokens of an answer that a visitor may ask for
TOO_MANY = f"""said => (said?.files?.length ?? 0) > {MOST}
    ? `${{said.files.length}} files: one message takes at most {MOST}.` : ''"""


def chat_tab(handlers: Handlers) -> None:
    model = handlers.engine.pipeline.model
    senses = [name for name, there in (("pictures", model.tower), ("sounds", model.sound)) if there is not None]
    with gr.Row(elem_id="chat-row"):
        with gr.Column(scale=7, min_width=320):
            with gr.Row(elem_id="conversation-row"):
                conversations = gr.Dropdown(
                    [("1 · new", 1)],
                    value=1,
                    label="Conversation",
                    show_label=False,
                    container=False,
                    filterable=False,
                    scale=3,
                    elem_id="conversations",
                )
                new, fork, save = (
                    gr.Button(label, size="sm", min_width=60, elem_id=label.lower())
                    for label in ("New", "Fork", "Save")
                )
                restore = gr.UploadButton(
                    "Restore", type="filepath", file_types=[".safetensors"], size="sm", min_width=60, elem_id="restore"
                )
                reopen = gr.Button("Reopen", visible=False, size="sm", min_width=60, elem_id="reopen")
                saved = gr.DownloadButton("Download", visible="hidden", elem_id="saved")
            chat = _chat(senses)
            figures = gr.Markdown(elem_id="figures")
            question = _question(senses)
            told = gr.Markdown(elem_id="too-many")
            question.change(None, question, told, js=TOO_MANY, **AT_ONCE)
            with gr.Row(elem_id="presets"):
                buttons = [gr.Button(label, size="sm", min_width=90) for label in handlers.presets]
                tagging = model.sound is not None and model.sound.head is not None
                tags = gr.Button("Tags", size="sm", min_width=60, visible=tagging, elem_id="tag")
        with gr.Column(scale=4, min_width=300):
            asked = [question.submit, *(button.click for button in buttons)]
            left = [new.click, conversations.input, chat.clear, chat.undo, restore.upload, reopen.click]
            heard(handlers, question, asked, tags, left)
            examples(handlers, question)
            if model.tower is not None:
                camera(question)
            controls = _controls(handlers)

    shown = [chat, question, figures, conversations]
    writing: dict[str, Any] = {"inputs_kwargs": controls, "show_progress": "hidden", "trigger_mode": "multiple"}
    answered = [question.submit(handlers.ask, question, shown, api_name="ask", **writing)]
    for number, (button, label) in enumerate(zip(buttons, handlers.presets, strict=True)):
        name: dict[str, Any] = {"api_name": "describe"} if number == 0 else {"api_visibility": "private"}
        answered.append(button.click(handlers.preset(label), question, shown, **name, **writing))
    answered.append(chat.retry(handlers.retry, None, shown, api_name="retry", **writing))
    answered.append(chat.edit(handlers.edit, None, shown, api_visibility="private", **writing))
    for event in answered:
        event.failure(handlers.idle, None, [chat, question], **AT_ONCE)
    question.stop(handlers.stop, None, None, **AT_ONCE)
    quiet: dict[str, Any] = {"show_progress": "hidden"}  # in the queue: outside, Gradio 6.31 shows no refusals
    chat.undo(handlers.undo, None, shown, api_name="undo", **quiet)
    closed = chat.clear(handlers.close, None, shown, api_name="close", **quiet)
    reopened = reopen.click(handlers.reopen, None, shown, api_name="reopen", **quiet)
    for event in (closed, reopened):
        event.success(handlers.reopenable, None, reopen, **AT_ONCE)
    new.click(handlers.new, None, shown, api_name="new", **quiet)
    fork.click(handlers.fork, None, shown, api_name="fork", **quiet)
    conversations.input(handlers.show, conversations, shown, api_name="show", **quiet)
    restore.upload(handlers.restore, restore, shown, api_name="restore", **quiet)
    ready = save.click(handlers.save, None, saved, api_name="save", **quiet)
    ready.success(None, None, None, js="() => document.querySelector('#saved').click()", **AT_ONCE)


def _chat(senses: list[str]) -> gr.Chatbot:
    ask = f"Send {' or '.join(senses)} and ask about them." if senses else "Say something."
    return gr.Chatbot(
        label="Chat",
        show_label=False,
        height="clamp(240px, 100dvh - 420px, 560px)",
        placeholder=ask,
        render_markdown=False,  # an answer is plain text: nothing in it becomes a link or a picture
        editable="user",
        group_consecutive_messages=False,  # Gradio 6.31 fails to edit a text that shares its bubble with a picture
        feedback_options=None,
        buttons=["copy"],
        elem_id="chat",
    )


def _question(senses: list[str]) -> gr.MultimodalTextbox:
    kinds = {"pictures": "image", "sounds": "audio"}
    return gr.MultimodalTextbox(
        label="Message",
        show_label=False,
        placeholder="Ask something",
        file_count="multiple",
        file_types=[kinds[name] for name in senses] or None,
        sources=["upload", "microphone"] if "sounds" in senses else ["upload"],
        max_lines=6,
        autofocus=True,
        elem_id="question",
    )


def _controls(handlers: Handlers) -> dict[str, gr.components.Component]:
    """By the names under which the handlers take them: those of `Sampling`, and `remember`."""
    usual, config = Sampling(), handlers.engine.pipeline.model.config
    with gr.Accordion("How it answers", open=False):
        remember = gr.Checkbox(
            config.vocabulary is None,  # a model with a vocabulary of its own knows single questions
            label="Remember earlier questions",
            info="Otherwise each one comes right after the latest pictures and sounds.",
            elem_id="remember",
        )
        with gr.Row():
            temperature = gr.Slider(
                0, 2, usual.temperature, step=0.05, label="Temperature", info="0 takes the likeliest."
            )
            top_p = gr.Slider(0, 1, usual.top_p, step=0.01, label="Top-p", info="Mass sampled from.")
            top_k = gr.Slider(0, 200, usual.top_k, step=1, label="Top-k", info="0 leaves all.")
        with gr.Row():
            presence = gr.Slider(
                0, 2, usual.presence_penalty, step=0.05, label="Presence penalty", info="Once per token used."
            )
            count = gr.Slider(0, 2, usual.count_penalty, step=0.05, label="Count penalty", info="Each time it is used.")
            decay = gr.Slider(0.9, 1, usual.penalty_decay, step=0.001, label="Penalty decay", info="Counts fade by it.")
        with gr.Row():
            most = gr.Slider(
                1, LONGEST, min(config.max_new_tokens, LONGEST), step=1, label="Most tokens", info="Of one answer."
            )
            seed = gr.Number(0, precision=0, minimum=0, label="Seed", info="0: another one each time.")
    return {
        "remember": remember,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "presence_penalty": presence,
        "count_penalty": count,
        "penalty_decay": decay,
        "max_new_tokens": most,
        "seed": seed,
    }
