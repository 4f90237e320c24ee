#!/usr/bin/env bash
# Installs the system packages that pillow-simd and FFCV are built with, where they are missing.
# Nothing missing: silent and quick, and no package manager is called. apt-get is used where it
# is there and allowed (root, or sudo without a password). Otherwise stderr has what to install,
# and stdout the names of the Python packages that cannot be built: ffcv, pillow-simd.
# Status 1 where there is neither Python nor uv. Environment: PYTHON, the interpreter to use.
set -euo pipefail

missing=() # Debian package names
unbuilt=() # Python packages that need them

has_library() { # pkg-config module, header, text before the header's inclusion
    pkg-config --exists "$1" 2>/dev/null && return 0
    # Some systems have the library without a .pc file: ask the preprocessor.
    printf '%s\n#include <%s>\n' "${3:-}" "$2" |
        "${CC:-cc}" ${CPPFLAGS:-} ${CFLAGS:-} -E -x c - >/dev/null 2>&1
}

lacks() { # Debian package, Python packages that cannot be built without it
    missing+=("$1")
    shift
    local name
    for name in "$@"; do
        [[ " ${unbuilt[*]-} " == *" $name "* ]] || unbuilt+=("$name")
    done
}

find_missing() {
    missing=()
    unbuilt=()
    local python
    { command -v "${CXX:-c++}" && command -v "${CC:-cc}"; } >/dev/null 2>&1 ||
        lacks g++ ffcv pillow-simd
    # FFCV's build asks pkg-config for these two, so the .pc files themselves must be there.
    command -v pkg-config >/dev/null 2>&1 || lacks pkg-config ffcv
    pkg-config --exists opencv4 2>/dev/null || lacks libopencv-dev ffcv
    pkg-config --exists libturbojpeg 2>/dev/null || lacks libturbojpeg0-dev ffcv
    has_library libjpeg jpeglib.h '#include <stdio.h>' || lacks libjpeg-dev pillow-simd
    has_library zlib zlib.h || lacks zlib1g-dev pillow-simd
    has_library libwebp webp/decode.h || lacks libwebp-dev pillow-simd
    has_library libtiff-4 tiffio.h || lacks libtiff-dev pillow-simd
    has_library lcms2 lcms2.h || lacks liblcms2-dev pillow-simd
    pkg-config --exists libopenjp2 2>/dev/null || lacks libopenjp2-7-dev pillow-simd
    # The venv module brings uv; the headers are for the Python that is used. Another Python
    # than 3.11 to 3.13 is not used: uv brings one, with headers.
    python=$(command -v "${PYTHON:-python3}" 2>/dev/null || command -v python3 2>/dev/null || true)
    if [ -z "$python" ]; then
        command -v uv >/dev/null 2>&1 || lacks python3 ffcv pillow-simd python
        return
    fi
    case $("$python" -S -c "$python_check" 2>/dev/null || echo headers) in
        *headers*) lacks python3-dev ffcv pillow-simd ;;
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
system_deps: these system packages are missing (Debian names):
  ${missing[*]}
They cannot be installed from here: $1.
Without them these Python packages are left out: ${unbuilt[*]:-none}.
To have them, install the system packages and run the same command again:
  Debian, Ubuntu:  sudo apt-get install g++ pkg-config libopencv-dev libturbojpeg0-dev \\
                     libjpeg-dev zlib1g-dev libwebp-dev libtiff-dev liblcms2-dev \\
                     libopenjp2-7-dev python3-dev python3-venv
  Fedora:          sudo dnf install gcc-c++ pkgconf-pkg-config opencv-devel turbojpeg-devel \\
                     libjpeg-turbo-devel zlib-devel libwebp-devel libtiff-devel lcms2-devel \\
                     openjpeg2-devel python3-devel
  macOS:           xcode-select --install; brew install pkg-config opencv jpeg-turbo webp \\
                     libtiff little-cms2 openjpeg python
  conda:           conda install -c conda-forge cxx-compiler pkg-config opencv libjpeg-turbo \\
                     zlib libwebp libtiff lcms2 openjpeg python=3.12
MESSAGE
    case " ${unbuilt[*]-} " in *" python "*) exit 1 ;; esac
    [ ${#unbuilt[@]} -eq 0 ] || printf '%s\n' "${unbuilt[@]}"
    exit 0
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
    apt update || true # the installation reports what is wrong
fi
install() { apt install -y --no-install-recommends "${missing[@]}"; }
# An old package list names files that are gone: update it and try once more.
install || { apt update && install; } || explain "apt-get failed, its messages are above"
find_missing
[ ${#missing[@]} -eq 0 ] || explain "apt-get installed them, but they are still not found"
