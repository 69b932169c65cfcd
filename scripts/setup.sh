#!/usr/bin/env bash
# Prepare this folder: SoftHSM2 from the distribution, Python packages from the lock file into .venv.
#
# Sourced by demo.sh and test.sh, so that what it exports reaches them; `bash scripts/setup.sh` prepares only.
# The second call finds everything in place and does nothing. All messages go to standard error.
set -euo pipefail

PROJECT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="$PROJECT/.venv"
SOFTHSM_FOLDER="$PROJECT/.softhsm" # where the package is unpacked when it cannot be installed
STAMP="$VENV/.prepared"

say() { printf '%s\n' "$*" >&2; }

# fail REASON LINE: the line is what a person can copy and run.
fail() {
    say "setup: $1"
    say "Run this, then try again:"
    say "    $2"
    exit 1
}

# How to get administrator's rights: nothing for root, sudo when it answers (or may ask on a terminal), else status 1.
administrator() {
    if [ "$(id -u)" = 0 ]; then
        SUDO=()
    elif command -v sudo >/dev/null 2>&1 && { sudo -n true 2>/dev/null || [ -t 0 ]; }; then
        SUDO=(sudo)
    else
        return 1
    fi
}

# apt_install PACKAGE...: install from the distribution; refreshes the package lists only when that is needed.
apt_install() {
    command -v apt-get >/dev/null 2>&1 || return 1
    administrator || return 1
    local install=(env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@")
    say "setup: installing $* with apt-get"
    "${SUDO[@]}" "${install[@]}" >&2 </dev/null && return 0
    "${SUDO[@]}" apt-get update -q >&2 </dev/null || return 1
    "${SUDO[@]}" "${install[@]}" >&2 </dev/null
}

# ---- SoftHSM2 ------------------------------------------------------------------------------------------------------

find_softhsm_module() {
    local candidate
    for candidate in "$@"; do
        [ -e "$candidate" ] && printf '%s' "$candidate" && return 0
    done
    return 1
}

softhsm_installed() {
    command -v softhsm2-util >/dev/null 2>&1 &&
        find_softhsm_module /usr/lib/softhsm/libsofthsm2.so /usr/lib/*/softhsm/libsofthsm2.so \
            /usr/lib64/softhsm/libsofthsm2.so /usr/local/lib/softhsm/libsofthsm2.so /usr/lib64/pkcs11/libsofthsm2.so \
            >/dev/null
}

# Let programs find the unpacked package: softhsm2-util and shared libraries (softhsm/installation.py finds the module).
use_unpacked_softhsm() {
    find_softhsm_module "$SOFTHSM_FOLDER"/usr/lib/softhsm/libsofthsm2.so \
        "$SOFTHSM_FOLDER"/usr/lib/*/softhsm/libsofthsm2.so >/dev/null || return 1
    export PATH="$SOFTHSM_FOLDER/usr/bin:$PATH"
    local libraries
    for libraries in "$SOFTHSM_FOLDER"/usr/lib/*-linux-gnu*; do
        [ -d "$libraries" ] && export LD_LIBRARY_PATH="$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
    done
    softhsm2-util --version >/dev/null 2>&1
}

# Without administrator's rights: download the packages with apt's own client and unpack them beside the project.
unpack_softhsm() {
    command -v apt-get >/dev/null 2>&1 && command -v dpkg >/dev/null 2>&1 || return 1
    say "setup: unpacking softhsm2 into ${SOFTHSM_FOLDER#"$PROJECT"/} (no administrator's rights to install it)"
    local work="$SOFTHSM_FOLDER/download"
    mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
    local own=(-q -o "Dir::State::lists=$work/lists" -o "Dir::Cache=$work/cache")
    (
        cd "$work"
        if ! apt-get -q download softhsm2 libsofthsm2 >&2; then
            apt-get "${own[@]}" update >&2 && apt-get "${own[@]}" download softhsm2 libsofthsm2 >&2
        fi
    ) || return 1
    unpack_downloaded "$work"
    use_unpacked_softhsm && return 0
    # A shared library of the packages is missing on this machine: unpack what they depend on as well.
    (
        cd "$work"
        local depends
        depends="$(apt-cache depends softhsm2 libsofthsm2 | awk '$1 == "Depends:" && $2 ~ /^lib(ssl|sqlite|botan)/ {print $2}' | sort -u)"
        # shellcheck disable=SC2086  # one word for each package
        apt-get -q download $depends >&2 || apt-get "${own[@]}" download $depends >&2
    ) || return 1
    unpack_downloaded "$work"
    use_unpacked_softhsm
}

unpack_downloaded() {
    local package
    for package in "$1"/*.deb; do
        dpkg -x "$package" "$SOFTHSM_FOLDER"
        rm -f "$package"
    done
}

prepare_softhsm() {
    softhsm_installed && return 0
    use_unpacked_softhsm && return 0
    apt_install softhsm2 libsofthsm2 && softhsm_installed && return 0
    unpack_softhsm && return 0
    fail "SoftHSM2 cannot be installed" "sudo apt-get update && sudo apt-get install -y softhsm2 libsofthsm2"
}

# ---- what tests need besides (called by test.sh) ---------------------------------------------------------------------

test_tools_installed() {
    command -v p11-kit >/dev/null 2>&1 && command -v strace >/dev/null 2>&1 &&
        { command -v cc || command -v gcc; } >/dev/null 2>&1 && [ -e /usr/include/stdio.h ] &&
        find_softhsm_module /usr/lib/*/pkcs11/p11-kit-client.so /usr/lib/pkcs11/p11-kit-client.so \
            /usr/lib64/pkcs11/p11-kit-client.so >/dev/null
}

# A C compiler for the module that misbehaves, a token at the end of a connection, and faults in system calls.
prepare_test_tools() {
    local tools=(gcc libc6-dev p11-kit p11-kit-modules strace)
    test_tools_installed && return 0
    apt_install "${tools[@]}" && test_tools_installed && return 0
    fail "what the tests need cannot be installed" "sudo apt-get update && sudo apt-get install -y ${tools[*]}"
}

# ---- real modules (called by test.sh --modules) ------------------------------------------------------------------------

MODULE_PACKAGES=(libnss3 libnss3-tools p11-kit p11-kit-modules opencryptoki libtpm2-pkcs11-1 swtpm tpm2-abrmd
    libtss2-tcti-swtpm0 libtss2-tcti-tabrmd0 dbus mount util-linux)

modules_installed() {
    local program library
    for program in certutil p11-kit pkcsslotd swtpm tpm2-abrmd dbus-daemon dbus-send unshare setpriv mount; do
        PATH="$PATH:/usr/sbin:/sbin" command -v "$program" >/dev/null 2>&1 || return 1
    done
    for library in libsoftokn3.so p11-kit-proxy.so pkcs11/p11-kit-client.so pkcs11/libopencryptoki.so \
        pkcs11/libtpm2_pkcs11.so libtss2-tcti-swtpm.so.0 libtss2-tcti-tabrmd.so.0; do
        find_softhsm_module /usr/lib/*/"$library" /usr/lib/"$library" /usr/lib64/"$library" >/dev/null || return 1
    done
}

# A missing module fails the run: no test of a module is ever left out silently.
prepare_modules() {
    modules_installed && return 0
    apt_install "${MODULE_PACKAGES[@]}" && modules_installed && return 0
    fail "the PKCS#11 modules of the test matrix cannot be installed" \
        "sudo apt-get update && sudo apt-get install -y ${MODULE_PACKAGES[*]}"
}

# ---- Python --------------------------------------------------------------------------------------------------------

# The first interpreter that is new enough; $1 names what it must be able to import.
find_python() {
    local candidate
    for candidate in python3 python3.11 python3.12 python3.13 python3.14; do
        if "$candidate" -c "import sys, $1; sys.exit(sys.version_info < (3, 11))" >/dev/null 2>&1; then
            printf '%s' "$candidate"
            return 0
        fi
    done
    return 1
}

prepare_python() {
    PYTHON="$(find_python 'venv, ensurepip')" && return 0
    # Debian and Ubuntu keep venv in a package of its own.
    apt_install python3 python3-venv && PYTHON="$(find_python 'venv, ensurepip')" && return 0
    if find_python sys >/dev/null; then
        fail "Python has no venv module" "sudo apt-get update && sudo apt-get install -y python3-venv"
    fi
    fail "Python 3.11 or newer is needed" "sudo apt-get update && sudo apt-get install -y python3 python3-venv"
}

fingerprint() { cat "$PROJECT/requirements.lock" "$PROJECT/pyproject.toml" | sha256sum | cut -d' ' -f1; }

prepare_venv() {
    local wanted
    wanted="$PROJECT $(fingerprint)" # a moved folder has a broken environment
    [ -x "$VENV/bin/hsm-endorser" ] && [ "$(cat "$STAMP" 2>/dev/null)" = "$wanted" ] && return 0
    prepare_python
    say "setup: making .venv with $("$PYTHON" --version)"
    rm -f "$STAMP"
    "$PYTHON" -m venv --clear "$VENV" >&2 ||
        fail "the virtual environment cannot be made" "$PYTHON -m venv --clear '$VENV'"
    local pip=("$VENV/bin/python" -m pip --disable-pip-version-check --no-input --no-cache-dir)
    say "setup: installing the packages of requirements.lock"
    "${pip[@]}" install -q --require-hashes -r "$PROJECT/requirements.lock" >&2 ||
        fail "the Python packages cannot be installed (is a package index within reach?)" \
            "'$VENV/bin/python' -m pip install --require-hashes -r '$PROJECT/requirements.lock'"
    "${pip[@]}" install -q --no-deps --no-build-isolation -e "$PROJECT" >&2 ||
        fail "hsm-endorser itself cannot be installed" \
            "'$VENV/bin/python' -m pip install --no-deps --no-build-isolation -e '$PROJECT'"
    printf '%s' "$wanted" >"$STAMP"
}

prepare_softhsm
prepare_venv
