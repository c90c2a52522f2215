from dataplane.engine import Engine
from dataplane.work import Work

def settle(engine: Engine) -> None: ...

class Settle(Work):
    def __init__(self, engine: Engine) -> None: ...
