"""What every endpoint is given."""

from dataclasses import dataclass, field

from llmbridge.gateway.access import Access
from llmbridge.gateway.instance import Instance
from llmbridge.gateway.link import Link
from llmbridge.gateway.options import Options


@dataclass(frozen=True, slots=True)
class Gateway:
    """One gateway: its bridge, its settings, its access control, and the instance that it is of."""

    link: Link
    options: Options
    access: Access
    instance: Instance = field(default_factory=Instance)
