"""Language and vision models behind an OpenAI-compatible HTTP endpoint."""
