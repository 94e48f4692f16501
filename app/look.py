"""How the page looks: a quiet theme with the visitor's own fonts, so that nothing is fetched from elsewhere."""

from typing import Any

CSS = """
.gradio-container { width: 100%; max-width: 1120px !important; margin: 0 auto !important; }
#introduction h1 { margin-bottom: 0.2em; }
#introduction p { color: var(--body-text-color-subdued); max-width: 46em; }
#figures { min-height: 1.6em; font-variant-numeric: tabular-nums; }
#figures p { color: var(--body-text-color-subdued); font-size: var(--text-sm); }
#spectrogram { padding-top: 2.2em; }
#spectrogram .icon-button-wrapper { display: none; }
#tags .confidence-set, #tags .label { font-family: var(--font); }
footer { display: none !important; }
"""


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
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_cancel_background_fill="*error_background_fill",
        button_cancel_background_fill_dark="#7f1d1d",
        button_cancel_text_color="*error_text_color",
        button_cancel_text_color_dark="#fecaca",
    )
