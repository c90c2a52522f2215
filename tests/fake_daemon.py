"""A daemon with a fake runtime, which only stores settings: `python -m tests.fake_daemon INSTANCE`.
Prints "up" once it is up.

With this file's directory/fake_site on PYTHONPATH, the real command uses the same runtime.
"""

import sys
import types
from collections.abc import Callable
from typing import Any

from dataplane.errors import ConfigError, PortError
from vnic.api.interface import DESCRIPTION, INTERFACE
from vnic.api.log import set_up
from vnic.api.method import Method, Session
from vnic.config.convert import convert_config, encode_config
from vnic.daemon import worker
from vnic.daemon.supervisor import supervise
from vnic.modules.network_methods import network_methods


class FakeNics:
    interface, description = INTERFACE, DESCRIPTION

    def __init__(self, config: Any) -> None:
        self.config = config
        self.nics: dict[str, dict[str, Any]] = {}
        self.configs: dict[str, Any] = {}

    def methods(self) -> list[Method]:
        return network_methods(self)  # type: ignore[arg-type]

    def ended(self, session: Session) -> None:
        pass

    @property
    def runtime(self) -> "FakeNics":
        return self

    async def aside(self, change: Callable[[], Any]) -> Any:
        return change()

    def names(self, owner: int | None = None) -> list[str]:
        return [name for name, each in self.configs.items() if owner is None or each.owner == owner]

    def nic_of(self, point: str) -> str:
        return point.partition(".")[0]

    def get(self, name: str, session: Session | None = None) -> Any:
        self._get(name)
        return types.SimpleNamespace(config=self.configs[name])

    def _get(self, name: str) -> dict[str, Any]:
        if name not in self.nics:
            raise ConfigError(f"nic {name}: is not attached")
        return self.nics[name]

    def attach(self, config: Any, passed: Any = None) -> dict[str, Any]:
        if config.pid == 4_000_000:
            raise ConfigError(f"nic {config.name}: pid 4000000 does not exist")
        if config.pid == 4_000_002:
            raise PortError(f"nic {config.name}: the TAP broke")
        if config.pid == 4_000_001:
            raise ZeroDivisionError("a bug")
        self.nics[config.name] = {
            "name": config.name, "interface": config.interface, "pid": config.pid, "mac": str(config.mac), "mtu": config.mtu,
            "queues": config.queues, "link": "up", "engine": "e0",
            "egress_bps": config.egress.rate and int(config.egress.rate), "ingress_bps": None,
        }  # fmt: skip
        self.configs[config.name] = config
        return self.nics[config.name]

    def detach(self, name: str, why: str = "") -> None:
        del self.nics[self._get(name)["name"]]
        del self.configs[name]

    def set_rate(self, name: str, **limits: int | None) -> dict[str, Any]:
        self._get(name).update(limits)
        return self.nics[name]

    def set_spoof_check(self, name: str, on: bool) -> dict[str, Any]:
        self._get(name)["spoof_check"] = on
        return self.nics[name]

    def set_link(self, name: str, up: bool) -> None:
        self._get(name)["link"] = "up" if up else "down"


class FakePolicy:
    """No policy of shaping."""

    def left_ns(self) -> int | None:
        return None


class FakeRuntime:
    emit: Any = None

    def __init__(self, config: Any, **_: Any) -> None:
        self.policy = FakePolicy()
        self.nics = FakeNics(config)
        self.modules = [self.nics]
        self.recorder = types.SimpleNamespace(take=lambda now_ns: None, rest_ns=lambda now_ns: 10**9)

    def start(self) -> None:
        for nic in self.nics.config.nics.values():
            self.nics.attach(nic)

    def close(self) -> None:
        print("closed", flush=True)

    def status(self) -> dict[str, Any]:
        engine = {"name": "e0", "received": 7, "transmitted": 5, "dropped": 2, "held": 0, "cpu_ns": 1_500_000_000}
        return {"conserved": True, "engines": [engine], "nics": list(self.nics.nics.values()), "switch": {"entries": []}}

    def stats(self, name: str | None = None) -> dict[str, Any]:
        if name is not None:
            self.nics.get(name)
        element = {"name": "web.egress.rate", "type": "Shaper", "packets": 7, "held": 0, "dropped": {"queue full": 2},
                   "counters": {"bytes": 4242}}  # fmt: skip
        return {
            "nics": [
                {"name": each, "queues": [{"rx_packets": 7, "tx_packets": 5}], "queue_drops": 3} for each in self.nics.nics
            ],
            "engines": [{"name": "e0", "elements": [element]}],
        }

    def graph(self, style: str = "text", *, elements: bool = True) -> str:
        return {"text": "a -> b\n", "dot": "digraph vnic {}\n", "json": "{}"}[style]


def main() -> None:
    """A worker's process."""
    sys.exit(worker.main(sys.argv[1:], lambda config, *_: FakeRuntime(config)))


if __name__ == "__main__":
    set_up()
    supervise(encode_config(convert_config(None)), sys.argv[1], lambda worker: print("up", flush=True), "tests.fake_daemon")
