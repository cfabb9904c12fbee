"""What workers do: share a log's entries as members of a consumer group, settle them, and see to what went wrong."""
