"""What readers do: attach to a stream at a place, and get one message after the other until the completion."""
