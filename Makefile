# Every target works from any state; `make` alone lists them.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
INTEROP := .venv/interop
PAGE := .venv/page
SUPPLY := .venv/supply
RIVALS := .venv/rivals
GRID := .venv/grid
DOCS := .venv/docs
NEWEST := .venv/newest
WHEEL := .venv/wheel
# An environment whose Python or packages have gone is made anew.
WORKS := $(shell $(BIN)/python -c 'import potstill, pytest; from importlib.metadata import version as v; v("torch")' \
	>/dev/null 2>&1 && echo yes)

.DEFAULT_GOAL := help
.PHONY: help install check demo test slow newest generated docs examples commands wheel edge interop clients grid page sbom audit ray faults fuzz serving ci clean

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

install: $(STAMP) ## create .venv with potstill, all extras and the tools for working on it

ifneq ($(WORKS),yes)
.PHONY: $(STAMP)
endif
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo 'potstill needs Python 3.11 or newer: make install PYTHON=python3.12' >&2; exit 3; }
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --editable '.[all]' --group dev
	touch $(STAMP)

check: install ## lint, format, types, import contracts, spelling
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

demo: install ## the whole chain on the text that ships with Python, into out/quickstart
	$(BIN)/potstill run quickstart --out out/quickstart --overwrite

# By default the files with the fewest tests come last, among them the one that takes longest. After the crash of a
# process xdist would wait forever for the tests that it had (3.8.0), so it ends there and names the test.
test: install ## the tests, in two processes
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

slow: install ## the tests of minutes: every family and task; real models and data, if POTSTILL_TEACHER and POTSTILL_DATA name them
	$(BIN)/python -m pytest -m slow

# Nothing is pinned, in an environment of its own; what is newer than in constraints.txt is listed before the tests.
newest: ## the tests on the newest released versions of everything, in .venv/newest
	test -x $(NEWEST)/bin/python || $(PYTHON) -m venv --clear $(NEWEST)
	$(NEWEST)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(NEWEST)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade --upgrade-strategy eager \
		--editable '.[all]' --group dev
	$(NEWEST)/bin/python -m pip freeze --exclude-editable | grep -vixFf constraints.txt || true
	$(NEWEST)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

generated: install ## write anew what is made and kept: the schema of report.json, the matrix products of the bench
	$(BIN)/python -c "from potstill.bench.report import to_schema; print(to_schema(), end='')" > report.schema.json.new
	mv report.schema.json.new potstill/bench/report/report.schema.json
	$(BIN)/python benchmarks/bench/make_products.py

# mkdocs-material says at every build that it looks for a successor.
docs: export NO_MKDOCS_2_WARNING = 1
docs: $(DOCS)/.installed ## build the site into out/site; a dead link, a missing page or a broken docstring ends it
	$(DOCS)/bin/mkdocs build --strict --quiet
	@echo 'out/site/index.html; to read while you write: $(DOCS)/bin/mkdocs serve'

# With the package itself, as it is here: options, settings and docstrings are read from it.
$(DOCS)/.installed: docs/requirements.txt constraints.txt
	$(PYTHON) -m venv --clear $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --editable '.[cli]' -r $<
	touch $@

