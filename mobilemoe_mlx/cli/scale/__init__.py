"""`mobilemoe scale TASK ...`: each file in this folder that is named in TASKS is a task."""

from __future__ import annotations

from mobilemoe_mlx.cli.sub_commands import SubCommands

TASKS = ("predict", "design", "sweep", "fit", "compare")

_commands = SubCommands(__name__, "task", TASKS)
EXAMPLES = _commands.examples()
add_arguments = _commands.add_arguments
run = _commands.run
