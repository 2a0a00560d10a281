"""`mobilemoe export TARGET CHECKPOINT OUT`: each file in this folder is a target, by its name."""

from __future__ import annotations

import pkgutil

from mobilemoe_mlx.cli.sub_commands import SubCommands

TARGETS = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))

_commands = SubCommands(__name__, "target", TARGETS)
EXAMPLES = _commands.examples()
add_arguments = _commands.add_arguments
run = _commands.run
