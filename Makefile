# The two commands are `make demo` and `make test`; both set up what is missing first.
# VHOSTBLK_CACHE says where downloads are kept (default: .cache); PYTHON which Python to use.

VHOSTBLK_CACHE ?= $(CURDIR)/.cache
export VHOSTBLK_CACHE

bin := .venv/bin
# Paths of the guest's kernel and the like, found by `.ci/setup guest`.
with_tools := set -a && . "$(VHOSTBLK_CACHE)/tools.env" && set +a &&
c_files = $(shell git ls-files 'native/*.c' 'native/*.h' 'bench/*.[ch]' 'tests/*.c')

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-sanitize test-wheel bench bench-step lint format setup venv clean

help: ## Say what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: setup ## Serve a disk to a real Linux guest, verify it, say what happened
	@$(with_tools) $(bin)/vhostblk demo

test: setup ## Run every test but the slow ones (guest boots included)
	@$(with_tools) $(bin)/pytest

test-slow: setup ## Run the slow tests
	@.ci/setup bench
	@$(with_tools) $(bin)/pytest -m slow

test-sanitize: setup ## Run the C tests under ASan+UBSan, then under TSan
	@.ci/sanitize address,undefined thread

test-wheel: setup ## Build the wheels, with the core and without, and test what they install
	@$(with_tools) .ci/wheel

# Other options by `make bench BENCH="--targets --json results.json"`.
BENCH ?= --whole
bench: setup ## Measure against qemu-storage-daemon, in one run (takes fio, too)
	@.ci/setup bench
	@$(with_tools) $(bin)/python -m bench $(BENCH)

bench-step: setup ## Measure the core alone, per request: direct, bounced, behind an IOMMU
	@$(bin)/python -m bench.step

lint: venv ## Check style, types and who imports whom
	@$(bin)/ruff check
	@$(bin)/ruff format --check --quiet
	@$(bin)/mypy
	@$(bin)/python .ci/lint-imports
	@shellcheck .ci/run .ci/s* .ci/wheel
	@$(if $(c_files),$(bin)/clang-format --dry-run --Werror $(c_files))

format: venv ## Rewrite the sources as the formatters want them
	@$(bin)/ruff check --fix --quiet
	@$(bin)/ruff format
	@$(if $(c_files),$(bin)/clang-format -i $(c_files))

setup: ## Debian packages, guest and virtual environment, where missing
	@.ci/setup all

venv: ## The virtual environment with the compiled core, where missing
	@.ci/setup packages && .ci/setup venv

clean: ## Throw away what was built (downloads stay)
	rm -rf .venv build build-* dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
