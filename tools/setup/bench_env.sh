#!/usr/bin/env bash
# Installs what the benchmarks race against: the packages of requirements-bench.lock into
# .venv, and into .bench/pillow an environment with stock Pillow, which cannot share one
# with pillow-simd. All else in there (torch, torchvision) is looked up in .venv.
#
# requirements-bench.lock holds what the group bench adds to requirements.lock:
#   uv pip compile pyproject.toml --universal --no-header --no-annotate --group dev \
#     --group bench --python-version 3.11 --constraint requirements.lock |
#     grep -vxFf requirements.lock >requirements-bench.lock
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

pillow='pillow==13.0.0'
stock=.bench/pillow
stamp=$stock/.made-by-bench-env

say() { echo "bench_env: $*" >&2; }
fail() {
    say "$*"
    exit 1
}

[ -x .venv/bin/python ] || fail ".venv is missing; run make env first"
uv=
for candidate in uv .uv/bin/uv .uv/packages/bin/uv; do
    if "$candidate" --version >/dev/null 2>&1; then
        uv=$candidate
        break
    fi
done
[ -n "$uv" ] || fail "uv is missing; run make env first, which brings it"

say "installing the rivals into .venv"
"$uv" pip install --quiet --python .venv/bin/python --no-deps --requirements requirements-bench.lock ||
    fail "the rivals could not be installed; uv's words are above"

if [ "$(cat "$stamp" 2>/dev/null)" != "$PWD $pillow" ] || ! "$stock/bin/python" -c '' 2>/dev/null; then
    say "making $stock with $pillow"
    rm -rf "$stock"
    "$uv" venv --quiet --python .venv/bin/python "$stock"
    # pyproject.toml drops Pillow from every requirement; here it is wanted.
    "$uv" pip install --quiet --python "$stock/bin/python" --overrides <(echo "$pillow") \
        "$pillow" ||
        fail "stock Pillow could not be installed; uv's words are above"
    # Its own site-packages come first on the path, so PIL is the stock one.
    .venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
        >"$("$stock/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/rest.pth"
    printf '%s\n' "$PWD $pillow" >"$stamp"
fi
"$stock/bin/python" - "$pillow" <<'PYTHON' || fail "$stock does not have stock Pillow; delete it and run this again"
import sys

import PIL
import torchvision  # noqa: F401

sys.exit(PIL.__version__ != sys.argv[1].partition("==")[2])
PYTHON
say "ready"
