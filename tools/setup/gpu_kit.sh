#!/usr/bin/env bash
# Makes one folder for a GPU machine without network, root and compilers.
#
#   tools/setup/gpu_kit.sh PYTHON [OUT]
#
# PYTHON is an interpreter (a path or a name on PATH) of the version that the other machine has;
# OUT is the folder to make, kit/ by default. It holds wheels/ (FFCV and small packages),
# project/ (the files of this checkout), cropped/ (300 crops) and run.sh. The other machine needs
# torch, torchvision, numba, Pillow, OpenCV, matplotlib and tensorboard. Environment: IMAGES, a
# folder of JPEG files for the crops.
#
# On the other machine:  OUT/run.sh            runs the tests and the benchmark of the GPU
#                        OUT/run.sh COMMAND    runs another command in project/
set -euo pipefail

most_bytes=60000000
crops=300
# Replaced on the other machine even where it has other versions: numba-cuda 0.30 needs a NumPy
# below 2.5. The rest is installed only where it is missing.
forced=(ffcv numba-cuda numpy)
wanted=(assertpy fastargs terminaltables pytorch-pfn-extras psutil tqdm click joblib jinja2
    markupsafe fsspec cuda-bindings cuda-core cuda-pathfinder pytest pytest-timeout pluggy
    iniconfig packaging pygments hypothesis sortedcontainers)

say() { echo "gpu_kit: $*" >&2; }
fail() {
    say "$*"
    exit 1
}
misused() {
    say "$*; usage: tools/setup/gpu_kit.sh PYTHON [OUT]"
    exit 2
}

[ $# -ge 1 ] && [ $# -le 2 ] || misused "expected one or two arguments, got $#"
case $1 in -*) misused "$1 is not an interpreter" ;; esac
python=$(command -v "$1" 2>/dev/null) || misused "$1 is not an interpreter"
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])') ||
    misused "$1 is not a Python interpreter"
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
out=$(realpath -m "${2:-$here/kit}")
[ ! -e "$out" ] || [ -e "$out/run.sh" ] || misused "$out exists and is not a kit"
cd "$here"
[ -x .venv/bin/python ] || fail ".venv is missing; run make env first"
[[ " 3.11 3.12 3.13 " == *" $version "* ]] || misused "$1 is Python $version, not 3.11 to 3.13"

imagenet_prep() { PYTHONPATH=$here .venv/bin/python -m imagenet_prep "$@"; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
kit=$work/kit
mkdir -p "$kit/wheels" "$kit/project"

tag=cp${version/./}
wheel=$(compgen -G "dist/ffcv-*-$tag-*.whl" | head -n 1 || true)
if [ -z "$wheel" ]; then
    wheel=$(tools/setup/build_ffcv_wheel.sh "$python" dist | tail -n 1)
fi
cp "$wheel" "$kit/wheels/"

say "collecting wheels for Python $version"
"$python" -m venv "$work/tools" || fail "$1 cannot make a virtual environment"
# The versions of requirements.lock; several packages are published as source only.
"$work/tools/bin/python" -m pip wheel --quiet --disable-pip-version-check --no-deps \
    --constraint requirements.lock --wheel-dir "$kit/wheels" "${forced[@]:1}" "${wanted[@]}" ||
    fail "the wheels could not be collected; the reason is above"
printf '%s\n' "${forced[@]}" >"$kit/wheels/forced.txt"

say "copying the project"
git ls-files -z --cached --others --exclude-standard -- . ':!:tools/records' |
    while IFS= read -r -d '' name; do [ ! -f "$name" ] || printf '%s\0' "$name"; done |
    tar --null --files-from - --create | tar --extract --directory "$kit/project"
git rev-parse HEAD >"$kit/project/COMMIT"

say "making $crops crops"
images=${IMAGES:-../shared/data/imagenet-sample/train}
if [ -d "$images" ]; then
    find -L "$images" -type f \( -iname '*.jpg' -o -iname '*.jpeg' \) | sort |
        awk -v most="$crops" '{ names[NR] = $0 }
            END { for (i = 0; i < most && i < NR; i++) print names[1 + int(i * NR / most)] }' |
        sort -u |
        while IFS= read -r name; do
            folder=$work/raw/train/$(basename "$(dirname "$name")")
            mkdir -p "$folder"
            cp "$name" "$folder/"
        done
else
    imagenet_prep sample --dst "$work/raw" --train "$crops" --val 1
fi
imagenet_prep crop --src "$work/raw" --dst "$kit/cropped"

cp tools/setup/kit_install.py "$kit/install.py"
echo "$version" >"$kit/wheels/python.txt"
cat >"$kit/run.sh" <<'RUN'
#!/usr/bin/env bash
# Installs the wheels of this folder into site/ (nothing else changes), then runs the tests and
# the benchmark of the GPU, or the given command. Environment: PYTHON, the interpreter;
# KIT_PROJECT, another checkout to use; OUT, a folder for the results.
set -euo pipefail
kit=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=$(command -v "${PYTHON:-python3}")
project=$(cd "${KIT_PROJECT:-$kit/project}" && pwd)
"$python" "$kit/install.py"
mkdir -p "$kit/bin"
# A link would hide the virtual environment that the interpreter may belong to.
printf '#!/bin/sh\nexec "%s" "$@"\n' "$python" >"$kit/bin/python"
chmod +x "$kit/bin/python"
export PYTHONPATH=$kit/site:$project${PYTHONPATH:+:$PYTHONPATH}
export PYTHON=$kit/bin/python PATH=$kit/bin:$PATH NUMBA_CACHE_DIR=${NUMBA_CACHE_DIR:-$kit/numba}
cd "$project"
if [ $# -gt 0 ]; then
    exec "$@"
fi
status=0 out=${OUT:-$kit}
# The most valuable part first; each part saves its results as it goes.
"$python" tools/bench/gpu.py --crops "$kit/cropped/train" --out "$out/gpu" || status=1
"$python" -m pytest -m cuda --continue-on-collection-errors || status=1
exit $status
RUN
chmod +x "$kit/run.sh"

bytes=$(du -sb "$kit" | cut -f1)
[ "$bytes" -le "$most_bytes" ] || {
    du -ab "$kit" | sort -rn | sed -n 2,12p >&2
    fail "the kit has $bytes bytes, more than $most_bytes; the largest files are above"
}
rm -rf "$out"
mkdir -p "$(dirname "$out")"
mv "$kit" "$out"
say "ready: $out, $((bytes / 1000000)) MB, for Python $version; there: run.sh"
