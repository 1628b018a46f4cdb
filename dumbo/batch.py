"""The batch arithmetic: global = micro x ranks x accumulation, or an error. Printed at every start."""

from __future__ import annotations

from dataclasses import dataclass

from dumbo.errors import UserError


@dataclass(frozen=True, slots=True)
class Batch:
    """How many examples (with packing: packs) make an optimizer step, and how they are spread.

    Attributes:
        global_: examples an optimizer step.
        micro: examples a rank and forward pass.
        ranks: processes.
        accumulation: forward passes a rank and step.
    """

    global_: int
    micro: int
    ranks: int
    accumulation: int

    @classmethod
    def of(cls, global_batch_size: int, micro_batch_size: int, ranks: int) -> Batch:
        """Derives the accumulation.

        Raises:
            UserError: a size below 1, or sizes that do not divide; names those that do.
        """
        for name, value in (("global_batch_size", global_batch_size), ("micro_batch_size", micro_batch_size)):
            if value < 1:
                raise UserError(f"trainer.{name} must be at least 1, got {value}.")
        accumulation, rest = divmod(global_batch_size, micro_batch_size * ranks)
        if rest:
            share = global_batch_size // ranks if global_batch_size % ranks == 0 else 0
            fitting = [size for size in range(1, share + 1) if share % size == 0]
            near = min(fitting, key=lambda size: abs(size - micro_batch_size)) if fitting else None
            over = micro_batch_size * ranks
            advice = f"trainer.micro_batch_size={near}, or " if near else ""
            whole = max(1, round(global_batch_size / over)) * over
            raise UserError(
                f"The batch does not divide: global batch {global_batch_size} = micro {micro_batch_size} x ranks {ranks} "
                f"x accumulation {global_batch_size / over:.2f}.\n  Write {advice}trainer.global_batch_size={whole}."
            )
        return cls(global_batch_size, micro_batch_size, ranks, accumulation)

    def cut(self, micro: int) -> Batch:
        """The same global batch in micro batches of the largest size that divides a rank's share and is at most `micro`."""
        share = self.micro * self.accumulation
        size = next(size for size in range(min(micro, share), 0, -1) if share % size == 0)
        return Batch(self.global_, size, self.ranks, share // size)

    def halved(self) -> Batch | None:
        """The same global batch in micro batches of half the size; where that is odd, of the next smaller size that divides.

        None: the micro batch is one example.
        """
        return None if self.micro == 1 else self.cut(self.micro - 1 if self.micro % 2 else self.micro // 2)

    def __str__(self) -> str:
        return (
            f"global batch {self.global_} = micro {self.micro} x ranks {self.ranks} x accumulation {self.accumulation}"
        )
