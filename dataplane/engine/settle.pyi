from dataplane.engine.engine import Engine
from dataplane.graph.work import Work

def settle(engine: Engine) -> None: ...

class Settle(Work):
    def __init__(self, engine: Engine) -> None: ...
