"""Section names: libbpf's SEC() grammar, which says what a program is and where it is attached.

Source: the table of section definitions and the ``attach_*`` parsers of libbpf (tools/lib/bpf/libbpf.c), documented
in Documentation/bpf/libbpf/program_types.rst. One deviation: a type without a target, such as ``socket``, may have
a ``/label`` behind it, which is ignored, because objects made for other loaders have one. For the same reason
``uprobe/NAME`` is a probe whose target is given at attach (libbpf loads it as well, and cannot attach it by itself).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from types import MappingProxyType
from typing import Final

from userbpf.errors import ObjectError, Place
from userbpf.tables.prog_types import NETWORK_TYPES, TRACING_TYPES, AttachType, ProgType

__all__ = [
    "NETWORK_TYPES",
    "SECTIONS",
    "TRACING_TYPES",
    "AttachType",
    "ProgType",
    "Section",
    "SectionDef",
    "Target",
    "parse_section",
]


class Target(Enum):
    """What may follow the type in a section name."""

    NONE = "nothing"
    UPROBE = "/PATH:SYMBOL[+OFFSET]"
    UPROBE_MULTI = "/PATH:PATTERN"
    USDT = "/PATH:PROVIDER:NAME"
    KPROBE = "/FUNCTION[+OFFSET]"
    KPROBE_MULTI = "/PATTERN"
    SYSCALL = "/SYSCALL"
    TRACEPOINT = "/CATEGORY/NAME"
    SYMBOL = "/NAME"


@dataclass(frozen=True, slots=True)
class SectionDef:
    """One type of section: the part of the name before the target."""

    prefix: str
    kind: str
    prog_type: ProgType
    attach_type: AttachType | None
    target: Target
    is_return: bool = False
    sleepable: bool = False


@dataclass(frozen=True, slots=True)
class Section:
    """A parsed section name.

    kind: the type without ``.s`` and ``ret``: ``uprobe``, ``uprobe.multi``, ``usdt``, ``tracepoint``, ``xdp`` …
    path, symbol, offset: of probes; ``symbol`` is the function, event, hook or pattern, None when the target is an
    absolute file offset (then ``offset`` alone counts) or is given at attach. category: of tracepoints.
    provider: of USDT probes. auto_attach: the name holds a whole target. autoload: False when it began with ``?``.
    """

    name: str
    kind: str
    prog_type: ProgType
    attach_type: AttachType | None = None
    path: str | None = None
    symbol: str | None = None
    offset: int = 0
    provider: str | None = None
    category: str | None = None
    is_return: bool = False
    sleepable: bool = False
    auto_attach: bool = False
    autoload: bool = True


def _probes() -> list[SectionDef]:
    rows: list[SectionDef] = []
    kprobe = ProgType.KPROBE
    multi, k_multi = AttachType.TRACE_UPROBE_MULTI, AttachType.TRACE_KPROBE_MULTI
    session, k_session = AttachType.TRACE_UPROBE_SESSION, AttachType.TRACE_KPROBE_SESSION
    for ret in (False, True):
        r = "ret" if ret else ""
        for sleep in (False, True):
            s = ".s" if sleep else ""
            rows.append(SectionDef(f"u{r}probe{s}", "uprobe", kprobe, None, Target.UPROBE, ret, sleep))
            name = f"u{r}probe.multi{s}"
            rows.append(SectionDef(name, "uprobe.multi", kprobe, multi, Target.UPROBE_MULTI, ret, sleep))
        rows.append(SectionDef(f"k{r}probe", "kprobe", kprobe, None, Target.KPROBE, ret))
        name = f"k{r}probe.multi"
        rows.append(SectionDef(name, "kprobe.multi", kprobe, k_multi, Target.KPROBE_MULTI, ret))
        rows.append(SectionDef(f"k{r}syscall", "ksyscall", kprobe, None, Target.SYSCALL, ret))
    rows.append(SectionDef("kprobe.session", "kprobe.session", kprobe, k_session, Target.KPROBE_MULTI))
    for sleep in (False, True):
        s = ".s" if sleep else ""
        name = f"uprobe.session{s}"
        rows.append(SectionDef(name, "uprobe.session", kprobe, session, Target.UPROBE_MULTI, sleepable=sleep))
        rows.append(SectionDef(f"usdt{s}", "usdt", kprobe, None, Target.USDT, sleepable=sleep))
    return rows


def _tracing() -> list[SectionDef]:
    rows: list[SectionDef] = []
    for name in ("tracepoint", "tp"):
        rows.append(SectionDef(name, "tracepoint", ProgType.TRACEPOINT, None, Target.TRACEPOINT))
    for name in ("raw_tracepoint", "raw_tp"):
        rows.append(SectionDef(name, "raw_tracepoint", ProgType.RAW_TRACEPOINT, None, Target.SYMBOL))
        writable = ProgType.RAW_TRACEPOINT_WRITABLE
        rows.append(SectionDef(f"{name}.w", "raw_tracepoint.w", writable, None, Target.SYMBOL))
    tracing = ProgType.TRACING
    rows.append(SectionDef("tp_btf", "tp_btf", tracing, AttachType.TRACE_RAW_TP, Target.SYMBOL))
    for sleep in (False, True):
        s = ".s" if sleep else ""
        for name, prog_type, attach_type, is_return in (
            ("fentry", tracing, AttachType.TRACE_FENTRY, False),
            ("fexit", tracing, AttachType.TRACE_FEXIT, True),
            ("fmod_ret", tracing, AttachType.MODIFY_RETURN, False),
            ("iter", tracing, AttachType.TRACE_ITER, False),
            ("lsm", ProgType.LSM, AttachType.LSM_MAC, False),
            ("struct_ops", ProgType.STRUCT_OPS, AttachType.STRUCT_OPS, False),
        ):
            rows.append(SectionDef(name + s, name, prog_type, attach_type, Target.SYMBOL, is_return, sleep))
    rows.append(SectionDef("lsm_cgroup", "lsm_cgroup", ProgType.LSM, AttachType.LSM_CGROUP, Target.SYMBOL))
    rows.append(SectionDef("freplace", "freplace", ProgType.EXT, None, Target.SYMBOL))
    rows.append(SectionDef("perf_event", "perf_event", ProgType.PERF_EVENT, AttachType.PERF_EVENT, Target.NONE))
    rows.append(SectionDef("syscall", "syscall", ProgType.SYSCALL, None, Target.NONE, sleepable=True))
    return rows


def _network() -> list[SectionDef]:
    cls, xdp, at = ProgType.SCHED_CLS, ProgType.XDP, AttachType
    table: list[tuple[str, str, ProgType, AttachType | None]] = [
        ("socket", "socket", ProgType.SOCKET_FILTER, None),
        ("sk_reuseport/migrate", "sk_reuseport", ProgType.SK_REUSEPORT, at.SK_REUSEPORT_SELECT_OR_MIGRATE),
        ("sk_reuseport", "sk_reuseport", ProgType.SK_REUSEPORT, at.SK_REUSEPORT_SELECT),
        ("tc/ingress", "tc", cls, at.TCX_INGRESS),
        ("tc/egress", "tc", cls, at.TCX_EGRESS),
        ("tcx/ingress", "tcx", cls, at.TCX_INGRESS),
        ("tcx/egress", "tcx", cls, at.TCX_EGRESS),
        ("netkit/primary", "netkit", cls, at.NETKIT_PRIMARY),
        ("netkit/peer", "netkit", cls, at.NETKIT_PEER),
        ("tc", "tc", cls, None),
        ("classifier", "tc", cls, None),
        ("action", "action", ProgType.SCHED_ACT, None),
        ("xdp/devmap", "xdp", xdp, at.XDP_DEVMAP),
        ("xdp/cpumap", "xdp", xdp, at.XDP_CPUMAP),
        ("xdp.frags/devmap", "xdp.frags", xdp, at.XDP_DEVMAP),
        ("xdp.frags/cpumap", "xdp.frags", xdp, at.XDP_CPUMAP),
        ("xdp.frags", "xdp.frags", xdp, at.XDP),
        ("xdp", "xdp", xdp, at.XDP),
        ("lwt_in", "lwt_in", ProgType.LWT_IN, None),
        ("lwt_out", "lwt_out", ProgType.LWT_OUT, None),
        ("lwt_xmit", "lwt_xmit", ProgType.LWT_XMIT, None),
        ("lwt_seg6local", "lwt_seg6local", ProgType.LWT_SEG6LOCAL, None),
        ("sockops", "sockops", ProgType.SOCK_OPS, at.CGROUP_SOCK_OPS),
        ("sk_skb/stream_parser", "sk_skb", ProgType.SK_SKB, at.SK_SKB_STREAM_PARSER),
        ("sk_skb/stream_verdict", "sk_skb", ProgType.SK_SKB, at.SK_SKB_STREAM_VERDICT),
        ("sk_skb/verdict", "sk_skb", ProgType.SK_SKB, at.SK_SKB_VERDICT),
        ("sk_skb", "sk_skb", ProgType.SK_SKB, None),
        ("sk_msg", "sk_msg", ProgType.SK_MSG, at.SK_MSG_VERDICT),
        ("sk_lookup", "sk_lookup", ProgType.SK_LOOKUP, at.SK_LOOKUP),
        ("netfilter", "netfilter", ProgType.NETFILTER, at.NETFILTER),
        ("lirc_mode2", "lirc_mode2", ProgType.LIRC_MODE2, at.LIRC_MODE2),
        ("flow_dissector", "flow_dissector", ProgType.FLOW_DISSECTOR, at.FLOW_DISSECTOR),
    ]
    return [SectionDef(name, kind, prog, attach, Target.NONE) for name, kind, prog, attach in table]


def _cgroup() -> list[SectionDef]:
    skb, sock, at = ProgType.CGROUP_SKB, ProgType.CGROUP_SOCK, AttachType
    table: list[tuple[str, ProgType, AttachType | None]] = [
        ("cgroup_skb/ingress", skb, at.CGROUP_INET_INGRESS),
        ("cgroup_skb/egress", skb, at.CGROUP_INET_EGRESS),
        ("cgroup/skb", skb, None),
        ("cgroup/sock_create", sock, at.CGROUP_INET_SOCK_CREATE),
        ("cgroup/sock_release", sock, at.CGROUP_INET_SOCK_RELEASE),
        ("cgroup/sock", sock, at.CGROUP_INET_SOCK_CREATE),
        ("cgroup/post_bind4", sock, at.CGROUP_INET4_POST_BIND),
        ("cgroup/post_bind6", sock, at.CGROUP_INET6_POST_BIND),
        ("cgroup/sysctl", ProgType.CGROUP_SYSCTL, at.CGROUP_SYSCTL),
        ("cgroup/getsockopt", ProgType.CGROUP_SOCKOPT, at.CGROUP_GETSOCKOPT),
        ("cgroup/setsockopt", ProgType.CGROUP_SOCKOPT, at.CGROUP_SETSOCKOPT),
        ("cgroup/dev", ProgType.CGROUP_DEVICE, at.CGROUP_DEVICE),
    ]
    addr = ProgType.CGROUP_SOCK_ADDR
    for family in ("4", "6"):
        for verb in ("bind", "connect", "getpeername", "getsockname"):
            table.append((f"cgroup/{verb}{family}", addr, at[f"CGROUP_INET{family}_{verb.upper()}"]))
        for verb in ("sendmsg", "recvmsg"):
            table.append((f"cgroup/{verb}{family}", addr, at[f"CGROUP_UDP{family}_{verb.upper()}"]))
    for verb in ("connect", "sendmsg", "recvmsg", "getpeername", "getsockname"):
        table.append((f"cgroup/{verb}_unix", addr, at[f"CGROUP_UNIX_{verb.upper()}"]))
    return [SectionDef(name, name, prog, attach, Target.NONE) for name, prog, attach in table]


SECTIONS: Final[Mapping[str, SectionDef]] = MappingProxyType(
    {row.prefix: row for row in _probes() + _tracing() + _network() + _cgroup()}
)
"""All section types by their prefix."""


def parse_section(name: str) -> Section:
    """A section name → what its program is. Raises ObjectError for an unknown type or a malformed target."""
    text = name.removeprefix("?")
    row, rest = _match(name, text)
    section = Section(
        name,
        row.kind,
        row.prog_type,
        row.attach_type,
        is_return=row.is_return,
        sleepable=row.sleepable,
        autoload=not name.startswith("?"),
    )
    if not rest:
        return section
    return _PARSERS[row.target](section, rest)


def _match(name: str, text: str) -> tuple[SectionDef, str]:
    """The definition with the longest prefix of ``text`` that ends there or at a '/'; and what follows the '/'."""
    end = len(text)
    while end > 0:
        row = SECTIONS.get(text[:end])
        if row is not None:
            return row, text[end + 1 :]
        end = text.rfind("/", 0, end)
    head = text.partition("/")[0]
    near = difflib.get_close_matches(head, SECTIONS, n=3)
    raise ObjectError(
        f'the section name "{name}" is not a program type of libbpf\'s SEC() grammar',
        place=Place(section=name),
        hint=f"did you mean {' or '.join(near)}?" if near else 'for instance SEC("uprobe/PATH:FUNCTION")',
    )


def _malformed(section: Section, expected: str) -> ObjectError:
    return ObjectError(
        f'the target in the section name "{section.name}" is malformed',
        place=Place(section=section.name),
        hint=f"write {expected}",
    )


_NUMBER: Final = re.compile(r"0[xX][0-9a-fA-F]+|[0-9]+")


def _number(text: str) -> int | None:
    if not _NUMBER.fullmatch(text):
        return None
    return int(text, 16) if text[:2] in ("0x", "0X") else int(text, 10)


def _symbol_offset(section: Section, text: str, expected: str) -> tuple[str | None, int]:
    """``SYMBOL``, ``SYMBOL+OFFSET`` or ``OFFSET`` alone. A '+' that no number follows belongs to the symbol."""
    absolute = _number(text)
    if absolute is not None:
        return None, absolute
    symbol, plus, tail = text.rpartition("+")
    if plus:
        offset = _number(tail)
        if offset is not None and symbol:
            return symbol, offset
        if not symbol or not tail or tail[0].isdigit():
            raise _malformed(section, expected)
    return text, 0


def _parse_uprobe(section: Section, rest: str) -> Section:
    expected = f'SEC("{section.name.partition("/")[0]}/PATH:FUNCTION") or PATH:FUNCTION+OFFSET or PATH:0xOFFSET'
    path, colon, target = rest.partition(":")
    if not colon:
        return section
    if not path or not target:
        raise _malformed(section, expected)
    symbol, offset = _symbol_offset(section, target, expected)
    if section.is_return and symbol is not None and offset:
        raise ObjectError(
            f"a return probe cannot be at an offset: {symbol}+{offset:#x}",
            place=Place(section=section.name),
            hint="a return probe is attached to the whole function: leave the offset out",
        )
    return replace(section, path=path, symbol=symbol, offset=offset, auto_attach=True)


def _parse_uprobe_multi(section: Section, rest: str) -> Section:
    path, colon, pattern = rest.partition(":")
    if not path or not colon or not pattern:
        raise _malformed(section, f'SEC("{section.name.partition("/")[0]}/PATH:PATTERN"), with * and ? in PATTERN')
    return replace(section, path=path, symbol=pattern, auto_attach=True)


def _parse_usdt(section: Section, rest: str) -> Section:
    parts = rest.split(":")
    if len(parts) != 3 or not all(parts):
        raise _malformed(section, 'SEC("usdt/PATH:PROVIDER:NAME")')
    return replace(section, path=parts[0], provider=parts[1], symbol=parts[2], auto_attach=True)


def _parse_kprobe(section: Section, rest: str) -> Section:
    symbol, offset = _symbol_offset(section, rest, 'SEC("kprobe/FUNCTION") or FUNCTION+OFFSET')
    if section.is_return and offset:
        raise ObjectError(
            f"a return probe cannot be at an offset: {rest}",
            place=Place(section=section.name),
            hint="leave the offset out",
        )
    return replace(section, symbol=symbol, offset=offset, auto_attach=True)


def _parse_tracepoint(section: Section, rest: str) -> Section:
    category, slash, event = rest.partition("/")
    if not category or not slash or not event or "/" in event:
        raise _malformed(section, 'SEC("tracepoint/CATEGORY/NAME")')
    return replace(section, category=category, symbol=event, auto_attach=True)


def _parse_symbol(section: Section, rest: str) -> Section:
    return replace(section, symbol=rest, auto_attach=True)


def _parse_label(section: Section, rest: str) -> Section:
    del rest  # a label that some loaders use to tell programs of one type apart
    return section


_PARSERS: Final[Mapping[Target, Callable[[Section, str], Section]]] = MappingProxyType(
    {
        Target.NONE: _parse_label,
        Target.UPROBE: _parse_uprobe,
        Target.UPROBE_MULTI: _parse_uprobe_multi,
        Target.USDT: _parse_usdt,
        Target.KPROBE: _parse_kprobe,
        Target.KPROBE_MULTI: _parse_symbol,
        Target.SYSCALL: _parse_symbol,
        Target.TRACEPOINT: _parse_tracepoint,
        Target.SYMBOL: _parse_symbol,
    }
)
