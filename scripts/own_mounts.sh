#!/usr/bin/env bash
# Run a command whose mounts are its own and its children's: scripts/own_mounts.sh COMMAND [ARGUMENT...]
#
# Some PKCS#11 modules have their paths built in. The tests of real modules mount folders of theirs over those, and the
# machine's own tokens and settings must not notice. Administrator's rights are not needed where the kernel allows
# user namespaces.
set -euo pipefail
own=(--mount --propagation private)
settings=(HSM_ENDORSER_OWN_MOUNTS=1)
if [ "$(id -u)" != 0 ]; then
    own+=(--user --map-root-user)
    settings+=(HSM_ENDORSER_OWN_GROUPS=1)
fi
if ! unshare "${own[@]}" true; then
    printf '%s\n' "a mount namespace cannot be begun here; run this as root:" \
        "    sudo ./test.sh --modules" \
        "(in a container, start that with: --cap-add SYS_ADMIN --security-opt seccomp=unconfined)" >&2
    exit 1
fi
exec unshare "${own[@]}" env "${settings[@]}" "$@"
