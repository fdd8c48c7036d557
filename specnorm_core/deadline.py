"""How long a proof may take: where it would take longer, a cheaper one has to do, whose bound is looser and no less true."""

import math
import time
from dataclasses import dataclass, field

EARLY = 0.125
"""Share of the time after which an attempt is judged by how far it has come."""


@dataclass(frozen=True)
class Deadline:
    """``seconds`` from now, or from ``begun`` on the monotonic clock."""

    seconds: float = math.inf
    begun: float = field(default_factory=time.monotonic)

    def left(self) -> float:
        """Return the seconds that are left."""
        return self.seconds - (time.monotonic() - self.begun) if math.isfinite(self.seconds) else math.inf

    def passed(self) -> bool:
        """Say whether the time is up."""
        return self.left() <= 0

    def attempt(self) -> "Deadline":
        """Return the same end for an attempt that begins now."""
        return Deadline(self.left())

    def behind(self, share: float) -> bool:
        """Say whether an attempt of which ``share`` is done will not end in time, going on as it began."""
        return math.isfinite(self.seconds) and self.seconds - self.left() > self.seconds * max(share, EARLY)


NEVER = Deadline()
