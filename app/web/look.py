"""How the page looks: a quiet theme with the visitor's own fonts, so that nothing is fetched from elsewhere."""

from typing import Any

CSS = """
.gradio-container { width: 100%; max-width: 1180px !important; margin: 0 auto !important; }
#head { align-items: flex-start; flex-wrap: nowrap; }
#introduction h1 { display: inline; font-size: 1.35em; white-space: nowrap; margin-right: 0.5em; }
#introduction p { display: inline; color: var(--body-text-color-subdued); }
#theme { flex: none; min-width: 0 !important; width: auto; }
#introduction { flex: 1 1 0; }
#model { flex: 0 1 300px; }
#conversation-row { align-items: center; gap: 8px; }
#conversations { border-width: 1px !important; }
#chat .placeholder { padding-inline: var(--spacing-xl); text-align: center; }
#chat .message img, #chat .message-row img { max-height: 160px; width: auto; }
#conversations input { text-overflow: ellipsis; }
#chat .minimal-audio-player { height: 48px; }
#chat .minimal-audio-player .waveform-wrapper { height: 40px; display: flex; align-items: center; overflow: hidden; }
#chat .minimal-audio-player .waveform-wrapper > div { flex: 1; }
#chat .message-row { margin-block: 6px; }
#chat .message-row:has(.edit-textarea), #chat .message-row:has(.edit-textarea) > .flex-wrap { width: 100%; }
#chat .message-row:has(.edit-textarea) { max-width: calc(100% - var(--spacing-xl) * 4); }
#chat .edit-textarea { width: 100% !important; min-height: 5.5em; }
#chat button[aria-label="Share"] { display: none; }  /* it would send the picture to another host */
#figures { min-height: 1.6em; font-variant-numeric: tabular-nums; }
#figures p { color: var(--body-text-color-subdued); font-size: var(--text-sm); }
#question .stop-button { color: var(--button-cancel-text-color); }
#presets { gap: 8px; }
#presets button { flex: 0 1 auto; }
#examples button.gallery-item { max-width: 100%; }
#examples img { height: 44px !important; width: auto !important; border-radius: 4px; }
#examples audio { display: none; }
#spectrogram { padding-top: 2.2em; }
#spectrogram .icon-button-wrapper { display: none; }
#tags .confidence-set, #tags .label { font-family: var(--font); }
[data-testid="status-tracker"]:has(.error) { display: none !important; }  /* a message says it; the chat stays */
#too-many:not(:has(p)), #document-hint:not(:has(p)) { display: none; }
#too-many p { color: var(--error-text-color); }
footer { display: none !important; }
@media (max-width: 640px) {
  #introduction p { display: none; }
  #head { flex-wrap: wrap; }
  #model { flex: 1 0 100%; order: 1; }
  #chat { height: clamp(200px, 100dvh - 480px, 560px) !important; }
  #conversation-row { flex-wrap: wrap; }
  #conversations { flex: 1 0 100%; }
  #gallery-table .table-wrap { overflow-x: auto; }
  #gallery-table .upload-container { min-width: 560px; }  /* it holds the table, whose columns are parts of this */
  #tabs button[role=tab] { padding-inline: 5px; font-size: var(--text-sm); }
}
"""

# What Gradio gives no name for, for screen readers; and the figures are read out when an answer has come.
NAMES = """() => {
  const name = (where, text) => document.querySelectorAll(where).forEach(e => e.setAttribute('aria-label', text));
  name('#question textarea', 'Message');
  name('#conversations input', 'Conversation');
  name('#restore', 'Restore a saved conversation');
  name('#save', 'Save this conversation as a file');
  document.querySelectorAll('#figures, #too-many').forEach(e => e.setAttribute('role', 'status'));
}"""

SWITCH = "() => document.body.classList.toggle('dark')"


def theme() -> Any:
    import gradio as gr

    soft = gr.themes.Soft(
        primary_hue="teal",
        secondary_hue="teal",
        neutral_hue="slate",
        radius_size="lg",
        font=("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"),
        font_mono=("ui-monospace", "SFMono-Regular", "Menlo", "monospace"),
    )
    return soft.set(
        block_label_background_fill="*background_fill_primary",
        block_label_background_fill_dark="*background_fill_primary",
        block_label_text_color="*body_text_color_subdued",
        block_label_text_color_dark="*body_text_color_subdued",
        block_title_background_fill="none",
        block_title_background_fill_dark="none",
        block_title_text_color="*body_text_color_subdued",
        block_title_text_color_dark="*body_text_color_subdued",
        block_title_padding="0",
        body_background_fill="*neutral_50",
        body_text_color_subdued="*neutral_500",
        block_border_width="1px",
        checkbox_border_color="*neutral_400",
        checkbox_border_color_dark="*neutral_400",
        input_border_width="1px",
        input_border_color="*neutral_300",
        input_border_color_dark="*neutral_500",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_cancel_background_fill="*error_background_fill",
        button_cancel_background_fill_dark="#7f1d1d",
        button_cancel_text_color="*error_text_color",
        button_cancel_text_color_dark="#fecaca",
    )
