# `make demo` and `make test` work from nothing on a fresh machine; see README.md.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help env demo test check fix docs bench bench-env bench-smoke clean
BIN := .venv/bin
BENCHES := build crop gpu ladder loader plan scale sources stats step

help: ## What can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

env: ## The environment alone: system packages, uv, .venv
	@tools/setup/make_env.sh

demo: env ## The whole way on a made-up data set (SRC=folder: on your pictures; DEMO=small: shortly)
	@$(BIN)/python tools/demo.py $(if $(SRC),--src '$(SRC)') $(if $(filter small,$(DEMO)),--small)

test: check ## Everything that is checked: ruff, mypy, pytest, a moment of each benchmark
	@$(BIN)/python -m pytest
	@$(MAKE) --no-print-directory bench-smoke

check: env ## ruff and mypy alone
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

fix: env ## What ruff can mend by itself
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

docs: env ## Write the generated parts of docs/: cli.md, tables of recipes.md
	@$(BIN)/python tools/docs.py

bench-env: env ## What the benchmarks race against, and stock Pillow in .bench
	@tools/setup/bench_env.sh

bench: bench-env ## All benchmarks, with records in tools/records (BENCH=crop: that one)
	@status=0; for bench in $(or $(BENCH),$(BENCHES)); do \
		echo "tools/bench/$$bench.py"; \
		$(BIN)/python "tools/bench/$$bench.py" --json "tools/records/bench-$$bench.json" || status=1; \
	done; exit $$status

bench-smoke: env ## A moment of each benchmark, so that none of them rots
	@for bench in $(BENCHES); do \
		echo "tools/bench/$$bench.py --smoke"; \
		$(BIN)/python "tools/bench/$$bench.py" --smoke || exit 1; \
	done

clean: ## Removes caches, the demo and build leftovers; keeps .venv and the rivals
	@rm -rf demo build dist .bench/work *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find imagenet_prep trainer tests tools -name __pycache__ -type d -exec rm -rf {} +
