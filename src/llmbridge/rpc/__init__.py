"""The gRPC face: decode, call the use case, encode. No policy and no Redis in here."""
