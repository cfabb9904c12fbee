"""What producers do, and what is done to their streams: append, cancel, keep alive, find the lost."""
