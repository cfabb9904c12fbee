"""The wire contract, generated from protos/llmbridge/v1 (`make generate`); nothing here is written by hand."""
