"""Opens a node's device: by its driver, which in a lab with a simulated air may find an emulated one."""

from __future__ import annotations

from typing import Any

from testbed.core import registry
from testbed.core.config import Lab
from testbed.core.errors import InputError
from testbed.core.radio import Radio
from testbed.core.ris import Board
from testbed.core.world import DriverContext


def open_device(lab: Lab, name: str, context: DriverContext) -> Radio | Board:
    """Return the device of a node; raises InputError for refused options, DeviceError where there is none."""
    place = lab.node[name]
    driver = registry.load_driver("boards" if place.role == "ris" else "radios", place.driver)
    options: dict[str, Any] = dict(place.options)
    equipment = None
    if lab.world is not None and name in lab.world.emulators:
        world = registry.load_driver("worlds", lab.world.driver)
        equipment = world.equip(name, place.driver, context, lab.world.emulators[name])
    if equipment is not None:
        options |= equipment.options
    try:
        device: Radio | Board = driver(name, context, **options)
    except TypeError as exc:
        raise InputError(f"lab {lab.name}: table [node.{name}.options]: {exc}") from exc
    if equipment is not None and isinstance(device, Radio):
        device.tell_air = equipment.idle_until
    return device
