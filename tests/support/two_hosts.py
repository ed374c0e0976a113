"""Two hosts on one machine: network namespaces with a cable between them, or, where these are not allowed, two names of the loopback."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Host:
    """address: for the other host. prefix: of a command that is to run here, with this environment."""

    address: str
    prefix: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)


@contextmanager
def two_hosts() -> Iterator[list[Host]]:
    """Hosts while inside. In a namespace a process reaches its own loopback and the other host by its address, nothing else."""
    names = [f"atesd-{os.getpid()}-{node}" for node in range(2)]
    with ExitStack() as stack:
        if not all(_namespace(name, stack) for name in names):
            yield [Host("127.0.0.1"), Host("127.0.0.1")]
            return
        _ip("link", "add", "cable", "netns", names[0], "type", "veth", "peer", "name", "cable", "netns", names[1])
        yield [_connect(name, f"10.77.0.{node + 1}") for node, name in enumerate(names)]


def _namespace(name: str, stack: ExitStack) -> bool:
    """Whether there is one of this name now, until the stack is unwound."""
    try:
        _ip("netns", "add", name)
    except (OSError, subprocess.CalledProcessError):
        return False
    stack.callback(_ip, "netns", "del", name)
    return True


def _connect(name: str, address: str) -> Host:
    _ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
    for device in ("cable", "lo"):
        _ip("-n", name, "link", "set", device, "up")
    # Both have this machine's name, which means the loopback: neither torchrun nor gloo may go by it.
    return Host(address, ["ip", "netns", "exec", name], {"LOCAL_ADDR": address, "GLOO_SOCKET_IFNAME": "cable"})


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
