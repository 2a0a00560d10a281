"""Compiled functions inside of gradients.

MLX compiles nothing that it is tracing for a gradient, and a gradient compiled as a whole would be
some fifty loops, most of them over broadcast operands and slower than MLX's own. What is being
traced is a matter of the thread: in another one the same arrays are plain, and so functions with a
gradient of their own (`mx.custom_function`) can be made of compiled parts.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

import mlx.core as mx

P = ParamSpec("P")
T = TypeVar("T")


@functools.cache
def _calls() -> SimpleQueue[tuple[Callable[[], Any], Future[Any]]]:
    """What the helper thread is to call, and where the results go.

    One thread for all calls, since MLX keeps compiled functions per thread; and a daemon, which is
    not ended before the process is: MLX aborts where a thread that has a stream of it ends.
    """
    calls: SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = SimpleQueue()

    def serve() -> None:
        while True:
            function, future = calls.get()
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)
            del function, future  # and with them the arrays

    threading.Thread(target=serve, name="untraced", daemon=True).start()
    return calls


def untraced(function: Callable[P, T]) -> Callable[P, T]:
    """`function`, building its graph in the helper thread. Its result carries no gradient."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        stream = mx.default_stream(mx.default_device())

        def run() -> T:
            with mx.stream(stream):
                return function(*args, **kwargs)

        future: Future[T] = Future()
        _calls().put((run, future))
        return future.result()

    return call
