# `make demo` and `make test` install what is missing first; see README.md.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help env demo test check fix docs bench bench-env bench-smoke clean
BIN := .venv/bin
BENCHES := build crop gpu speedup loader plan scale sources stats step

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

env: ## Install: system packages, uv, .venv
	@tools/setup/make_env.sh

demo: env ## All stages on a procedural data set (SRC=folder: your images; DEMO=small: short)
	@$(BIN)/python tools/demo.py $(if $(SRC),--src '$(SRC)') $(if $(filter small,$(DEMO)),--small)

test: check ## ruff, mypy, pytest, a short run of each benchmark
	@$(BIN)/python -m pytest --numprocesses 2 --dist loadfile
	@$(MAKE) --no-print-directory bench-smoke

check: env ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

fix: env ## Format, and fix what ruff can fix
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

docs: env ## Write the generated parts of docs/: cli.md, tables of recipes.md
	@$(BIN)/python tools/docs.py

bench-env: env ## Install the other tools of the benchmarks, and stock Pillow in .bench
	@tools/setup/bench_env.sh

bench: bench-env ## All benchmarks, with records in tools/records (BENCH=crop: one of them)
	@status=0; for bench in $(or $(BENCH),$(BENCHES)); do \
		echo "tools/bench/$$bench.py"; \
		$(BIN)/python "tools/bench/$$bench.py" --json "tools/records/bench-$$bench.json" || status=1; \
	done; exit $$status

bench-smoke: env ## A short run of each benchmark
	@for bench in $(BENCHES); do \
		echo "tools/bench/$$bench.py --smoke"; \
		$(BIN)/python "tools/bench/$$bench.py" --smoke || exit 1; \
	done

clean: ## Remove caches, the demo and build output; keep .venv and .bench
	@rm -rf demo kit build dist .bench/work *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find imagenet_prep trainer tests tools -name __pycache__ -type d -exec rm -rf {} +
