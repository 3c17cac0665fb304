"""Render prompts: messages and a model's template become the text that the model continues."""
