"""Judges the checksums of the Ethernet frames in a pcap file.

Each packet has its checksums deleted and is built again by scapy; the bytes
must come out as they were. Packets in a tunnel and packets that an ICMP error
quotes are judged one by one, from their own bytes. Fragments of the same
second are put together again and the whole is judged.

Prints as JSON how many checksums of which kind were judged, and the objections
by the number of the frame.
"""

import collections
import json
import sys

from scapy.layers.inet import ICMP, IP, TCP, UDP, in4_chksum
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment, _ICMPv6, in6_chksum
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import bind_layers
from scapy.utils import rdpcap

bind_layers(Ether, Dot1Q, type=0x9100)

# The most packets inside one another.
DEEPEST = 4

judged = collections.Counter()
objections = []
# The fragments that have come, by what they are fragments of.
waiting = {}


class Frame:
    """A frame, its number, and the group of frames that it belongs to."""

    def __init__(self, number, group, raw):
        self.number, self.group, self.raw = number, group, raw

    def object(self, text):
        objections.append([self.number, text])

    def judge(self):
        layer, start = Ether(self.raw), 14
        while isinstance(layer.payload, Dot1Q):
            layer, start = layer.payload, start + 4
        if isinstance(layer.payload, (IP, IPv6)):
            self.packet(self.raw[start:], "")
        else:
            self.object("it carries no IP packet")

    def packet(self, raw, place, depth=1):
        """Judges an IP packet and what is in it. `place` says where it is."""
        if raw[0] >> 4 == 6:
            header, length = 40, 40 + int.from_bytes(raw[4:6], "big")
        else:
            header, length = 4 * (raw[0] & 15), int.from_bytes(raw[2:4], "big")
        if len(raw) < length and "quoted " not in place:
            self.object(f"the {place}packet is cut short")
            return
        kind = IP if raw[0] >> 4 == 4 else IPv6
        if kind is IP and len(raw) >= header:
            # Alone: no payload is made of it that could be built differently.
            self.rebuild(IP(raw[:header]), raw[:header], "chksum", place)
        if len(raw) < length:
            judged["cut quotes"] += 1
            return
        raw = raw[:length]
        packet = kind(raw)
        fragment = packet.getlayer(IPv6ExtHdrFragment)
        if kind is IP and (packet.flags.MF or packet.frag):
            data, key = raw[header:], (packet.src, packet.dst, packet.proto, packet.id)
            whole = self.together(key, packet.frag, packet.flags.MF, data)
            if whole:
                packet.flags.MF = packet.frag = 0
                del packet.len, packet.chksum
                packet.remove_payload()
                raw = bytes(packet / whole)
                self.transport(IP(raw), raw, "reassembled " + place, depth)
        elif fragment and (fragment.m or fragment.offset):
            data = raw[length - len(fragment.payload) :]
            key = packet.src, packet.dst, fragment.id
            whole = self.together(key, fragment.offset, fragment.m, data)
            if whole:
                below, following = fragment.underlayer, fragment.nh
                below.remove_payload()
                below.nh = following
                packet.plen = len(packet) - 40 + len(whole)
                raw = bytes(packet) + whole
                self.transport(IPv6(raw), raw, "reassembled " + place, depth)
        else:
            self.transport(packet, raw, place, depth)

    def together(self, key, offset, more, data):
        """The whole, when with this fragment all are there."""
        key = (self.group, *key)
        if offset == 0 or key not in waiting:
            waiting[key] = {}
        pieces = waiting[key]
        pieces[8 * offset] = data, bool(more)
        whole = b""
        while len(whole) in pieces:
            data, more = pieces[len(whole)]
            whole += data
            if not more:
                del waiting[key]
                return whole
            if not data:
                break
        return None

    def transport(self, packet, raw, place, depth):
        """Judges what a whole packet carries."""
        layer, start = packet, 0
        while not isinstance(layer, (TCP, UDP, ICMP, _ICMPv6)):
            start += len(layer) - len(layer.payload)
            layer = layer.payload
            if not layer:
                return
            if isinstance(layer, (IP, IPv6)):
                self.inside(raw[start:], "inner " + place, depth)
                return
        if isinstance(layer, UDP) and layer.chksum == 0:
            judged[f"{place}UDP without checksum"] += 1
        elif isinstance(layer, UDP) and layer.len != len(raw) - start:
            # Fragments of several datagrams, perhaps
            judged[f"{place}UDP of another length"] += 1
        else:
            field = "cksum" if isinstance(layer, _ICMPv6) else "chksum"
            self.rebuild(packet, raw, field, place, layer)
        errors = range(1, 5) if isinstance(layer, _ICMPv6) else (3, 4, 5, 11, 12)
        if isinstance(layer, (ICMP, _ICMPv6)) and layer.type in errors:
            self.inside(raw[start + 8 :], "quoted " + place, depth)

    def inside(self, raw, place, depth):
        if raw and depth < DEEPEST:
            self.packet(raw, place, depth + 1)

    def rebuild(self, packet, raw, field, place, layer=None):
        """Compares a packet, built without this checksum of a layer, with what
        it was."""
        layer = layer or packet
        name = "ICMPv6" if isinstance(layer, _ICMPv6) else layer.__class__.__name__
        stored = getattr(layer, field)
        delattr(layer, field)
        built = bytes(packet)
        if built != raw and isinstance(layer, TCP):
            setattr(layer, field, stored)
            if bytes(packet) != raw:
                built = summed(layer, raw)
        judged[place + name] += 1
        if built != raw:
            right = getattr(packet.__class__(built)[layer.__class__], field)
            self.object(
                f"the {place}{name} checksum is {stored:04x}, not {right:04x}"
                if stored != right
                else f"the {place}{name} packet is written {built.hex()}, not {raw.hex()}"
            )


def summed(tcp, raw):
    """The packet with the checksum over its bytes as they are: options that
    contradict themselves scapy would write in its own way."""
    place = len(raw) - len(tcp.original)
    segment = raw[place : place + 16] + bytes(2) + raw[place + 18 :]
    below = tcp.underlayer
    while not isinstance(below, (IP, IPv6)):
        below = below.underlayer
    if isinstance(below, IP):
        check = in4_chksum(6, below, segment)
    else:
        check = in6_chksum(6, tcp, segment)
    return raw[: place + 16] + check.to_bytes(2, "big") + raw[place + 18 :]


for number, frame in enumerate(rdpcap(sys.argv[1])):
    try:
        Frame(number, int(frame.time), frame.original).judge()
    except Exception as error:
        objections.append([number, f"scapy cannot read it: {error!r}"])

json.dump({"judged": judged, "objections": objections}, sys.stdout)
