"""Assembly of a bridge process: what it starts, in which order, and how it ends."""