# Each is a script that a page of the site shows. A tiny encoder takes the place of one from the hub: no download.
EXAMPLES := $(notdir $(basename $(wildcard examples/*.sh)))
examples commands: export PATH := $(CURDIR)/$(BIN):$(PATH)
examples commands: export HF_HUB_OFFLINE = 1
examples commands: export ENCODER = out/examples/encoder
examples: install ## run every script and notebook of examples/ on its small data, into out/examples; ENCODER=... takes a real one
	test -d $(ENCODER) || $(BIN)/python examples/make_encoder.py $(ENCODER)
	set -e; for name in $(EXAMPLES); do echo "examples/$$name.sh"; sh examples/$$name.sh >out/examples/$$name.log 2>&1 \
		|| { tail -20 out/examples/$$name.log; exit 1; }; done
	$(BIN)/python examples/make_notebooks.py out/examples

# What needs Docker, a clone, or a target of its own is not run here and is listed at the end.
commands: install ## run every command and Python block of README and docs on small data, into out/commands
	test -d $(ENCODER) || $(BIN)/python examples/make_encoder.py $(ENCODER)
	$(BIN)/python examples/run_pages.py $(ENCODER) out/commands

# `build` makes the sdist, and the wheel from that. pip finds both under the name that the README has.
wheel: install ## build sdist and wheel, look into them, and use each in an empty environment as the README installs it
	rm -f dist/*.whl dist/*.tar.gz
	$(BIN)/python -m build --no-isolation --outdir dist . >/dev/null
	$(BIN)/check-wheel-contents dist/*.whl
	set -e; for form in only-binary no-binary; do \
		$(PYTHON) -m venv --clear $(WHEEL)/$$form; \
		$(WHEEL)/$$form/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
			--find-links dist --$$form potstill "potstill[cli]"; \
		(cd dist && $(abspath $(WHEEL))/$$form/bin/potstill --help >/dev/null \
			&& $(abspath $(WHEEL))/$$form/bin/potstill recipes); \
	done

edge: install ## serve a bundle from an environment that has only the serve extra
	$(BIN)/python tests/tiny.py dist/edge-bundle
	$(PYTHON) -m venv --clear .venv/edge
	.venv/edge/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt '.[serve]'
	cd dist && ../.venv/edge/bin/python ../tests/edge_smoke.py edge-bundle fp32
	cd dist && ../.venv/edge/bin/python ../tests/edge_smoke.py edge-bundle int8
	.venv/edge/bin/python benchmarks/serve/cold_start.py dist/edge-bundle

interop: export HF_HUB_OFFLINE = 1
interop: install $(addprefix $(INTEROP)/,optimum/.installed openvino/.installed js/.installed) ## load bundles, unchanged, in other tools; needs Node
	rm -rf dist/interop
	$(BIN)/python tests/interop/make_bundles.py dist/interop
	$(INTEROP)/optimum/bin/python tests/interop/with_optimum.py dist/interop
	$(INTEROP)/optimum/bin/python tests/interop/with_sentence_transformers.py dist/interop
	$(INTEROP)/openvino/bin/python tests/interop/with_openvino.py dist/interop
	cp tests/interop/with_transformers_js.mjs $(INTEROP)/js
	node $(INTEROP)/js/with_transformers_js.mjs dist/interop
	$(BIN)/python tests/interop/docs_blocks.py dist/interop
	mv dist/interop/docs-transformers.js.mjs $(INTEROP)/js/docs.mjs
	cd dist/interop && ../../$(INTEROP)/optimum/bin/python docs-optimum-onnx.py
	cd dist/interop && ../../$(INTEROP)/optimum/bin/python docs-sentence-transformers.py
	cd dist/interop && ../../$(INTEROP)/optimum/bin/python docs-onnxruntime.py
	cd dist/interop && ../../$(INTEROP)/openvino/bin/python docs-OpenVINO.py
	cd dist/interop && node ../../$(INTEROP)/js/docs.mjs
	$(BIN)/python tests/interop/question_answering.py make dist/interop-qa
	$(INTEROP)/optimum/bin/python tests/interop/question_answering.py answer dist/interop-qa
	$(BIN)/python tests/interop/question_answering.py compare dist/interop-qa
	$(BIN)/python tests/interop/trimmed.py make dist/interop-trimmed
	$(BIN)/python tests/interop/trimmed.py read dist/interop-trimmed
	$(INTEROP)/optimum/bin/python tests/interop/trimmed.py read dist/interop-trimmed
	cp tests/interop/with_trimmed.mjs $(INTEROP)/js
	node $(INTEROP)/js/with_trimmed.mjs dist/interop-trimmed

clients: install $(INTEROP)/clients/.installed ## ask a server of all five tasks with huggingface_hub, openai, tritonclient
	rm -rf dist/interop
	HF_HUB_OFFLINE=1 $(BIN)/python tests/interop/make_bundles.py dist/interop
	$(INTEROP)/clients/bin/python tests/interop/with_clients.py dist/interop $(BIN)/potstill

# Nothing is downloaded for GPUs: the library for CPUs is in onnxruntime's package.
$(INTEROP)/js/.installed: tests/interop/package.json | $(STAMP)
	mkdir -p $(@D) && cp $< $(@D)
	cd $(@D) && ONNXRUNTIME_NODE_INSTALL=skip npm install --ignore-scripts --no-audit --no-fund --no-package-lock --loglevel error
	touch $@

$(INTEROP)/%/.installed: tests/interop/requirements-%.txt | $(STAMP)
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	touch $@

page: install $(PAGE)/.installed ## open made reports and the server's pages in a browser: messages, requests, overflow, accessibility; needs Node
	rm -rf dist/page
	PYTHONPATH=. $(BIN)/python tests/page/make_reports.py dist/page
	cp tests/page/*.mjs $(PAGE)
	node $(PAGE)/check.mjs dist/page/shots dist/page/*/report.html
	OMP_NUM_THREADS=1 PYTHONPATH=. $(BIN)/python tests/page/with_server.py node $(PAGE)/check_server.mjs dist/page/shots-server

# Chromium is inside a package; nothing runs at installation.
$(PAGE)/.installed: tests/page/package.json | $(STAMP)
	mkdir -p $(@D) && cp $< $(@D)
	cd $(@D) && npm install --ignore-scripts --no-audit --no-fund --no-package-lock --loglevel error
	touch $@

sbom: edge $(SUPPLY)/.installed ## dist/sbom.cdx.json: the server's packages and a bundle's files with their hashes (BUNDLE=...)
	$(SUPPLY)/bin/python deploy/sbom.py .venv/edge/bin/python $(or $(BUNDLE),dist/edge-bundle) --out dist/sbom.cdx.json

audit: edge $(SUPPLY)/.installed ## known weaknesses of the server's packages; fails without the advisories
	.venv/edge/bin/python -m pip freeze --exclude potstill > dist/serve-packages.txt
	$(SUPPLY)/bin/pip-audit --strict --no-deps --disable-pip --progress-spinner off -r dist/serve-packages.txt

$(SUPPLY)/.installed: deploy/requirements-supply.txt
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	touch $@

ray: install ## hold Ray Serve against the plain server, in an environment of its own
	$(BIN)/python tests/tiny.py dist/edge-bundle
	$(PYTHON) -m venv --clear .venv/ray
	.venv/ray/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt '.[serve]'
	.venv/ray/bin/python -m pip install --quiet --disable-pip-version-check -r tests/interop/requirements-ray.txt
	cd dist && ../.venv/ray/bin/python ../tests/interop/with_ray.py edge-bundle

faults: install ## the whole fault matrix against real server processes
	$(BIN)/python -m tests.faults --result benchmarks/results/serve-faults.json

fuzz: install ## 200,000 inputs of the grammar of HTTP, and as many bad bodies, to a real server process
	$(BIN)/python -m tests.faults.fuzz --result benchmarks/results/serve-fuzz.json

serving: SERVERS = --bundle $(BUNDLE) --texts $(TEXTS) --rivals-python $(RIVALS)/rivals/bin/python \
	--infinity-python $(RIVALS)/infinity/bin/python
serving: install $(RIVALS)/rivals/.installed $(RIVALS)/infinity/.installed ## the server beside others and under load: BUNDLE=folder TEXTS=file.jsonl
	$(BIN)/python -m benchmarks.serve.speed $(SERVERS) --result benchmarks/results/serve-speed.json
	$(BIN)/python -m benchmarks.serve.fairness --bundle $(BUNDLE) --texts $(TEXTS) --result benchmarks/results/serve-fairness.json
	$(BIN)/python -m benchmarks.serve.turns $(SERVERS) --result benchmarks/results/serve-turns.json
	$(BIN)/python -m benchmarks.serve.memory --bundle $(BUNDLE) --result benchmarks/results/serve-memory.json

$(RIVALS)/%/.installed: benchmarks/serve/requirements-%.txt | $(STAMP)
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	touch $@

grid: install $(INTEROP)/optimum/.installed $(GRID)/openvino/.installed $(GRID)/newest/.installed ## other tools' files and answers beside ours, before a race: CHECKPOINT=folder DATA=folder
	$(BIN)/python benchmarks/export/grid.py prepare --checkpoint $(CHECKPOINT) --data $(DATA)
	$(BIN)/python benchmarks/export/grid.py bundles --data $(DATA)
	$(BIN)/python benchmarks/export/grid.py accuracy --out benchmarks/results/export-accuracy.json
	@echo 'on an idle machine: $(BIN)/python benchmarks/export/grid.py measure --out benchmarks/results/export-grid.json'

$(GRID)/%/.installed: benchmarks/export/requirements-%.txt | $(STAMP)
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	touch $@

# Two at a time, for mypy has one thread and an installation waits for the network; `edge` alone, for it times a start.
ci: install ## what CI runs
	$(MAKE) -j2 --output-sync check wheel page
	$(MAKE) edge
	$(MAKE) docs
	$(MAKE) test

clean: ## remove the environment, the demo's output, builds and caches
	rm -rf .venv out/quickstart dist build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
