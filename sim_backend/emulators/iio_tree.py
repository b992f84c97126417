"""An IIO device tree: the attributes in a context's XML, and their values.

Values are keyed by (device, file name), not by attribute: in the kernel's sysfs several channels share one file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from xml.sax import saxutils

DTD = (
    "<!DOCTYPE context ["
    "<!ELEMENT context (device | context-attribute)*>"
    "<!ELEMENT context-attribute EMPTY>"
    "<!ELEMENT device (channel | attribute | debug-attribute | buffer-attribute)*>"
    "<!ELEMENT channel (scan-element?, attribute*)>"
    "<!ELEMENT attribute EMPTY><!ELEMENT scan-element EMPTY><!ELEMENT debug-attribute EMPTY>"
    "<!ELEMENT buffer-attribute EMPTY>"
    "<!ATTLIST context name CDATA #REQUIRED description CDATA #IMPLIED>"
    "<!ATTLIST context-attribute name CDATA #REQUIRED value CDATA #REQUIRED>"
    "<!ATTLIST device id CDATA #REQUIRED name CDATA #IMPLIED>"
    "<!ATTLIST channel id CDATA #REQUIRED type (input|output) #REQUIRED name CDATA #IMPLIED>"
    "<!ATTLIST scan-element index CDATA #REQUIRED format CDATA #REQUIRED scale CDATA #IMPLIED>"
    "<!ATTLIST attribute name CDATA #REQUIRED filename CDATA #IMPLIED value CDATA #IMPLIED>"
    "<!ATTLIST debug-attribute name CDATA #REQUIRED value CDATA #IMPLIED>"
    "<!ATTLIST buffer-attribute name CDATA #REQUIRED value CDATA #IMPLIED>"
    "]>"
)
"""libiio validates the XML against the DTD it carries."""

UNREADABLE = "ERROR"
"""Value in the XML, as the kernel's scan writes it, of an attribute that cannot be read."""

_LONGEST_IN_XML = 1023
"""Longest value in the XML, because clients have 1024 bytes for one."""

Key = tuple[str, str]
"""(device id, file name); debug and buffer attributes are files `debug/NAME` and `buffer/NAME`."""


def quoteattr(value: str) -> str:
    """Return a value in quotation marks, without characters that XML forbids, so that clients can read the rest."""
    return saxutils.quoteattr(re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd]", "?", value[:_LONGEST_IN_XML]))


@dataclass(slots=True)
class Channel:
    id: str
    output: bool
    files: dict[str, str]
    """Attribute → file name."""
    name: str | None = None
    scan_format: str | None = None
    """Sample format of a channel with samples, e.g. le:S12/16>>0."""


@dataclass(slots=True)
class Device:
    id: str
    name: str
    channels: list[Channel] = field(default_factory=list)
    attributes: list[str] = field(default_factory=list)
    debug: list[str] = field(default_factory=list)
    buffer: list[str] = field(default_factory=list)

    @property
    def scan_channels(self) -> list[Channel]:
        return [c for c in self.channels if c.scan_format is not None]


class Tree:
    """Devices, their attributes and values of one IIO context."""

    def __init__(
        self,
        description: str,
        context: dict[str, str],
        devices: list[Device],
        values: dict[Key, str],
        refusals: dict[Key, int] | None = None,
    ) -> None:
        self.description, self.context, self.devices, self.values = description, context, devices, values
        self.refusals = refusals or {}
        """Errno of a read of an attribute whose value is UNREADABLE."""

    def device(self, id_or_name: str) -> Device | None:
        return next((d for d in self.devices if id_or_name in (d.id, d.name)), None)

    def key(self, device: Device, place: str, channel: str | None, attribute: str) -> Key | None:
        """Return the key of an attribute's value; `place` is DEVICE, DEBUG, BUFFER, INPUT or OUTPUT."""
        return dict(self.keys(device, place, channel)).get(attribute)

    def keys(self, device: Device, place: str, channel: str | None) -> list[tuple[str, Key]]:
        """Return (attribute, key) of a device's or channel's attributes in the order of the XML."""
        if place in ("INPUT", "OUTPUT"):
            found = self.channel(device, place == "OUTPUT", channel or "")
            return [(a, (device.id, f)) for a, f in found.files.items()] if found is not None else []
        names = {"DEVICE": device.attributes, "DEBUG": device.debug, "BUFFER": device.buffer}[place]
        folder = {"DEVICE": "", "DEBUG": "debug/", "BUFFER": "buffer/"}[place]
        return [(a, (device.id, folder + a)) for a in names]

    @staticmethod
    def channel(device: Device, output: bool, id_or_name: str) -> Channel | None:
        return next((c for c in device.channels if c.output == output and id_or_name in (c.id, c.name)), None)

    def xml(self) -> str:
        """Return the context as iiod prints it, with the present values."""
        out = ['<?xml version="1.0" encoding="utf-8"?>', DTD]
        out.append(f'<context name="network" description={quoteattr(self.description)} >')
        out += [f"<context-attribute name={quoteattr(k)} value={quoteattr(v)} />" for k, v in self.context.items()]
        for device in self.devices:
            out.append(f'<device id="{device.id}" name="{device.name}" >')
            index = 0
            for c in device.channels:
                name = f'name="{c.name}" ' if c.name else ""
                out.append(f'<channel id="{c.id}" {name}type="{"output" if c.output else "input"}" >')
                if c.scan_format is not None:
                    out.append(f'<scan-element index="{index}" format={quoteattr(c.scan_format)} />')
                    index += 1
                out += [
                    f'<attribute name="{a}" filename="{f}" value={quoteattr(self.values[device.id, f])} />'
                    for a, f in c.files.items()
                ]
                out.append("</channel>")
            for tag, place in (("attribute", "DEVICE"), ("buffer-attribute", "BUFFER"), ("debug-attribute", "DEBUG")):
                out += [
                    f'<{tag} name="{a}" value={quoteattr(self.values[key])} />'
                    for a, key in self.keys(device, place, None)
                ]
            out.append("</device>")
        return "".join(out) + "</context>"
