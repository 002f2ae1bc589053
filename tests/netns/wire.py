"""The router's place on the NAT host's link, played by hand: frames of our own making go in, and every IPv4 frame
that comes back is seen. The router's kernel must be kept from handling them (the tests drop them with nft)."""

import json
import socket
import subprocess
import time

from scapy.all import IP, UDP, Ether, raw

CLIENT = "10.0.1.11"
NAT = "10.0.0.10"
REMOTE = "198.51.100.99"
DEADLINE_SECONDS = 10


class Wire:
    def __init__(self, interface, nat_mac, status_command):
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003))
        self.socket.bind((interface, 0))
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        self.nat_mac = nat_mac
        self.own_mac = self.socket.getsockname()[4].hex(":")
        self.status_command = status_command.split()
        self.controls = 0

    def send(self, packet):
        """Sends IPv4 bytes, or a scapy packet, to the NAT host; a frame is sent as it is, with the addresses put in."""
        if isinstance(packet, Ether):
            packet.src, packet.dst = self.own_mac, self.nat_mac
            self.socket.send(raw(packet))
            return
        header = Ether(src=self.own_mac, dst=self.nat_mac, type=0x0800)
        self.socket.send(raw(header) + (packet if isinstance(packet, bytes) else raw(packet)))

    def receive(self, until):
        """The packets from the NAT host up to the one for which `until` holds, that one last."""
        packets = []
        end = time.monotonic() + DEADLINE_SECONDS
        while True:
            self.socket.settimeout(max(0.001, end - time.monotonic()))
            try:
                frame, address = self.socket.recvfrom(65535)
            except TimeoutError:
                seen = [packet.summary() for packet in packets]
                raise SystemExit(f"nothing that was waited for came within {DEADLINE_SECONDS} s, but: {seen}")
            outgoing = address[2] == socket.PACKET_OUTGOING
            if outgoing or frame[6:12].hex(":") != self.nat_mac or frame[12:14] != b"\x08\x00":
                continue
            packets.append(IP(frame[14:]))
            if until(packets[-1]):
                return packets

    def exchange(self, *sent):
        """Sends packets, and gives all that came of them. A plain datagram follows, which must be translated:
        once it is back, all before it has been dealt with. Each is of a session of its own, so that no fast path ever
        carries one past them."""
        for packet in sent:
            self.send(packet)
        self.controls += 1
        mark = b"control %d." % self.controls
        self.send(IP(src="10.0.1.250", dst="198.51.100.250") / UDP(sport=20000 + self.controls, dport=9009) / mark)
        return self.receive(lambda packet: mark in bytes(packet))[:-1]

    def open_udp(self, port, remote_port=7000):
        """Opens a UDP session from the client's port, and gives its external one."""
        probe = IP(src=CLIENT, dst=REMOTE) / UDP(sport=port, dport=remote_port) / b"open"
        [opened] = self.exchange(probe)
        assert opened.src == NAT and opened.dst == REMOTE, opened.summary()
        return opened[UDP].sport

    def drops(self):
        """Egret's drop counters, by reason."""
        ran = subprocess.run(self.status_command, stdout=subprocess.PIPE, check=True)
        return json.loads(ran.stdout)["drops"]

    def dropped(self, *sent):
        """Sends packets; gives what came of them, and by how much which drop counters rose."""
        before = self.drops()
        came = self.exchange(*sent)
        after = self.drops()
        return came, {reason: after[reason] - before[reason] for reason in after if after[reason] != before[reason]}


def checksums_hold(packet):
    """Whether all checksums of a packet are what scapy would compute (a UDP one may be absent)."""
    fresh = packet.copy()
    layer = fresh
    while layer:
        if layer.name in ("IP", "TCP", "UDP", "ICMP") and not (layer.name == "UDP" and layer.chksum == 0):
            del layer.chksum
        if layer.name in ("ICMP", "IP in ICMP"):
            break
        layer = layer.payload
    return bytes(IP(bytes(fresh))) == bytes(packet)
