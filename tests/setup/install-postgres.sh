#!/usr/bin/env bash
# Makes sure that the system has a PostgreSQL server (major 14 or later) for the integration tests.
# Debian and Ubuntu; as root or with sudo. Creates and starts no cluster. Does nothing when a server is there.
set -euo pipefail

oldest=14
cluster_conf=/etc/postgresql-common/createcluster.conf

say() { printf 'install-postgres: %s\n' "$*"; }
fail() { say "$*" >&2; exit 1; }

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    else
        command -v sudo >/dev/null || fail "needs root, and there is no sudo for: $*"
        sudo "$@"
    fi
}

newest_server() {
    local program major newest=0
    for program in /usr/lib/postgresql/*/bin/postgres; do
        [ -x "$program" ] || continue
        major=${program#/usr/lib/postgresql/}
        major=${major%%/*}
        case $major in '' | *[!0-9]*) continue ;; esac
        if [ "$major" -ge "$oldest" ] && [ "$major" -gt "$newest" ]; then newest=$major; fi
    done
    printf '%s' "$newest"
}

apt_install() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y -o Dpkg::Use-Pty=0 --no-install-recommends "$@" >/dev/null
}

major=$(newest_server)
if [ "$major" -gt 0 ]; then
    say "PostgreSQL $major is installed"
    exit 0
fi
command -v apt-get >/dev/null || fail "no PostgreSQL under /usr/lib/postgresql, and no apt-get to install one"

say "updating the package lists"
as_root apt-get update -qq

say "installing postgresql-common"
apt_install postgresql-common

# The server's package creates and starts a cluster `main` as it is installed, unless this says no.
if ! grep -Eq '^[[:space:]]*create_main_cluster' "$cluster_conf" 2>/dev/null; then
    say "telling $cluster_conf to create no cluster"
    echo 'create_main_cluster = false' | as_root tee -a "$cluster_conf" >/dev/null
fi

say "installing postgresql"
apt_install postgresql

major=$(newest_server)
[ "$major" -gt 0 ] || fail "the package postgresql brought no server of major $oldest or later"
say "PostgreSQL $major is installed"
