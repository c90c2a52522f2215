"""Names of other file formats by their first bytes, for error messages with advice."""

from __future__ import annotations

# Capture formats that Wireshark's editcap reads.
CAPTURES = (
    (b"snoop\0\0\0", "a snoop capture"),
    (b"RTSS", "a Microsoft Network Monitor 1 capture"),
    (b"GMBU", "a Microsoft Network Monitor 2 capture"),
    (b"TRSNIFF data    \x1a", "a Sniffer (DOS) capture"),
    (b"XCP\0", "a Sniffer (Windows) or NetXRay capture"),
    (b"iptrace 1.0", "an AIX iptrace capture"),
    (b"iptrace 2.0", "an AIX iptrace capture"),
    (b"\x7fver", "an OmniPeek capture"),
    (b"btsnoop\0", "a Bluetooth btsnoop capture"),
    (b"\x05VNF", "a Visual Networks capture"),
    (b"\xaa\xaa\xaa\xaa", "a 5View capture"),
    (b"EyeSDN", "an EyeSDN capture"),
)
# Other files that users may give: format, and advice.
OTHERS = (
    (b"BZh", "compressed by bzip2: bzip2 -dc FILE | vnic replay - ..."),
    (b"\xfd7zXZ\0", "compressed by xz: xz -dc FILE | vnic replay - ..."),
    (b"PK\x03\x04", "a ZIP archive: unzip -p FILE | vnic replay - ..."),
)


def describe(head: bytes) -> str:
    """The error text for a file that begins with `head`."""
    for magic, name in CAPTURES:
        if head.startswith(magic):
            return (
                f"is {name}: expected pcap or pcapng; "
                "Wireshark's `editcap -F pcapng FILE NEW.pcapng` converts it"
            )
    for magic, text in OTHERS:
        if head.startswith(magic):
            return f"is {text}"
    begins = head[:4].hex(" ")
    return (
        f"begins with {begins}: not a capture: expected pcap or pcapng "
        "(Wireshark's editcap -F pcapng converts many others, such as ERF)"
    )
