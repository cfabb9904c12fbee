"""Parts killed, cut off and restarted for real, in bounded time."""
