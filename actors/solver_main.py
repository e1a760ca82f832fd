"""`python -m actors.solver_main`: the solver process; its standard input is the socket to the planner."""

import asyncio
import socket
import sys


def main() -> None:
    # numba loads scipy's linear algebra where there is any: 17 MB that no kernel here calls.
    sys.modules["scipy"] = None  # type: ignore[assignment]
    from actors.frontier_solver import serve

    asyncio.run(serve(socket.socket(fileno=0)))


if __name__ == "__main__":
    main()
