#!/usr/bin/env bash
# Makes .venv from requirements.lock, with the system packages it needs and with uv where
# that is missing. When everything is there it ends in a fraction of a second, without
# network. Environment: PYTHON (an interpreter or version for uv); UV_* and PIP_* as ever.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

stamp=.venv/.made-by-make-env
supported='>=3.11,<3.14'

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
        printf '%s\n' "$PWD" "${PYTHON:-}"
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
    say "bringing uv into .uv"
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

fill_venv() {
    # FFCV links all of OpenCV; only what it uses should be loaded with it.
    if [ "$(uname -s)" = Linux ]; then
        export LDFLAGS="-Wl,--as-needed ${LDFLAGS:-}"
    fi
    "$uv" pip sync --python .venv/bin/python requirements.lock &&
        "$uv" pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation \
            --editable .
}

check_venv() {
    # Loading them once also compiles them to bytecode, several seconds per process saved;
    # doing that for all of site-packages would take longer than all that it saves.
    env -u PYTHONDONTWRITEBYTECODE .venv/bin/python - <<'PYTHON'
import importlib.metadata as metadata
import sys

names = {d.metadata["Name"].lower().replace("_", "-") for d in metadata.distributions()}
if "pillow-simd" not in names or "pillow" in names:
    sys.exit("make_env: PIL is not pillow-simd in .venv")
import ffcv  # noqa: F401
import joblib  # noqa: F401
import matplotlib.figure  # noqa: F401
import numba  # noqa: F401
import PIL.Image
import torch  # noqa: F401
import torchvision  # noqa: F401
from PIL import features

lacking = [name for name in ("jpg", "zlib", "webp") if not features.check(name)]
if lacking:
    sys.exit(f"make_env: pillow-simd was built without {', '.join(lacking)}")
PYTHON
}

tools/setup/system_deps.sh
wanted=$(recipe)
if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && [ -x .venv/bin/imagenet-prep ] &&
    .venv/bin/python -c '' 2>/dev/null; then
    exit 0
fi
rm -f "$stamp" # until the end this environment counts as unfinished
bring_uv
make_venv
say "filling .venv from requirements.lock"
fill_venv || fail "the packages could not be installed; uv's words are above"
say "checking that the packages load (the first time takes a while)"
if ! check_venv; then
    # What an interrupted installation left can be beyond repair: once more from nothing.
    say "making .venv anew"
    rm -rf .venv
    make_venv
    fill_venv || fail "the packages could not be installed; uv's words are above"
    check_venv || fail "the environment does not work; the reason is above"
fi
printf '%s\n' "$wanted" >"$stamp"
say "ready: .venv"
