"""Reply back: text as a model writes it, read into content, thinking and tool calls. No text is ever lost."""
