"""The one endpoint that clients know: OpenAI and Anthropic routes by model name, in front of every engine."""
