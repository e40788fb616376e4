"""The doctor: reports the system, the Python, the kernel's features, which of them the loop uses, and for what.

With `check` it also makes the experiments, which only a run on the system can decide. It can write everything to a file
that can be attached to a bug report: versions, features, answers and figures; no names, no paths and no addresses.
"""

import os
import platform
import socket
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from .. import __version__
from .._core._arena import STOMP_VARIABLE, stomp_wanted
from .._win32.constants import PROTOCOL_INFOW_SIZE, SocketOption
from .._win32.prototypes import bind
from . import _probes
from ._experiments import EXPERIMENTS
from ._probes import Finding


class Feature(NamedTuple):
    """One feature in the report.

    `used` says what the loop uses it for, and is empty if the loop does not use it; `absence` says what happens if it
    is missing. The loop cannot work without a `needed` one.
    """

    name: str
    probe: Callable[[], Finding]
    used: str
    absence: str
    needed: bool = False


FEATURES = (
    Feature("completion port", _probes.probe_port, "everything", "the loop cannot work", needed=True),
    Feature(
        "extension functions",
        _probes.probe_extensions,
        "accept, connect, sendfile",
        "no TCP server and no client",
        needed=True,
    ),
    Feature(
        "inline completions, IPv4",
        lambda: _probes.probe_inline_receive(socket.AF_INET),
        "TCP streams",
        "one packet more for each operation that is done at once: slower, otherwise the same",
    ),
    Feature(
        "inline completions, IPv6",
        lambda: _probes.probe_inline_receive(socket.AF_INET6),
        "TCP streams",
        "as above; or this machine has no IPv6",
    ),
    Feature(
        "unlayered sockets",
        _probes.probe_base_handle,
        "everything on sockets",
        "a layered service provider (some VPN and filter software) handles every call first: slower, and odd at times",
    ),
    Feature(
        "AFD poll",
        _probes.probe_poll,
        "add_reader, add_writer, sockets of another port",
        "add_reader and add_writer fail, and so does a socket that belongs to another port, loop or process",
    ),
    Feature("waits by thread", _probes.probe_handle_wait, "handles, processes", "processes cannot be waited for"),
    Feature(
        "waits by packet",
        _probes.probe_wait_packet,
        "timers",
        "timers are as fine as a wait of the port is",
    ),
    Feature(
        "waits of 1 ms",
        _probes.probe_wait_accuracy,
        "timers that cannot be finer",
        "such timers fire up to a tick of 15.6 ms late",
    ),
    Feature(
        "high-resolution timer",
        _probes.probe_high_resolution_timer,
        "timers",
        "timers are as fine as a wait of the port is",
    ),
    Feature(
        "fast refusal",
        _probes.probe_fast_refusal,
        "",
        "a connect that is refused takes as long as the system repeats it, about 2 s on Windows",
    ),
)


def wine_version() -> str | None:
    """Wine's version, or None on Windows."""
    try:
        version: bytes = bind("wine_get_version")()
    except AttributeError:
        return None
    return version.decode("ascii", "replace")


def system_name() -> str:
    """Windows or Wine, and the version, in a few words."""
    version = sys.getwindowsversion()
    windows = f"Windows {version.major}.{version.minor}.{version.build}"
    wine = wine_version()
    return windows if wine is None else f"Wine {wine} (as {windows})"


def python_name() -> str:
    """Implementation and version of this Python, in a few words."""
    gil = ", free-threaded" if sysconfig.get_config_var("Py_GIL_DISABLED") else ""
    bits = 64 if sys.maxsize > 2**32 else 32
    return f"{platform.python_implementation()} {platform.python_version()}, {bits} bits{gil}"


def provider_name(family: int) -> str:
    """The name of the provider of a family's TCP sockets, and its layers, which show filter software."""
    try:
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            raw = sock.getsockopt(socket.SOL_SOCKET, SocketOption.PROTOCOL_INFOW, PROTOCOL_INFOW_SIZE)
    except OSError as exc:
        return f"none ({exc.strerror})"
    # WSAPROTOCOL_INFOW: ProtocolChain.ChainLen, and szProtocol at the end.
    layers, name = int.from_bytes(raw[40:44], sys.byteorder), raw[-512:].decode("utf-16-le").partition("\0")[0]
    return f"{name}, {layers} layer{'s' * (layers != 1)}"


