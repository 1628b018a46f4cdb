"""Where several machines of a run meet: whether the endpoint is this machine, and by which address and interface.

gloo and torch's launcher would ask the host's name, which on many machines resolves to the loopback address.
"""

from __future__ import annotations

import fcntl
import socket
import struct
from contextlib import closing
from dataclasses import dataclass

from dumbo.errors import UserError

SIOCGIFADDR = 0x8915
"""Linux: the address of an interface."""


@dataclass(frozen=True)
class Meeting:
    """This machine's place in the meeting.

    Attributes:
        endpoint: host:port.
        hosts: whether the endpoint is an address of this machine.
        address: of this machine, by which it reaches the endpoint.
        interface: which has that address; "" where the system does not tell.
    """

    endpoint: str
    hosts: bool
    address: str
    interface: str


def meeting_at(endpoint: str) -> Meeting:
    """Looks the endpoint up.

    Raises:
        UserError: its host has no address, or there is no way to it.
    """
    host, _, port = endpoint.rpartition(":")
    try:
        target = socket.gethostbyname(host)
        with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as probe:
            probe.connect((target, int(port) or 1))  # sends nothing; the system chooses the way
            address = probe.getsockname()[0]
    except OSError as error:
        raise UserError(f"launch.rdzv_endpoint: '{endpoint}' cannot be reached from here: {error}.") from error
    return Meeting(endpoint, _is_own(target), address, _interface_of(address))


def _is_own(address: str) -> bool:
    with closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def _interface_of(address: str) -> str:
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as probe:
        for _, name in socket.if_nameindex():
            try:
                packed = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:  # an interface without an address
                continue
            if socket.inet_ntoa(packed[20:24]) == address:
                return name
    return ""
