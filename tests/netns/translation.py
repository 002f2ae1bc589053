"""What a NAT must do to single packets, looked at on the wire. Each check is a function; the name of the one to run is
the last argument. Prints nothing and exits 0 if it holds."""

import sys

from scapy.all import ICMP, IP, TCP, UDP, raw
from wire import CLIENT, NAT, REMOTE, Wire, checksums_hold

wire = Wire(*sys.argv[1:4])


def inner(packet):
    """The packet that an ICMP error quotes."""
    return IP(bytes(packet[ICMP].payload))


def one(*sent):
    came = wire.exchange(*sent)
    assert len(came) == 1, [packet.summary() for packet in came]
    return came[0]


def icmp_error_from_outside_reaches_the_client():
    port = wire.open_udp(6000)
    sent = IP(src=NAT, dst=REMOTE, ttl=61, id=77) / UDP(sport=port, dport=7000) / b"open"
    for kind, code, extra in [(3, 1, {}), (3, 3, {}), (3, 4, {"nexthopmtu": 1280}), (11, 0, {}), (11, 1, {}), (12, 0, {})]:
        for quoted in [raw(sent), raw(sent)[:28]]:
            error = one(IP(src="198.51.100.1", dst=NAT) / ICMP(type=kind, code=code, **extra) / quoted)
            assert (error.src, error.dst) == ("198.51.100.1", CLIENT), error.summary()
            assert (error[ICMP].type, error[ICMP].code) == (kind, code), error.summary()
            if "nexthopmtu" in extra:
                assert error[ICMP].nexthopmtu == 1280
            about = inner(error)
            assert (about.src, about.dst, about[UDP].sport, about[UDP].dport) == (CLIENT, REMOTE, 6000, 7000)
            assert checksums_hold(error), "outer and ICMP checksums"
            header = IP(raw(about)[:20])
            chksum = header.chksum
            del header.chksum
            assert IP(raw(header)).chksum == chksum, "the quoted header's checksum"
    # The session lives on.
    reply = one(IP(src=REMOTE, dst=NAT) / UDP(sport=7000, dport=port) / b"still here")
    assert reply.dst == CLIENT and reply[UDP].dport == 6000


def icmp_error_from_inside_reaches_the_remote():
    port = wire.open_udp(6000)
    received = one(IP(src=REMOTE, dst=NAT) / UDP(sport=7000, dport=port) / b"to a closed port")
    error = one(IP(src=CLIENT, dst=REMOTE) / ICMP(type=3, code=3) / raw(received)[:64])
    assert (error.src, error.dst) == (NAT, REMOTE), error.summary()
    about = inner(error)
    assert (about.src, about.dst, about[UDP].sport, about[UDP].dport) == (REMOTE, NAT, 7000, port)
    assert checksums_hold(error)
    assert CLIENT.encode() not in raw(error)
    assert bytes(int(part) for part in CLIENT.split(".")) not in raw(error), "the private address shows"


def udp_checksum_zero_stays_zero_and_a_wrong_one_wrong():
    port = wire.open_udp(6000)
    for chksum in [0, None]:
        sent = one(IP(src=CLIENT, dst=REMOTE) / UDP(sport=6000, dport=7000, chksum=chksum) / b"out")
        assert (sent[UDP].chksum == 0) == (chksum == 0)
        assert checksums_hold(sent)
        received = one(IP(src=REMOTE, dst=NAT) / UDP(sport=7000, dport=port, chksum=chksum) / b"in")
        assert (received[UDP].chksum == 0) == (chksum == 0)
        assert checksums_hold(received)
    for wrong in [
        IP(src=CLIENT, dst=REMOTE) / UDP(sport=6000, dport=7000, chksum=0x1234) / b"wrong",
        IP(src=REMOTE, dst=NAT) / UDP(sport=7000, dport=port, chksum=0x1234) / b"wrong",
    ]:
        for packet in wire.exchange(wrong):
            assert not checksums_hold(packet), "a wrong checksum was repaired"


def used_up_ttl_is_reported_to_the_sender():
    port = wire.open_udp(6000)
    sent = IP(src=CLIENT, dst=REMOTE, ttl=1) / UDP(sport=6000, dport=7000) / b"out"
    told = one(sent)
    assert (told.src, told.dst, told[ICMP].type, told[ICMP].code) == (NAT, CLIENT, 11, 0), told.summary()
    about = inner(told)
    assert (about.src, about.dst, about[UDP].sport) == (CLIENT, REMOTE, 6000), "it quotes what the client sent"
    received = IP(src=REMOTE, dst=NAT, ttl=1) / UDP(sport=7000, dport=port) / b"in"
    told = one(received)
    assert (told.src, told.dst, told[ICMP].type, told[ICMP].code) == (NAT, REMOTE, 11, 0), told.summary()
    about = inner(told)
    assert (about.src, about.dst, about[UDP].dport) == (REMOTE, NAT, port), "it quotes what the remote sent"


