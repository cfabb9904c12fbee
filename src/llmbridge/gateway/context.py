"""What every endpoint is given."""

from dataclasses import dataclass

from llmbridge.gateway.access import Access
from llmbridge.gateway.link import Link
from llmbridge.gateway.options import Options


@dataclass(frozen=True, slots=True)
class Gateway:
    """One gateway: its bridge, its settings, its access control."""

    link: Link
    options: Options
    access: Access
