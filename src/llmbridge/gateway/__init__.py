"""The HTTP gateway: REST, Server-Sent Events, WebSocket and two chat protocols, as a client of the bridge's contract.

A gRPC client of the bridge like any other, in the bridge's process or in one of its own: it knows the contract and the
client library, and nothing of Redis or of what the bridge is made of.
"""
