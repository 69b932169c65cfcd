#!/usr/bin/env bash
# Set everything up, then run the tests: ./test.sh [arguments of pytest]; those that take minutes: ./test.sh -m slow;
# those on PKCS#11 modules other than SoftHSM2: ./test.sh --modules [arguments of pytest]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
. scripts/setup.sh
prepare_test_tools
if [ "${1:-}" = --modules ]; then
    shift
    prepare_modules
    # The tests of a module stay together: each of them has a token, and what that needs, once.
    exec scripts/own_mounts.sh .venv/bin/python -m pytest -n 2 --dist loadgroup -m modules tests/modules "$@"
fi
# One worker for each processor; the tests of a file share what they set up. "-n 0" runs them one after the other.
exec .venv/bin/python -m pytest -n auto --dist loadfile "$@"
