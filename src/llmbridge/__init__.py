"""llmbridge: carries language models' tokens from producers to readers, every token, once, in order, with an end."""

__version__ = "0.1.0"
