"""memif 2.0: the messages of both sides, and their sessions. The rings: virt/memif_port.pyx."""
