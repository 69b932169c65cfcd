"""What the exit codes of `hsm-endorser` mean; scripts may rely on them.

| code | meaning |
|---|---|
| 0 | done, and everything that was asked for held |
| 1 | refused: a service answered no, or a transaction was not committed |
| 2 | usage: the arguments, a file that they name, or a folder's contents are wrong; nothing was tried |
| 3 | unreachable: a service did not answer, or a network did not become ready in time |
| 4 | verification failed: a receipt, a chain or a figure is not what it claims |
| 5 | failed: the service or the command broke down; its log says more |
| 130 | interrupted (Ctrl-C); what was acknowledged until then counts |
"""

from typing import Final

OK: Final = 0
REFUSED: Final = 1
USAGE: Final = 2
UNREACHABLE: Final = 3
VERIFICATION_FAILED: Final = 4
FAILED: Final = 5
INTERRUPTED: Final = 130