def run_doctor(*, check: bool = False, report: Path | None = None) -> int:
    """Print the findings. Returns 1 if a feature is missing that the loop cannot do without.

    Args:
        check: make the experiments as well, and return 1 also if one contradicts what the loop relies on.
        report: a file to write everything to, except paths; None for no file. Returns 1 if it cannot be written.
    """
    page = _Page()
    _say_facts(page)
    missing = [feature.name for feature in FEATURES if not _say_feature(page, feature) and feature.needed]
    broken = _say_experiments(page) if check and not missing else []
    page.say()
    if missing:
        page.say(f"the loop cannot work here: {', '.join(missing)}")
    elif broken:
        page.say(f"the loop relies on another answer: {', '.join(broken)}")
    else:
        page.say("the loop can work here")
    if report is not None:
        try:
            report.write_text("\n".join(page.lines) + "\n", encoding="utf-8")
        except OSError as exc:
            print(f"{report} cannot be written: {exc.strerror}", file=sys.stderr)
            return 1
        print(f"written to {report}; it names no user, no path and no address")
    return 1 if missing or broken else 0


class _Page:
    """Prints lines, and keeps them for the report, without their private parts."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str = "", private: str = "") -> None:
        print(line + private, flush=True)
        self.lines.append(line)


def _say_facts(page: _Page) -> None:
    has_policies = sys.version_info < (3, 16)
    facts = (
        ("system", f"{system_name()}, {sysconfig.get_platform()}"),
        ("Python", f"{python_name()}, {platform.python_compiler()}"),
        ("processors", str(os.cpu_count())),
        ("TCP provider", provider_name(socket.AF_INET)),
        ("TCP over IPv6", provider_name(socket.AF_INET6)),
        ("stomp mode", "on" if stomp_wanted() else f"off; {STOMP_VARIABLE}=1 puts every operation on guarded pages"),
        ("event loop policy", "there is one" if has_policies else "asyncio has none any more: use loop_factory"),
    )
    page.say(f"{'iocp_loop':<18} {__version__}", private=f", {Path(__file__).resolve().parents[1]}")
    for name, fact in facts:
        page.say(f"{name:<18} {fact}")


def _say_feature(page: _Page, feature: Feature) -> bool:
    finding = feature.probe()
    use = f"in use: {feature.used}" if feature.used else "not in use yet"
    verdict = "yes" if finding.works else "NO"
    page.say()
    page.say(f"{feature.name:<26} {verdict:<4} {use if finding.works or not feature.used else f'for: {feature.used}'}")
    page.say(f"    {finding.detail}")
    if not finding.works:
        page.say(f"    without it: {feature.absence}")
    return finding.works


def system_kind() -> str:
    """The key of the experiments' expected answers: "Windows", "Wine 8", "Wine 10"."""
    wine = wine_version()
    return "Windows" if wine is None else f"Wine {wine.partition('.')[0]}"


def _say_experiments(page: _Page) -> list[str]:
    """Make the experiments and print them. Returns the names of those that contradict what the loop relies on."""
    kind = system_kind()
    broken: list[str] = []
    page.say()
    page.say("What only a run can decide:")
    for experiment in EXPERIMENTS:
        answer = experiment.answer()
        expected = experiment.expected.get(kind)
        verdict = "nobody had an answer for this system"
        if answer.short == expected:
            verdict = f"as expected of {kind}"
        elif expected is not None:
            verdict = f"NOT as expected of {kind}: {expected}"
            if experiment.promised:
                broken.append(experiment.name)
        switch = f" [{experiment.switch}]" if experiment.switch else ""
        page.say()
        page.say(f"{experiment.name:<40} {answer.short:<10} {verdict}{switch}")
        if answer.detail:
            page.say(f"    {answer.detail}")
        page.say(f"    decides: {experiment.matters}")
    return broken
