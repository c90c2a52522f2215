"""The control API's calls: finds a module's method, checks parameters, answers errors."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from dataplane.errors import ConfigError, VnicError, one_line
from vnic.api.bounds import Bucket
from vnic.api.interface import INTERFACE, SERVICE, SERVICE_DESCRIPTION
from vnic.api.log import Log
from vnic.api.method import Caller, Fresh, Method, NotPermittedError, Parameters, Session

# Of a client that is not the instance's owner. An attach takes control 20 to 200 ms, so a client
# without a limit could keep control busy. The burst suffices to attach and set up all NICs that a
# client may have by default.
CHANGES_AT_ONCE, CHANGES_A_SECOND = 50, 10
# Log lines about its changes: 8640 a day, a fifth of the log's capacity, so that other lines stay.
LINES_AT_ONCE, LINES_A_SECOND = 200, 0.1
# Parameters of a change that are logged.
ABOUT = ("name", "point", "element", "handler", "egress", "ingress")

log = Log("vnic")


class Offers(Protocol):
    """The part of a module that calls use."""

    @property
    def interface(self) -> str: ...
    @property
    def description(self) -> str: ...
    def methods(self) -> list[Method]: ...
    def ended(self, session: Session, /) -> None: ...


class Call(msgspec.Struct):
    """A request."""

    method: str
    parameters: dict[str, Any] = {}
    oneway: bool = False
    more: bool = False


class ErrorReply(Exception):  # noqa: N818 - a Varlink error is a reply
    def __init__(self, error: str, **parameters: Any) -> None:
        super().__init__(error)
        self.reply = {"error": error, "parameters": parameters}


def _failed(name: str, error: VnicError) -> ErrorReply:
    field = {"field": error.field} if error.field else {}
    return ErrorReply(f"{INTERFACE}.{name}", message=str(error), code=error.code, **field)


class _Interface(Parameters):
    interface: str


def error_reply(error: BaseException, method: str) -> dict[str, Any]:
    """The reply for an exception."""
    match error:
        case ErrorReply():
            return error.reply
        case msgspec.ValidationError():
            return ErrorReply(f"{SERVICE}.InvalidParameter", parameter=str(error)).reply
        case NotPermittedError():
            return _failed("NotPermitted", error).reply
        case ConfigError():
            return _failed("InvalidConfig", error).reply
        case VnicError():
            return _failed("Failed", error).reply
    log.error(method, error=error)  # a bug of ours, or of a user's element, must not end the worker
    message = f"{one_line(error)}; the daemon's log has more"
    return _failed("Failed", VnicError(message)).reply


class Methods:
    """Answers calls to the methods of `modules`. clients: users who may call besides the instance's
    owner. shut_down: called after the reply to Shutdown."""

    def __init__(
        self,
        modules: Sequence[Offers],
        version: str,
        shut_down: Callable[[], None],
        clients: Mapping[str, Any] | None = None,
    ) -> None:
        self._version, self.shut_down = version, shut_down
        self._clients = clients or {}
        self._changes: dict[int, Bucket] = {}  # by user, those that are not the instance's owner
        self._lines: dict[int, Bucket] = {}
        self._unlogged: dict[int, int] = {}  # by user: changes since the last logged one
        self._fresh = Fresh()
        self._descriptions = {SERVICE: SERVICE_DESCRIPTION}
        self._methods = {
            f"{SERVICE}.GetInfo": Method("GetInfo", self._info, clients=True),
            f"{SERVICE}.GetInterfaceDescription": Method(
                "GetInterfaceDescription", self._description, _Interface, clients=True
            ),
        }
        self._modules: list[Offers] = []
        for module in modules:
            self.add(module)

    def add(self, module: Offers) -> None:
        """Adds a module's methods. On ConfigError, none is added."""
        found: dict[str, Method] = {}
        for method in module.methods():
            name = f"{module.interface}.{method.name}"
            if not module.interface or name in self._methods or name in found:
                raise ConfigError(
                    f"module {type(module).__name__}: method {name}: "
                    f"is another's already, or in no interface"
                )
            found[name] = method
        self._methods |= found
        if module.interface:
            self._descriptions[module.interface] = module.description
        self._modules.append(module)

    def admit(self, session: Session) -> None:
        """Raises NotPermittedError for a user who may not use this instance."""
        if not session.is_owner and str(session.uid) not in self._clients:
            raise NotPermittedError(
                f"{session.who}: may not use this vnic; its owner can list the user under clients: "
                f"in the configuration"
            )

    # -- a call ------------------------------------------------------------------------------------

    async def answer(self, call: Call, caller: Caller) -> dict[str, Any]:
        """The reply's parameters (a module.Reply if it has descriptors). Raises exceptions for
        `error_reply`."""
        method = self._permitted(call, caller.session)
        if method.kind == "stream":
            raise ErrorReply(f"{SERVICE}.ExpectedMore")
        parameters = msgspec.convert(call.parameters, method.parameters)
        if method.kind == "read":
            return self._read(method, parameters, caller)
        about = {
            **{
                word: getattr(parameters, word)
                for word in ABOUT
                if getattr(parameters, word, None) is not None
            },
            "uid": caller.session.uid,
            "pid": caller.session.pid,
        }
        self._fresh.clear()  # so that reads after the change see it
        try:
            if method.kind == "change":
                self._check_changes(caller.session)
            answered = method.call(parameters, caller)
            reply: dict[str, Any] = await answered if inspect.isawaitable(answered) else answered
        except Exception as error:
            self._log(caller.session, method.name, **about, refused=" ".join(str(error).split()))
            raise
        self._log(caller.session, method.name, **about)
        return reply

    def _check_changes(self, session: Session) -> None:
        """Raises VnicError for a client that exceeds its rate of changes."""
        if session.is_owner:
            return
        bucket = self._changes.setdefault(session.uid, Bucket(CHANGES_AT_ONCE, CHANGES_A_SECOND))
        if seconds := bucket.take():
            raise VnicError(
                f"{session.who} may make {CHANGES_AT_ONCE} changes at once and {CHANGES_A_SECOND} "
                f"a second after that; "
                f"try again in {seconds:.1f} s",
                code="limit",
            )

    def _log(self, session: Session, event: str, **fields: Any) -> None:
        """Logs a change. A client's lines are limited: the log keeps the newest lines only, and one
        client must not displace the others'. unlogged: number of lines left out before this one."""
        uid = session.uid
        if (
            not session.is_owner
            and self._lines.setdefault(uid, Bucket(LINES_AT_ONCE, LINES_A_SECOND)).take()
        ):
            self._unlogged[uid] = self._unlogged.get(uid, 0) + 1
            return
        log.info(event, **fields, unlogged=self._unlogged.pop(uid, None))

    def takes_turns(self, call: Call) -> bool:
        """Whether a call is a change that blocks control. Other calls are served during a task."""
        return self.waits(call) and self._methods[call.method].kind == "change"

    def waits(self, call: Call) -> bool:
        """Whether a call is a change or task, and so waits for the end of an upgrade."""
        method = self._methods.get(call.method)
        return (
            method is not None
            and method.kind in ("change", "task")
            and method.name not in ("Shutdown", "Upgrade")
        )

    def stream(self, call: Call, caller: Caller) -> AsyncIterator[dict[str, Any]] | None:
        """The replies to a call of a stream; None for other calls. Raises exceptions for
        `error_reply`."""
        method = self._methods.get(call.method)
        if not call.more or method is None or method.kind != "stream":
            return None
        self._permitted(call, caller.session)
        found: AsyncIterator[dict[str, Any]] = method.call(
            msgspec.convert(call.parameters, method.parameters), caller
        )
        return found

    def ended(self, session: Session) -> None:
        """A connection has ended: tells all modules."""
        for module in self._modules:
            try:
                module.ended(session)
            except Exception as error:  # a user's module: the others must be told, too
                log.error("ended", error=error)

    def _permitted(self, call: Call, session: Session) -> Method:
        method = self._methods.get(call.method)
        if method is None:
            interface = call.method.rpartition(".")[0]
            if interface not in self._descriptions:
                raise ErrorReply(f"{SERVICE}.InterfaceNotFound", interface=interface)
            raise ErrorReply(f"{SERVICE}.MethodNotFound", method=call.method)
        if not method.clients and not session.is_owner:
            raise NotPermittedError(
                f"{method.name}: is for the instance's owner, not for {session.who}"
            )
        return method

    def _read(self, method: Method, parameters: Parameters, caller: Caller) -> dict[str, Any]:
        if not method.cached:
            return dict(method.call(parameters, caller))
        who = None if caller.session.is_owner else caller.session.uid
        asked = method, msgspec.json.encode(parameters), who
        return dict(self._fresh.get(asked, lambda: method.call(parameters, caller)))

    # -- org.varlink.service -----------------------------------------------------------------------

    def _info(self, _: Parameters, caller: Caller) -> dict[str, Any]:
        interfaces = list(self._descriptions)
        return {
            "vendor": "vnic",
            "product": "vnic",
            "version": self._version,
            "url": "",
            "interfaces": interfaces,
        }

    def _description(self, parameters: _Interface, caller: Caller) -> dict[str, Any]:
        if parameters.interface not in self._descriptions:
            raise ErrorReply(f"{SERVICE}.InterfaceNotFound", interface=parameters.interface)
        return {"description": self._descriptions[parameters.interface]}
