#!/bin/sh
# Installs the Debian packages that are named and missing: `packages.sh iproute2 curl`.
# As root on a machine with apt-get; elsewhere it only says what is missing. No service of a package that is
# installed here is started now, nor at the next boot: the lab runs its own, in its own namespaces.
set -eu

look() {
    missing=
    for package; do
        dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing="$missing $package"
    done
}
look "$@"
[ -n "$missing" ] || exit 0

if ! command -v apt-get >/dev/null || [ "$(id -u)" -ne 0 ]; then
    echo "missing Debian packages:$missing" >&2
    echo "on Debian or Ubuntu, run this as root, and they are installed:" >&2
    echo "    $0$missing" >&2
    exit 1
fi

# invoke-rc.d and systemd's helpers ask this file whether a service may be started.
policy=/usr/sbin/policy-rc.d
restore() {
    ! grep -qs 'by egret' "$policy" || rm -f "$policy"
    [ ! -e "$policy.egret-saved" ] || mv "$policy.egret-saved" "$policy"
}
trap restore EXIT
trap 'exit 130' INT TERM
# One that a killed run left is not to be taken for the machine's own.
if [ -e "$policy" ] && ! grep -q 'by egret' "$policy"; then
    mv "$policy" "$policy.egret-saved"
fi
printf '#!/bin/sh\n# by egret, while it installs packages\nexit 101\n' >"$policy"
chmod 755 "$policy"

services() {
    find /etc/systemd/system -path '*.wants/*.service' 2>/dev/null | sort
}
before=$(services)

export DEBIAN_FRONTEND=noninteractive
install() {
    # shellcheck disable=SC2086 # a list of words
    apt-get install -qq -y --no-install-recommends $missing >/dev/null
}
echo "installing:$missing"
install 2>/dev/null || { apt-get update -qq && install; }
# One that was there may have had to go for the others, as it had come from elsewhere (backports): Debian's own fits them.
look "$@"
if [ -n "$missing" ]; then
    echo "installing:$missing"
    install
fi

# What the packages have just enabled would start at the next boot.
for service in $(services); do
    echo "$before" | grep -qxF "$service" || rm -f "$service"
done
