"""A live network driven from Python: bring it up, attach a container, change a rate, read counters, take it down.

python examples/client.py examples/two-containers.yaml PID       PID: a process of a third container
"""

import subprocess
import sys

import vnic

INSTANCE = "example"


def main(configuration: str, pid: int) -> None:
    command = [sys.executable, "-m", "vnic.cli.main", "up", "--detach", "--instance", INSTANCE, configuration]
    subprocess.run(command, check=True)  # returns when all NICs are attached
    with vnic.Client(INSTANCE) as client:
        try:
            nic = client.call(
                "Attach", name="third", nic={"pid": pid, "addresses": ["10.0.0.3/24"], "egress": {"rate": "1gbit"}}
            )
            print("attached", nic["nic"]["interface"])

            client.call("SetRate", name="third", egress="10mbit")
            for nic in client.call("Status")["status"]["nics"]:
                print(nic["name"], nic["mac"], nic["egress_bps"])

            [stats] = client.call("Stats", name="third")["stats"]["nics"]
            print("queues", [(queue["rx_packets"], queue["tx_packets"]) for queue in stats["queues"]])

            # One entry for each engine that runs a copy of the element; a NIC's shaper has one.
            [queue] = client.call("ReadHandler", element="third.egress.rate", handler="queue")["copies"]
            print("waiting", queue)

            try:
                client.call("SetRate", name="absent", egress="10mbit")
            except vnic.ConfigError as error:
                print("refused:", error)
            client.call("Detach", name="third")
        finally:
            client.shutdown()  # returns when the instance is gone


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
