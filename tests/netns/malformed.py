"""Packets that nobody should send: each must vanish, and be counted under a fitting reason.

Prints a JSON list of {name, expected, counted, came}; `expected` are the reasons that fit, or null where the packet
is not recognisable as NAT's, so that dropping it is the kernel's (it does not forward)."""

import json
import sys

from scapy.all import ICMP, IP, TCP, UDP, Dot1AD, Dot1Q, Ether, IPOption_LSRR, IPOption_RR, raw
from wire import CLIENT, NAT, REMOTE, Wire

wire = Wire(*sys.argv[1:4])
PORT = wire.open_udp(6000)
results = []


def out(**fields):
    return IP(src=CLIENT, dst=REMOTE, **fields)


def into(**fields):
    return IP(src=REMOTE, dst=NAT, **fields)


def udp_out():
    return UDP(sport=6000, dport=7000)


def udp_in():
    return UDP(sport=7000, dport=PORT)


def patched(packet, at, value, fix_checksum=True):
    """The bytes of a packet with some of them replaced, its IP checksum right again."""
    data = bytearray(raw(packet))
    data[at : at + len(value)] = value
    if fix_checksum:
        data[10:12] = b"\0\0"
        length = max(20, (data[0] & 15) * 4)
        total = sum(int.from_bytes(data[i : i + 2], "big") for i in range(0, length, 2))
        while total >> 16:
            total = (total & 0xFFFF) + (total >> 16)
        data[10:12] = (~total & 0xFFFF).to_bytes(2, "big")
    return bytes(data)


def case(name, expected, *packets):
    came, counted = wire.dropped(*packets)
    summaries = [packet.summary() for packet in came]
    results.append({"name": name, "expected": expected, "counted": counted, "came": summaries})


ways = [("outwards", out, udp_out), ("inwards", into, udp_in)]
CUT = ["truncated", "bad_header"]


def outwards_only(way, expected):
    """From outside, what cannot be seen to be for a port of NAT's is left to the kernel."""
    return expected if way == "outwards" else None


for way, ip, udp in ways:
    whole = ip() / udp() / (b"x" * 40)
    case(f"{way}: shorter than an IP header", None, raw(whole)[:12])
    case(f"{way}: total length beyond the frame", CUT, patched(whole, 2, b"\x02\x00"))
    case(f"{way}: total length within the header", CUT, patched(whole, 2, b"\x00\x10"))
    case(f"{way}: header length below 20", outwards_only(way, CUT), patched(whole, 0, b"\x44"))
    beyond = patched(ip() / b"1234", 0, b"\x4f")
    case(f"{way}: header length beyond the packet", outwards_only(way, [*CUT, "ip_options"]), beyond)
    case(f"{way}: version 6 in an IPv4 frame", None, patched(whole, 0, b"\x65"))
    case(f"{way}: wrong IP checksum", ["bad_checksum"], patched(whole, 10, b"\x12\x34", fix_checksum=False))
    for option in [IPOption_LSRR(routers=["198.51.100.1"]), IPOption_RR(routers=["0.0.0.0"])]:
        case(f"{way}: {option.name}", ["ip_options"], ip(options=[option]) / udp() / b"x")

    for name, outer in [
        ("802.1Q", Dot1Q(vlan=5)),
        ("802.1ad", Dot1AD(vlan=4095)),
        ("two of 802.1Q", Dot1Q(vlan=0) / Dot1Q(vlan=5)),
    ]:
        case(f"{way}: a tag as Egret's own in {name}", None, Ether() / outer / Dot1AD(vlan=4095) / whole)

    case(f"{way}: UDP cut in its header", CUT, ip(proto=17) / raw(udp())[:6])
    case(f"{way}: UDP length beyond the packet", CUT, patched(whole, 24, b"\x02\x00"))
    case(f"{way}: UDP length below 8", CUT, patched(whole, 24, b"\x00\x04"))

    tcp = TCP(sport=udp().sport, dport=udp().dport, seq=1, ack=1, flags="A")
    case(f"{way}: TCP cut in its header", CUT, ip(proto=6) / raw(tcp)[:12])
    for offset in [4, 15]:
        tcp.dataofs = offset
        case(f"{way}: TCP data offset {offset} without such a header", CUT, ip() / tcp.copy())
    tcp.dataofs = None
    for flags in ["", "SF", "SR", "FPU", "FSRPAU", "F", "SFRA"]:
        tcp.flags = flags
        case(f"{way}: TCP flags {flags or 'none'}", ["bad_flags"], ip() / tcp.copy())

    echo = ICMP(id=PORT, type=8 if way == "outwards" else 0, chksum=0x1234)
    case(f"{way}: wrong ICMP checksum", ["bad_checksum"], ip() / echo / (b"x" * 8))
    case(f"{way}: ICMP cut in its header", outwards_only(way, CUT), ip(proto=1) / b"\x08\x00\xf7")
    redirect = ip() / ICMP(type=5, code=1, gw="10.0.0.66") / raw(whole)[:28]
    case(f"{way}: ICMP redirect", outwards_only(way, ["icmp_type", "icmp_no_session"]), redirect)
    empty = ip() / ICMP(type=3, code=3)
    case(f"{way}: ICMP error that quotes nothing", outwards_only(way, [*CUT, "icmp_no_session"]), empty)

land = IP(src=NAT, dst=NAT) / UDP(sport=PORT, dport=PORT) / b"land"
case("land: the external endpoint to itself", ["martian"], land)
land = IP(src=CLIENT, dst=CLIENT) / TCP(sport=80, dport=80, flags="S")
case("land: a client to itself", None, land)
for source in ["127.0.0.1", "0.0.0.0", "224.0.0.5", "240.0.0.1", "255.255.255.255"]:
    case(f"from {source} to a mapping", ["martian"], IP(src=source, dst=NAT) / udp_in() / b"x")
for target in ["127.0.0.2", "0.0.0.0", "224.0.0.5", "240.0.0.1", "255.255.255.255"]:
    case(f"from a client to {target}", None, IP(src=CLIENT, dst=target) / udp_out() / b"x")
case("from a source that is not internal", None, IP(src="192.168.7.7", dst=REMOTE) / udp_out() / b"x")

for way, ip, udp in ways:
    datagram = raw(udp() / (b"overlap " * 200))
    first = ip(id=101, proto=17, flags="MF", frag=90) / datagram[720:1520]
    over = ip(id=101, proto=17, flags="MF", frag=80) / datagram[640:1440]
    case(f"{way}: fragment over another", ["fragment_overlap"], first, over)
    last = ip(id=102, proto=17, frag=8189) / (b"y" * 200)
    case(f"{way}: fragment beyond 65535 bytes", [*CUT, "fragment_overlap"], last)
    tiny = ip(id=103, proto=6, flags="MF", frag=0) / raw(TCP(sport=udp().sport, dport=udp().dport, flags="S"))[:8]
    case(f"{way}: first fragment without all of its TCP header", [*CUT, "fragment_overlap"], tiny)

case("inwards: no mapping", ["no_session"], into() / UDP(sport=7000, dport=PORT ^ 0x0100) / b"x")
case("inwards: a mapping, another remote port", ["filtered"], into() / UDP(sport=7001, dport=PORT) / b"x")
quoted = IP(src=NAT, dst=REMOTE) / UDP(sport=PORT ^ 0x0100, dport=7000)
case("inwards: ICMP error about what nobody sent", ["icmp_no_session"], into() / ICMP(type=3, code=1) / raw(quoted))
print(json.dumps(results))
