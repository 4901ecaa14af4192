# The daily commands. Each first sets up its own environment in .venv when it is absent, and again when
# pyproject.toml has changed since.
#
#   make demo PYTHON=python3.12     the Python that .venv is made with, once
#   make test VENV=/path/to/env     use that environment as it is; nothing is installed into it
#   make test ARGS="-k retrieval"   further arguments for pytest
SHELL := /bin/bash
.DEFAULT_GOAL := help

NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
# The first that is new enough; evaluated only where .venv is made.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11 python3.14 python; do \
            $$python -c '$(NEW_ENOUGH)' 2>/dev/null && echo $$python && break; done)

ifeq ($(origin VENV),undefined)
VENV := .venv
READY := .venv/.installed
RUN := "$(CURDIR)/.venv/bin/python" -m
else ifeq ($(wildcard $(VENV)/bin/python),)
$(error VENV=$(VENV) has no bin/python; leave VENV out, and make sets up .venv itself)
else
RUN := "$(abspath $(VENV))/bin/python" -m
endif
PYTEST := OMP_NUM_THREADS=1 $(RUN) pytest -n 2 --dist loadfile --durations 10

.PHONY: help demo flickr8k esc10 test test-all lint types format clean

help:  ## List these commands.
	@sed -nE 's/^([a-z0-9-]+):.*## (.*)/\1 \2/p' Makefile | while read -r name what; do printf '  make %-9s %s\n' "$$name" "$$what"; done

demo: $(READY)  ## Train and judge image-text on shapes and wave-mel on tones, both made here.
	@run=runs/demo-$$(date +%Y%m%d-%H%M%S); SECONDS=0; \
	step() { \
	  local start=$$SECONDS; printf '\n$$ mmvicreg %s\n' "$$*"; \
	  $(RUN) mmvicreg "$$@" || exit; printf '(%d s)\n' $$((SECONDS - start)); \
	}; \
	step train --pair image-text --dataset shapes --out "$$run/image-text"; \
	step eval retrieval "$$run/image-text"; \
	step train --pair wave-mel --dataset tones --epochs 9 --out "$$run/wave-mel"; \
	step eval linear "$$run/wave-mel"; \
	printf '\nTwo runs in %s (%d min %d s). The command is %s/bin/mmvicreg.\n' \
	  "$$run" $$((SECONDS / 60)) $$((SECONDS % 60)) '$(VENV)'

flickr8k: $(READY)  ## VICReg, Barlow Twins, VSE++, VSE0, SimCLR on FLICKR8K=DIR in one setting; OUT=DIR EPOCHS=N SEEDS=0,1,2 SWEEP=NAME.
	@[ -n "$(FLICKR8K)" ] || { echo "make flickr8k needs FLICKR8K=DIR, the folder of dataset_flickr8k.json and its" \
	  "pictures (mmvicreg data info flickr8k says where they come from)" >&2; exit 2; }
	$(RUN) mmvicreg sweep "$(or $(SWEEP),flickr8k-methods)" --data-root "$(FLICKR8K)" \
	  --out "$(or $(OUT),runs/flickr8k)" $(if $(EPOCHS),--epochs $(EPOCHS)) $(if $(SEEDS),--seeds $(SEEDS)) $(ARGS)

esc10: $(READY)  ## VICReg, Barlow Twins, supervised by ESC-10's folds; ESC10=DIR OUT=DIR EPOCHS=N; again to go on.
	@set -e; out="$(or $(OUT),runs/esc10)"; \
	step() { printf '\n$$ mmvicreg %s\n' "$$*"; $(RUN) mmvicreg "$$@"; }; \
	for method in vicreg barlow_twins; do \
	  step train --pair wave-mel --dataset esc10 --method $$method --fold all --resume --out "$$out/$$method" \
	    $(if $(ESC10),--data-root "$(ESC10)") $(if $(EPOCHS),--epochs $(EPOCHS)) $(ARGS); \
	done; \
	step eval retrieval "$$out/vicreg"; \
	step eval linear "$$out/vicreg" --compare "$$out/barlow_twins" --supervised

test: $(READY)  ## Run the tests, on two processes; on real data too where MMVICREG_REAL_DATA names them.
	$(PYTEST) -m 'not slow' $(ARGS)

test-all: $(READY)  ## Run the tests that take minutes as well.
	$(PYTEST) $(ARGS)

lint: $(READY)  ## Check style, format and types.
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	@$(MAKE) --no-print-directory types

# data/, configs/ and eval/ are parts of the package, but a type checker follows folders, not __path__: so it
# is shown a copy, laid out as the wheel is. (Links would do, but hatchling follows them when it builds.)
types: $(READY)  ## Check types alone, over the package as it is installed.
	@rm -rf build/types && mkdir -p build/types
	@cp -Rp mmvicreg build/types/ && cp -Rp data configs eval build/types/mmvicreg/
	@echo "mypy --strict -p mmvicreg"; set -o pipefail; cd build/types && $(RUN) mypy --strict -p mmvicreg \
	  --config-file "$(CURDIR)/pyproject.toml" --cache-dir "$(CURDIR)/.mypy_cache" \
	  | sed -E 's#^mmvicreg/(data|eval)/#\1/#'

format: $(READY)  ## Put the code into the one format.
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

clean:  ## Remove what was built and cached; .venv, runs and data stay.
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

.venv/.installed: pyproject.toml
	@[ -n "$(PYTHON)" ] || { echo "mmvicreg needs Python 3.11 or newer, and none is on the PATH;" \
	  "install one, or name it: make PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -c '$(NEW_ENOUGH)' || { echo "mmvicreg needs Python 3.11 or newer; $(PYTHON) is" \
	  "$$("$(PYTHON)" --version 2>&1); name another: make PYTHON=/path/to/python3" >&2; exit 1; }
	@echo "Setting up .venv: a few minutes, about 7 GB with CUDA's libraries"
	@.venv/bin/python -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv --clear .venv
	.venv/bin/python -m pip install $(if $(CI),--quiet )--editable '.[dev]'
	@touch $@
