# `make demo` and `make test` work from nothing on a fresh machine; see README.md.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help env demo test check fix bench bench-env bench-smoke clean
BIN := .venv/bin

help: ## What can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

env: ## The environment alone: system packages, uv, .venv
	@tools/make_env.sh

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

bench-env: env ## What the benchmarks race against, and stock Pillow in .bench
	@tools/bench_env.sh

bench: bench-env ## All benchmarks, with records in tools/records (BENCH=crop: that one)
	@status=0; for bench in tools/bench_$(or $(BENCH),*).py; do \
		name=$$(basename "$$bench" .py); \
		echo "$$bench"; \
		$(BIN)/python "$$bench" --json "tools/records/$${name/_/-}.json" || status=1; \
	done; exit $$status

bench-smoke: env ## A moment of each benchmark, so that none of them rots
	@for bench in tools/bench_*.py; do \
		echo "$$bench --smoke"; \
		$(BIN)/python "$$bench" --smoke || exit 1; \
	done

clean: ## Removes caches, the demo and build leftovers; keeps .venv and the rivals
	@rm -rf demo build dist .bench/work *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find imagenet_prep trainer tests tools -name __pycache__ -type d -exec rm -rf {} +
