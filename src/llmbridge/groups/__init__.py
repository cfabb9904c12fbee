"""What workers do: share a log's entries as members of a consumer group, settle them, and look after what went wrong."""
