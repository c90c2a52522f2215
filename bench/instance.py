"""An instance of vnic between the namespaces of a space."""

import sys
from pathlib import Path
from typing import Any

from bench.errors import BenchError
from bench.probes import run as run_tool
from bench.space import Space, wait_for
from dataplane.errors import VnicError
from vnic.api.client import Client

ROOT = Path(__file__).parents[1]
UP_S = 20.0
Json = dict[str, Any]


class Instance:
    """`vnic up` with a configuration. `end` and `start` begin it anew; its processes end with the
    space. name: tells several of a space apart."""

    def __init__(self, space: Space, config: str, name: str = "") -> None:
        self.space = space
        self.runtime_directory = space.directory / f"run{name}"
        self.runtime_directory.mkdir(mode=0o700)
        self._addresses = config.count("addresses:")
        self._file = space.directory / f"vnic{name}.yaml"
        self._file.write_text(config)
        self.start()

    def start(self) -> None:
        """Starts it, and returns when it is up. Raises BenchError."""
        self.space.use_runtime(self.runtime_directory)
        command = [sys.executable, "-m", "vnic.cli.main", "up", str(self._file)]
        self.supervisor = self.space.start(command, PYTHONPATH=str(ROOT))
        wait_for(self._is_up, UP_S, "vnic did not come up")

    def _is_up(self) -> bool:
        if self.supervisor.poll() is not None:
            raise BenchError(self.space.complaint(self.supervisor))
        ends = (self.space.a, self.space.b)
        if sum(run_tool(["ip", "-n", end, "-brief", "-4", "address"]).count(" 10.9") for end in ends) < self._addresses:
            return False
        try:
            self.status()
        except VnicError:
            return False
        return True

    def ask(self, method: str, **parameters: Any) -> Json:
        """Calls a method of the control API directly: starting a Python process for the command
        takes a tenth of what two CPUs have in a second."""
        self.space.use_runtime(self.runtime_directory)
        with Client() as client:
            return client.call(method, **parameters)

    def status(self) -> Json:
        found: Json = self.ask("Status")["status"]
        return found

    def stats(self) -> Json:
        found: Json = self.ask("Stats")["stats"]
        return found
