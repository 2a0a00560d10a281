"""Several processes that train one model: what fails in one of them ends all of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import mlx.core as mx

from mobilemoe_mlx.errors import UserError


@contextlib.contextmanager
def together(group: mx.distributed.Group) -> Iterator[None]:
    """A block of each process's own work: none goes on until all have done it.

    Where one fails in it, the others would wait for that one's next sum for ever: they raise
    UserError instead. Nothing in the block may be a sum over the processes.
    """
    failed = True
    try:
        yield
        failed = False
    finally:
        if group.size() > 1:
            failures = _gathered(int(failed), group)
            if any(failures) and not failed:
                raise UserError(
                    f"Process {failures.index(1)} of {group.size()} stopped with an error of its "
                    "own, so this one stops too."
                )


def check_equal(number: int, what: str, group: mx.distributed.Group) -> None:
    """Raise UserError, in every process, unless all have the same `number`."""
    numbers = _gathered(number, group)
    if len(set(numbers)) > 1:
        raise UserError(
            f"{what} differs between the processes ({', '.join(map(str, numbers))}): the run's "
            "folder must be on a disk that all of them share."
        )


def _gathered(number: int, group: mx.distributed.Group) -> list[int]:
    """Every process's number, by rank."""
    row = [number if rank == group.rank() else 0 for rank in range(group.size())]
    total: list[int] = mx.distributed.all_sum(mx.array(row, mx.int32), group=group).tolist()
    return total
