"""What all parties must agree on, byte for byte. Pure: no I/O, no clock, no private keys.

Digests are written as lower-case hexadecimal, keys and signatures as base64 (RFC 4648, section 4), times as
milliseconds since the Unix epoch, heights as block numbers counted from the genesis block 0.
"""
