#!/bin/bash
# The servers that the suite of all stores runs against, at the versions that it was tried with: below target/servers, and by apt on Debian what has to come from there.
# Quick when all of it is there. Nothing is started, and nothing is left running.
set -euo pipefail
cd "$(dirname "$0")/../.."
servers="${REPLVFS_SERVERS:-$PWD/target/servers}"
mkdir -p "$servers"

# pyftpdlib 2 needs pyasyncore from Python 3.12 on.
python_packages=(moto[server]==5.2.5 gcp-storage-emulator==2026.7.19 pyftpdlib==2.2.0 pyopenssl==26.4.0 "pyasyncore==1.0.4; python_version>='3.12'")
node_packages=(azurite@3.37.0)

missing=()
[ -x /usr/bin/openssl ] >/dev/null || missing+=(openssl)
[ -x /usr/sbin/sshd ] || missing+=(openssh-server)
command -v ssh >/dev/null || missing+=(openssh-client)
command -v nginx >/dev/null || [ -x /usr/sbin/nginx ] || missing+=(nginx-light)
[ -e /usr/lib/nginx/modules/ngx_http_dav_ext_module.so ] || missing+=(libnginx-mod-http-dav-ext)
command -v npm >/dev/null || missing+=(npm)
{ command -v python3 >/dev/null && python3 -c 'import ensurepip' 2>/dev/null; } || missing+=(python3-venv)

by_apt() {
    [ ${#missing[@]} -gt 0 ] || return 0
    command -v apt-get >/dev/null || { echo "servers.sh: missing: ${missing[*]}" >&2; return 1; }
    local sudo="" policy=/usr/sbin/policy-rc.d own=""
    [ "$(id -u)" = 0 ] || sudo=sudo
    # A daemon that a package brings along is not started.
    if [ ! -e "$policy" ]; then
        own=1
        printf '#!/bin/sh\nexit 101\n' | $sudo tee "$policy" >/dev/null
        $sudo chmod +x "$policy"
    fi
    $sudo apt-get update -q
    DEBIAN_FRONTEND=noninteractive $sudo apt-get install -qy --no-install-recommends "${missing[@]}" || { [ -z "$own" ] || $sudo rm -f "$policy"; return 1; }
    [ -z "$own" ] || $sudo rm -f "$policy"
}

# Whether what stands beside it was installed from just this list.
is_there() { [ "$(cat "$1/installed" 2>/dev/null)" = "$2" ]; }

by_pip() {
    is_there "$servers/python" "${python_packages[*]}" && return
    rm -rf "$servers/python"
    python3 -m venv "$servers/python"
    "$servers/python/bin/pip" install -q --disable-pip-version-check --no-compile "${python_packages[@]}"
    echo "${python_packages[*]}" >"$servers/python/installed"
}

by_npm() {
    is_there "$servers/node" "${node_packages[*]}" && return
    rm -rf "$servers/node"
    mkdir -p "$servers/node"
    npm install --silent --no-save --no-audit --no-fund --ignore-scripts --prefix "$servers/node" "${node_packages[@]}"
    echo "${node_packages[*]}" >"$servers/node/installed"
}

by_apt
by_npm &
node=$!
by_pip
wait $node
