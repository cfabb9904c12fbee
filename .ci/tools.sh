#!/bin/sh
# Installs the outside tools named as arguments, which some tests use when they are there. Each is optional: one that
# cannot be installed is reported and is no failure. Go programs go to .tools/bin, which `make test` puts on PATH.
set -eu

cd "$(dirname "$0")/.."
bin="$PWD/.tools/bin"
# An activated environment holds the embedded redis-server; the tests want the machine's own beside it.
[ -z "${VIRTUAL_ENV:-}" ] || PATH=$(printf '%s' "$PATH" | sed "s|$VIRTUAL_ENV/bin:||")
PATH="$bin:$PATH"

say() { printf 'tools: %s\n' "$*"; }

apt() {
    DEBIAN_FRONTEND=noninteractive timeout 300 apt-get -qq -o DPkg::Lock::Timeout=60 -o Acquire::Retries=1 \
        -o Acquire::http::Timeout=20 "$@" </dev/null >/dev/null
}

install_redis() {
    if command -v redis-server >/dev/null; then
        say "redis-server: present ($(redis-server --version | cut -d ' ' -f 3))"
    elif [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        say 'redis-server: not installed (that takes root and apt); tests against Redis 7 cannot run'
    else
        say 'redis-server: installing with apt'
        if apt update && apt install -y --no-install-recommends redis-server && command -v redis-server >/dev/null; then
            say "redis-server: installed ($(redis-server --version | cut -d ' ' -f 3))"
        else
            say 'redis-server: apt could not install it; tests against Redis 7 cannot run'
        fi
    fi
}

# Arguments: the program's name, its Go package, the name under which Go installs it.
install_go_program() {
    if command -v "$1" >/dev/null; then
        say "$1: present"
    elif ! command -v go >/dev/null; then
        say "$1: not installed (that takes Go); tests that use it cannot run"
    else
        say "$1: building $2"
        mkdir -p "$bin"
        if ! said=$(GOBIN="$bin" go install "$2@latest" 2>&1); then
            say "$1: could not be built; tests that use it cannot run. The last that go said:"
            printf '%s\n' "$said" | tail -n 3
        else
            [ "$1" = "$3" ] || mv "$bin/$3" "$bin/$1"
            say "$1: installed in .tools/bin"
        fi
    fi
}

for tool in "$@"; do
    case "$tool" in
        redis-server) install_redis ;;
        grpcurl) install_go_program grpcurl github.com/fullstorydev/grpcurl/cmd/grpcurl grpcurl ;;
        grpc_health_probe) install_go_program grpc_health_probe github.com/grpc-ecosystem/grpc-health-probe grpc-health-probe ;;
        *) say "$tool: unknown" >&2; exit 2 ;;
    esac
done
