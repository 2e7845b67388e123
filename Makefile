.DEFAULT_GOAL := help
.PHONY: demo test check bench bench-text bench-image bench-speech bench-ways clean help setup

demo: setup ## generate with the embedded models, plain and speculative side by side
	.venv/bin/multispec demo $(ARGS)

# A file stays in one process, so that its fixtures are made once.
test: setup ## run the tests; make test ARGS="tests/core -x" runs some of them
	.venv/bin/python -m pytest -n auto --maxprocesses 8 --dist loadfile $(ARGS)

check: setup ## run every gate: format, lint, types, import contract
	scripts/check

# Benchmarks of pictures and speech need embedded models, which a checkout has once they are trained.
bench: bench-text $(foreach kind,image speech,$(if $(wildcard assets/$(kind)/target/config.json),bench-$(kind))) bench-ways ## run the benchmarks; ARGS="--runs 5" goes to all

bench-text: setup
	.venv/bin/python recipes/benchmark_text.py $(ARGS)

bench-image: setup
	.venv/bin/python recipes/benchmark_image.py $(ARGS)

bench-speech: setup
	.venv/bin/python recipes/benchmark_speech.py $(ARGS)

# Plain, automatic and fixed ways beside the peers; what fell since the run that was kept is told.
bench-ways: setup
	.venv/bin/multispec bench --baseline docs/bench/baseline.json $(ARGS)

setup: ## make .venv with the tested versions, if it is not up to date
	@scripts/setup

clean: ## remove builds and caches; .venv and runs stay
	rm -rf build dist *.egg-info .bench .coverage .coverage.* htmlcov
	rm -rf .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find multispec modalities assets recipes scripts tests -name __pycache__ -prune -exec rm -rf {} +

help: ## show this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(firstword $(MAKEFILE_LIST)) | while IFS='	' read -r name text; do \
		printf 'make %-8s %s\n' "$$name" "$$text"; done
