"""The HTTP interface: OpenAI's shape, over the engine. `app.server` puts it together."""
