"""A model behind OpenAI's protocol, and a page to talk with it."""
