"""The promises of docs/protocol.md as cases that any bridge can be run against; README.md says how."""
