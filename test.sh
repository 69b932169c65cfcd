#!/usr/bin/env bash
# Set everything up, then run the tests: ./test.sh [arguments of pytest]; those that take minutes: ./test.sh -m slow
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
. scripts/setup.sh
prepare_test_tools
# One worker for each processor; the tests of a file share what they set up. "-n 0" runs them one after the other.
exec .venv/bin/python -m pytest -n auto --dist loadfile "$@"
