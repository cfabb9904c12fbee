"""Fan-out: each stream that is read here is read once and encoded once, for all its live readers.

`tail` is one stream's recent records, `fanout` keeps the tails of this process fresh. Neither knows who reads, nor
over what.
"""
