"""What this gateway knows of itself since it started. Plain numbers, and no invented ones."""

from dataclasses import dataclass

__all__ = ["Counts"]


@dataclass(slots=True)
class Counts:
    """What was stored through this gateway. Times in seconds."""

    tokens: int = 0
    """Tokens stored."""
    calls: int = 0
    """Requests that stored something, and those that failed to."""
    errors: int = 0
    """Of the calls, those that failed."""
    seconds: float = 0.0
    """How long the calls took that stored something."""

    def stored(self, tokens: int, seconds: float) -> None:
        """Count a call that succeeded."""
        self.tokens += tokens
        self.calls += 1
        self.seconds += seconds

    def failed(self) -> None:
        """Count a call that failed."""
        self.calls += 1
        self.errors += 1

    @property
    def error_rate(self) -> float:
        """The part of the calls that failed, from 0 to 1."""
        return self.errors / self.calls if self.calls else 0.0

    @property
    def average_latency_ms(self) -> float | None:
        """How long a call took that stored something; None when there was none."""
        succeeded = self.calls - self.errors
        return self.seconds * 1000 / succeeded if succeeded else None
