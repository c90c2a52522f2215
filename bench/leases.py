"""placeholder"""


def leases(rounds: int):
    raise NotImplementedError
