"""The step at which two trainings part, by what each step measured."""

import math

from mypt.training.checkpoints.state import History
from mypt.training.events import StepReport


class Parting:
    """Compares steps with those of then until they part or the recorded step is reached."""

    def __init__(self, then: History) -> None:
        """Begin before the first step of what was recorded."""
        self.step = 0
        self.line: str | None = None
        """At which step the two part, and by what."""
        self._then = then

    @property
    def over(self) -> bool:
        """Whether they have parted, or every recorded step was made."""
        return self.line is not None or self.step == len(self._then.loss)

    def compare(self, now: StepReport) -> None:
        """Take in one more step."""
        self.step = now.step
        for name in History._fields:
            old, new = getattr(self._then, name)[now.step - 1], getattr(now, name)
            recorded = not math.isnan(self._then.grad_norm[now.step - 1])
            if recorded and self.line is None and repr(old) != repr(new):
                self.line = f"they part at step {now.step}: {name} {old!r} then, {new!r} now"

    def details(self, found: bool) -> tuple[str, ...]:
        """Return where the two part, as far as it was recorded."""
        if self.line is not None:
            return (self.line,)
        if all(map(math.isnan, self._then.grad_norm)):
            why = "an older mypt wrote it" if found else "its folder is gone"
            return (f"at which step they part is not known: {why}",)
        return (
            f"every loss and gradient is the same; they part in the update of step {self.step}",
        )
