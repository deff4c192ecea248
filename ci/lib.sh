# Shared by the lanes; sourced, never run. A lane is one script in this folder that anybody can run by hand from
# anywhere. It ends in one of three ways: `pass`, `skip`, or a non-zero exit, which is a failure. A lane that ends
# with status 0 and no verdict is counted as failed by ci/test, so none can go quietly empty.
# shellcheck shell=bash
set -euo pipefail

# The toolchain proxies resolve a relative path against their own folder, so everything here is absolute.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
cd "$root"
lane=${0##*/}
lane_start_s=$SECONDS

# Every flavour of build (sanitizers, loom) has a folder of its own below the base, so none throws away another's work.
target_base=$(realpath -m "${CARGO_TARGET_DIR:-$root/target}")
export CARGO_TARGET_DIR=$target_base
# A build made once gains nothing from incremental compilation and pays for it in time and disk.
[ -z "${CI:-}" ] || export CARGO_INCREMENTAL="${CARGO_INCREMENTAL:-0}"

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# flavour NAME: builds go to a folder of their own from here on.
flavour() { export CARGO_TARGET_DIR=$target_base/$1; }

# verdict WORD NOTE: prints the lane's end, and hands it to ci/test where that started the lane.
verdict() {
    printf '%s %s: %s (%d s)\n' "$1" "$lane" "$2" $((SECONDS - lane_start_s))
    [ -z "${MU_CI_RESULTS:-}" ] || printf '%s\t%s\t%s\n' "$lane" "$1" "$2" >>"$MU_CI_RESULTS"
    exit 0
}
pass() { verdict PASS "$*"; }
# skip REASON: for what this machine lacks. Something that is there and does not work is a failure.
skip() { verdict SKIP "$*"; }
fail() {
    printf 'FAIL %s: %s\n' "$lane" "$*" >&2
    exit 1
}

# step COMMAND...: shows the command on standard error, then runs it.
step() {
    printf '+ %s\n' "$*" >&2
    "$@"
}

# tests MIN COMMAND...: runs a command that ends in libtest's result lines; fails when it does, or when fewer than
# MIN tests passed. Adds to $tests_passed and $tests_ignored.
tests_passed=0
tests_ignored=0
tests() {
    local min=$1 log passed ignored
    shift
    log=$(mktemp -p "$scratch")
    step "$@" 2>&1 | tee "$log"
    read -r passed ignored < <(awk '/^test result: / { p += $4; i += $8 } END { print p + 0, i + 0 }' "$log")
    [ "$passed" -ge "$min" ] || fail "$passed tests passed, at least $min expected"
    tests_passed=$((tests_passed + passed))
    tests_ignored=$((tests_ignored + ignored))
}
tests_note() { printf '%d tests, %d ignored' "$tests_passed" "$tests_ignored"; }

have() { command -v "$1" >/dev/null 2>&1; }

# MU_CI_INSTALL=0 keeps the lanes from installing anything; they then skip what is not there.
may_install() { [ "${MU_CI_INSTALL:-1}" != 0 ]; }

# apt_install PACKAGE...: installs Debian packages; fails, with the reason in $install_error, where that cannot be.
install_error=''
apt_install() {
    if ! may_install; then install_error="MU_CI_INSTALL=0"
    elif ! have apt-get; then install_error="no apt-get here"
    elif [ "$(id -u)" != 0 ]; then install_error="not root"
    elif ! DEBIAN_FRONTEND=noninteractive step apt-get -qq -o DPkg::Lock::Timeout=300 update >"$scratch/apt.log" 2>&1 ||
        ! DEBIAN_FRONTEND=noninteractive step apt-get -qq -y --no-install-recommends -o DPkg::Lock::Timeout=300 \
            install "$@" >>"$scratch/apt.log" 2>&1; then
        cat "$scratch/apt.log"
        install_error="apt-get could not install it"
    else return 0
    fi
    return 1
}

# need COMMAND PACKAGE: the command, from its Debian package when it is missing, else the lane skips.
need() {
    have "$1" || apt_install "$2" || skip "needs $1 (Debian package $2): $install_error"
    have "$1" || skip "needs $1, and package $2 did not bring it"
}

# nightly [miri|rust-src|...]: the lane goes on only with a nightly toolchain that has this component.
nightly() {
    local sysroot component=${1:-}
    have rustup || skip "needs a nightly toolchain: no rustup here"
    sysroot=$(rustc +nightly --print sysroot 2>/dev/null) || skip "needs a nightly toolchain: none installed"
    nightly_has() {
        case $component in
            '') true ;;
            miri) cargo +nightly miri --version >/dev/null 2>&1 ;;
            rust-src) [ -f "$sysroot/lib/rustlib/src/rust/library/std/Cargo.toml" ] ;;
        esac
    }
    nightly_has && return
    ! may_install || step timeout 300 rustup component add --toolchain nightly "$component" || :
    nightly_has || skip "needs the component $component of the nightly toolchain, which could not be installed"
}

# must_report WORDS COMMAND...: the negative control of a lane: the command must fail, and say these words.
must_report() {
    local words=$1
    shift
    ! step "$@" >"$scratch/control" 2>&1 || fail "the negative control '$*' did not fail"
    grep -e "$words" "$scratch/control" ||
        fail "the negative control failed for another reason: $(cat "$scratch/control")"
}

host_triple() { rustc -vV | sed -n 's/^host: //p'; }

# For cargo's --features: every backend, and the fake provider in the place of libibverbs.
all_backends=mu-sys/fake,mu-verbs/soft,mu-verbs/nic,mu-verbs/fake

# release_binaries: builds all programs and shared objects as one selection, so that all lanes share one set of
# artifacts.
release_binaries() {
    step cargo build --release -p mu-smr -p mu-tests -p mu-capi -p mu-exchange -p mu-redis "$@"
    mu=$target_base/release/mu
    conformance=$target_base/release/conformance
}
