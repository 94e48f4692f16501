"""The web page: chats, many files, long texts, what a state holds. `page.build` puts it together over an engine."""
