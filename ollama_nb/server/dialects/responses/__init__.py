"""OpenAI's Responses API: ``/v1/responses``, with stored conversations and responses in the background."""
