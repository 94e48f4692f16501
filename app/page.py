"""The web page: where everything stands, and which handler answers to what."""

import gradio as gr

from app.conversation import Visitors
from app.handlers import Handlers
from app.media_panel import AT_ONCE, picture_and_sound
from mm_rwkv7.pipeline import Pipeline
from mm_rwkv7.sampling import Sampling

INTRODUCTION = """# mm-rwkv7
Ask about a {media}. The model reads it once into a small state and answers every question from there:
RWKV-7, a recurrent network without attention."""
LONGEST = 1024  # tokens of an answer that a visitor may ask for
UPLOADS_KEPT = 3600  # seconds


def build(pipeline: Pipeline) -> gr.Blocks:
    """The page around a pipeline. Each visitor, that is each open tab, has a conversation of their own."""
    handlers = Handlers(pipeline, Visitors(pipeline))
    media = "picture" if pipeline.model.sound is None else "picture or a sound"
    with gr.Blocks(title="mm-rwkv7", analytics_enabled=False, delete_cache=(UPLOADS_KEPT, UPLOADS_KEPT)) as page:
        gr.Markdown(INTRODUCTION.format(media=media), elem_id="introduction")
        asking = f"Ask about the {media.replace(' a ', ' the ')}"  # both may be there, whichever tab is open
        question = gr.Textbox(label="Question", placeholder=asking, max_lines=4, elem_id="question", render=False)
        with gr.Row():
            with gr.Column(scale=5, min_width=320):
                picture, sound = picture_and_sound(handlers, question)
            with gr.Column(scale=6, min_width=320):
                chat = _chat(f"Choose a {media}, then ask about it.")
                question.render()
                with gr.Row():
                    ask = gr.Button("Ask", variant="primary", min_width=110, elem_id="ask")
                    stop = gr.Button("Stop", variant="stop", min_width=110, interactive=False, elem_id="stop")
                    describe = gr.Button("Describe", min_width=110, elem_id="describe")
                    clear = gr.Button("Clear", min_width=110, elem_id="clear")
                figures = gr.Markdown(elem_id="figures")
                controls = _controls(pipeline.model.config.max_new_tokens)

        inputs = [picture, sound, question, *controls]
        shown = [chat, question, figures, stop]
        submitted = [ask.click, question.submit]
        asked = gr.on(submitted, handlers.ask, inputs, shown, api_name="ask", show_progress="hidden")
        described = describe.click(handlers.describe, inputs, shown, api_name="describe", show_progress="hidden")
        for event in (asked, described):
            event.failure(handlers.idle, None, stop, **AT_ONCE)
        stop.click(handlers.stop, None, None, **AT_ONCE)
        gr.on(
            [clear.click, chat.clear],
            handlers.clear,
            None,
            [picture, sound, *shown],
            cancels=[asked, described],
            **AT_ONCE,
        )
        changes = [component.change for component in (picture, sound)]
        gr.on(changes, handlers.change, None, [chat, figures], **AT_ONCE)
    return page


def _chat(placeholder: str) -> gr.Chatbot:
    return gr.Chatbot(
        label="Conversation",
        height=400,
        placeholder=placeholder,
        render_markdown=False,  # an answer is plain text: nothing in it becomes a link or a picture
        feedback_options=None,
        buttons=[],
        elem_id="chat",
    )


def _controls(max_new_tokens: int) -> list[gr.components.Component]:
    """In the order in which the handlers take them."""
    usual = Sampling()
    with gr.Accordion("How it answers", open=False):
        follow_up = gr.Checkbox(
            label="Remember earlier questions", info="Otherwise each one starts afresh from the picture."
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
                1, LONGEST, min(max_new_tokens, LONGEST), step=1, label="Most tokens", info="Of one answer."
            )
            seed = gr.Number(0, precision=0, minimum=0, label="Seed", info="0: another one each time.")
    return [follow_up, temperature, top_p, top_k, presence, count, decay, most, seed]
