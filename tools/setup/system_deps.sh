#!/usr/bin/env bash
# Installs the system packages that pillow-simd and FFCV are built with, where they are
# missing. Nothing missing: silent and quick, and no package manager is called.
# apt-get is used where it is there and allowed (root, or sudo without a password);
# otherwise one message says what to install. Environment: PYTHON, the interpreter to use.
set -euo pipefail

missing=() # Debian package names

has_library() { # pkg-config module, header, text in front of the header's inclusion
    pkg-config --exists "$1" 2>/dev/null && return 0
    # Some systems have the library without a .pc file: ask the preprocessor.
    printf '%s\n#include <%s>\n' "${3:-}" "$2" |
        "${CC:-cc}" ${CPPFLAGS:-} ${CFLAGS:-} -E -x c - >/dev/null 2>&1
}

find_missing() {
    missing=()
    local python
    { command -v "${CXX:-c++}" && command -v "${CC:-cc}"; } >/dev/null 2>&1 || missing+=(g++)
    command -v pkg-config >/dev/null 2>&1 || missing+=(pkg-config)
    # FFCV's build asks pkg-config for these two, so the .pc files themselves must be there.
    pkg-config --exists opencv4 2>/dev/null || missing+=(libopencv-dev)
    pkg-config --exists libturbojpeg 2>/dev/null || missing+=(libturbojpeg0-dev)
    has_library libjpeg jpeglib.h '#include <stdio.h>' || missing+=(libjpeg-dev)
    has_library zlib zlib.h || missing+=(zlib1g-dev)
    has_library libwebp webp/decode.h || missing+=(libwebp-dev)
    # The venv module is needed to bring uv; the headers, where this Python is the one used.
    # Another Python than 3.11-3.13 is not: uv brings its own then, with headers.
    python=$(command -v "${PYTHON:-python3}" 2>/dev/null || command -v python3 2>/dev/null || true)
    if [ -z "$python" ]; then
        command -v uv >/dev/null 2>&1 || missing+=(python3 python3-venv)
        return
    fi
    case $("$python" -S -c "$python_check" 2>/dev/null || echo headers) in
        *headers*) missing+=(python3-dev) ;;
    esac
    if ! command -v uv >/dev/null 2>&1 && [ ! -x .uv/bin/uv ]; then
        "$python" -S -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
    fi
}

python_check='
import os, sys, sysconfig
header = os.path.join(sysconfig.get_path("include"), "Python.h")
wanted = (3, 11) <= sys.version_info < (3, 14)
print("headers" if wanted and not os.path.exists(header) else "fine")
'

explain() {
    cat >&2 <<MESSAGE
system_deps: these system packages are missing (by their Debian names):
  ${missing[*]}
They cannot be installed from here: $1.
Install them in one of these ways, then run the same command again:
  Debian, Ubuntu:  sudo apt-get install g++ pkg-config libopencv-dev libturbojpeg0-dev \\
                     libjpeg-dev zlib1g-dev libwebp-dev python3-dev python3-venv
  Fedora:          sudo dnf install gcc-c++ pkgconf-pkg-config opencv-devel turbojpeg-devel \\
                     libjpeg-turbo-devel zlib-devel libwebp-devel python3-devel
  macOS:           xcode-select --install; brew install pkg-config opencv jpeg-turbo webp python
  conda:           conda install -c conda-forge cxx-compiler pkg-config opencv libjpeg-turbo \\
                     zlib libwebp python=3.12
MESSAGE
    exit 1
}

as_root=()
if [ "${EUID:-$(id -u)}" -ne 0 ]; then
    as_root=(sudo -n)
fi

apt() {
    ${as_root[@]+"${as_root[@]}"} env DEBIAN_FRONTEND=noninteractive \
        apt-get -o DPkg::Lock::Timeout=300 -qq "$@" </dev/null >&2
}

find_missing
[ ${#missing[@]} -eq 0 ] && exit 0
command -v apt-get >/dev/null 2>&1 || explain "there is no apt-get"
if [ ${#as_root[@]} -gt 0 ] && ! sudo -n true 2>/dev/null; then
    explain "that needs root, or sudo without a password"
fi
echo "system_deps: installing ${missing[*]} with apt-get" >&2
if ! apt-cache show "${missing[@]}" >/dev/null 2>&1; then
    apt update || true # the installation says what is wrong
fi
install() { apt install -y --no-install-recommends "${missing[@]}"; }
# An old package list names files that are gone: bring it up to date and try once more.
install || { apt update && install; } || explain "apt-get failed, its words are above"
find_missing
[ ${#missing[@]} -eq 0 ] || explain "apt-get has installed them, but they are still not found"