def tcp_from_inside_without_a_session_is_reset():
    reset = one(IP(src=CLIENT, dst=REMOTE) / TCP(sport=6001, dport=80, flags="A", seq=1000, ack=5000) / b"data")
    assert (reset.src, reset.dst) == (REMOTE, CLIENT), reset.summary()
    assert reset[TCP].flags.R and reset[TCP].seq == 5000, reset.show(dump=True)
    assert checksums_hold(reset)
    # A reset is never answered with one.
    assert wire.exchange(IP(src=CLIENT, dst=REMOTE) / TCP(sport=6001, dport=80, flags="R", seq=1)) == []


def reset_counts_only_within_the_window():
    def outwards(flags, **fields):
        return one(IP(src=CLIENT, dst=REMOTE) / TCP(sport=6002, dport=80, flags=flags, window=1000, **fields))

    syn = outwards("S", seq=99)
    port = syn[TCP].sport

    def inwards(flags, **fields):
        return wire.exchange(IP(src=REMOTE, dst=NAT) / TCP(sport=80, dport=port, flags=flags, window=1000, **fields))

    assert len(inwards("SA", seq=499, ack=100)) == 1
    outwards("A", seq=100, ack=500)
    assert inwards("R", seq=500 + (1 << 20)) == [], "a reset far out of the window passed"
    assert len(inwards("PA", seq=500, ack=100)) == 1, "the session is gone"
    assert len(inwards("R", seq=500)) == 1, "a good reset did not pass"


def datagram_too_big_for_the_way_out():
    tell = one(IP(src=CLIENT, dst=REMOTE, flags="DF") / UDP(sport=6003, dport=7000) / (b"x" * 3000))
    assert tell.dst == CLIENT and (tell[ICMP].type, tell[ICMP].code) == (3, 4), tell.summary()
    assert tell[ICMP].nexthopmtu == 1500
    assert checksums_hold(tell)
    pieces = wire.exchange(IP(src=CLIENT, dst=REMOTE) / UDP(sport=6003, dport=7000) / (b"x" * 3000))
    assert len(pieces) == 3 and all(len(piece) <= 1500 and piece.src == NAT for piece in pieces)
    assert sum(len(piece) - 20 for piece in pieces) == 3008
    assert len({piece.id for piece in pieces}) == 1


def fragments_of_two_hosts_do_not_collide():
    ids = set()
    for source in [CLIENT, "10.0.2.11"]:
        data = raw(UDP(sport=6004, dport=7000) / (b"x" * 1000))
        first = IP(src=source, dst=REMOTE, id=42, proto=17, flags="MF") / data[:504]
        last = IP(src=source, dst=REMOTE, id=42, proto=17, frag=63) / data[504:]
        pieces = wire.exchange(first, last)
        assert [piece.src for piece in pieces] == [NAT, NAT], [piece.summary() for piece in pieces]
        [number] = {piece.id for piece in pieces}
        ids.add(number)
    assert len(ids) == 2, "both have one identification"


def fragments_pass_in_any_order():
    port = wire.open_udp(6005)
    number = 1000
    for order in [(0, 1, 2), (2, 1, 0), (1, 0, 2), (1, 2, 0)]:
        for way in ["outwards", "inwards"]:
            number += 1
            data = raw(UDP(sport=6005, dport=7000, chksum=0) / bytes(i % 251 for i in range(1400)))
            ip = IP(src=CLIENT, dst=REMOTE)
            if way == "inwards":
                data = raw(UDP(sport=7000, dport=port, chksum=0) / bytes(i % 251 for i in range(1400)))
                ip = IP(src=REMOTE, dst=NAT)
            ip.id, ip.proto = number, 17
            cut = [0, 512, 1024, len(data)]
            fragments = []
            for i in range(3):
                fragment = ip.copy()
                fragment.frag, fragment.flags = cut[i] // 8, "MF" if i < 2 else 0
                fragments.append(fragment / data[cut[i] : cut[i + 1]])
            pieces = wire.exchange(*[fragments[i] for i in order])
            assert len(pieces) == 3, (way, order, [piece.summary() for piece in pieces])
            assert all(checksums_hold(piece) or piece.frag == 0 for piece in pieces)
            pieces.sort(key=lambda piece: piece.frag)
            whole = b"".join(raw(piece)[20:] for piece in pieces)
            assert whole[8:] == data[8:], "other bytes came out"
            ends = {(piece.src, piece.dst, piece.id) for piece in pieces}
            assert len(ends) == 1, ends
            want = (NAT, REMOTE) if way == "outwards" else (REMOTE, CLIENT)
            assert ends.pop()[:2] == want


globals()[sys.argv[4]]()
