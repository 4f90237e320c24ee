#!/usr/bin/env bash
# Makes .venv from requirements.lock, with the system packages it needs, and uv where that is
# missing. When everything is there it ends in a fraction of a second, without network. Where
# neither compilers nor root are there, it leaves FFCV out, takes Pillow instead of pillow-simd,
# and reports that. Environment: PYTHON (an interpreter or version for uv), UV_*, PIP_*.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

stamp=.venv/.made-by-make-env
supported='>=3.11,<3.14'
pillow='pillow==12.1.1' # where pillow-simd cannot be built

say() { echo "make_env: $*" >&2; }
fail() {
    say "$*"
    exit 1
}

sha256() { if command -v sha256sum >/dev/null 2>&1; then sha256sum; else shasum -a 256; fi; }

# What the environment is made from; the folder too, since console scripts hold its path.
recipe() {
    {
        cat requirements.lock pyproject.toml tools/setup/system_deps.sh tools/setup/make_env.sh
        printf '%s\n' "$PWD" "${PYTHON:-}" "$left_out"
    } | sha256 | cut -d' ' -f1
}

find_uv() {
    local candidate
    for candidate in uv .uv/bin/uv .uv/packages/bin/uv; do
        if "$candidate" --version >/dev/null 2>&1; then
            uv=$candidate
            return 0
        fi
    done
    return 1
}

bring_uv() {
    find_uv && return
    local python=${PYTHON:-python3}
    command -v "$python" >/dev/null 2>&1 || python=python3
    command -v "$python" >/dev/null 2>&1 ||
        fail "neither uv nor python3 is here; install one of them and run this again"
    say "installing uv into .uv"
    rm -rf .uv
    if "$python" -m venv .uv >/dev/null 2>&1; then
        .uv/bin/python -m pip install --quiet uv || true
    fi
    find_uv && return
    # A Python without ensurepip makes no venv, but its own pip can still fill a folder.
    "$python" -m pip install --quiet --target .uv/packages uv || true
    find_uv && return
    fail "uv could not be installed with $python -m venv or pip; install uv (or python3-venv)" \
        "and run this again"
}

make_venv() {
    if [ -x .venv/bin/python ] && .venv/bin/python -c '
import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
        return
    fi
    "$uv" venv --clear --python "${PYTHON:-$supported}" .venv
}

without() { # a Python package: is it left out?
    [[ " $left_out " == *" $1 "* ]]
}

requirements() {
    if without pillow-simd; then
        echo "$pillow"
    fi
    local pattern='^$' name
    for name in $left_out; do
        pattern+="|^$name=="
    done
    grep -Ev "$pattern" requirements.lock
}

fill_venv() {
    # FFCV links all of OpenCV; only what it uses should be loaded with it.
    if [ "$(uname -s)" = Linux ]; then
        export LDFLAGS="-Wl,--as-needed ${LDFLAGS:-}"
    fi
    requirements >.venv/requirements.txt
    "$uv" pip sync --python .venv/bin/python .venv/requirements.txt || return 1
    if ! without pillow-simd && ! image_formats; then
        # An earlier build, from the cache, lacks formats whose libraries are there now.
        "$uv" pip install --quiet --python .venv/bin/python --no-deps --no-cache \
            --reinstall-package pillow-simd "$(grep '^pillow-simd==' requirements.lock)" ||
            return 1
    fi
    "$uv" pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation --editable .
}

image_formats() {
    .venv/bin/python - <<'PYTHON'
import sys

from PIL import features

lacking = [
    name
    for name in ("jpg", "zlib", "webp", "libtiff", "littlecms2", "jpg_2000")
    if not features.check(name)
]
if lacking:
    sys.exit(f"make_env: Pillow was built without {', '.join(lacking)}")
PYTHON
}

check_venv() {
    # Importing them once also compiles them to bytecode, which saves seconds per process;
    # compiling all of site-packages would take longer than it saves.
    env -u PYTHONDONTWRITEBYTECODE .venv/bin/python - $left_out <<'PYTHON' && image_formats
import importlib
import importlib.metadata as metadata
import sys

left_out = set(sys.argv[1:])
names = {d.metadata["Name"].lower().replace("_", "-") for d in metadata.distributions()}
if "pillow-simd" not in left_out and ("pillow-simd" not in names or "pillow" in names):
    sys.exit("make_env: PIL is not pillow-simd in .venv")
modules = ["joblib", "matplotlib.figure", "numba", "PIL.Image", "torch", "torchvision"]
for module in modules + ([] if "ffcv" in left_out else ["ffcv"]):
    importlib.import_module(module)
PYTHON
}

left_out=$(tools/setup/system_deps.sh | tr '\n' ' ')
left_out=${left_out% }
wanted=$(recipe)
if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && [ -x .venv/bin/imagenet-prep ] &&
    .venv/bin/python -c '' 2>/dev/null; then
    exit 0
fi
rm -f "$stamp" # until the end this environment counts as unfinished
bring_uv
make_venv
say "filling .venv from requirements.lock"
fill_venv || fail "the packages could not be installed; uv's messages are above"
say "checking that the packages load (the first time takes a while)"
if ! check_venv; then
    # An interrupted installation can leave what cannot be repaired: start from nothing.
    say "making .venv again"
    rm -rf .venv
    make_venv
    fill_venv || fail "the packages could not be installed; uv's messages are above"
    check_venv || fail "the environment does not work; the reason is above"
fi
say "compiling what the first commands would wait for (up to a minute)"
.venv/bin/python tools/setup/compile.py || say "that failed; the commands will compile it"
printf '%s\n' "$wanted" >"$stamp"
say "ready: .venv${left_out:+, without $left_out}"
