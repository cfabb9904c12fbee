"""The nouns of the bridge as frozen values: stream names, cursors, records. Knows neither Redis nor gRPC."""
