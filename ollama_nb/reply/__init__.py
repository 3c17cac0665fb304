"""Parse replies: the text that a model generates becomes content, thinking and tool calls. No text is lost."""
