"""The endorsement device: the only room that knows PKCS#11 (in one file), keys, the guard and the typed doors.

Whoever holds a private key does nothing but decide whether to sign. `device.py` tells the story: check, guard,
sign, answer.
"""
