"""What is wrong on this host, why it matters, and the command that mends it: read first, judged apart from that."""
