# make demo   segment the bundled CT with the base install (no torch)
# make test   all extras, the whole suite
# make test-pacs   the node, and the closed loop on a real Orthanc (Debian, root: .ci/install-pacs brings it)
PYTHON ?= python3
DEMO := out/demo
SCAN := tests/data/demo/coronacases_002
PIP_FLAGS := --disable-pip-version-check --quiet

.PHONY: demo test test-pacs lint clean

demo: .venv-demo/.installed
	@.venv-demo/bin/python -c "import importlib.util as u; assert u.find_spec('torch') is None, 'the base install must not bring torch'"
	@mkdir -p $(DEMO)
	.venv-demo/bin/covidseg segment $(SCAN)_ct.nii.gz -o $(DEMO)/labels.nii.gz --report $(DEMO)/report.json \
		--preview $(DEMO)/overlay.png --truth $(SCAN)_infection.nii.gz

test: .venv/.installed
	.venv/bin/python -m pytest

test-pacs: .venv/.installed
	.ci/install-pacs
	.venv/bin/python -m pytest tests/runtime/pacs tests/runtime/dicom tests/pacs_loop

lint: .venv/.installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

.venv-demo/.installed: pyproject.toml constraints.txt $(shell find covidseg runtime -name '*.py' -o -path '*/models/*' -type f)
	$(PYTHON) -m venv .venv-demo
	.venv-demo/bin/pip install $(PIP_FLAGS) --constraint constraints.txt --force-reinstall --no-deps .
	.venv-demo/bin/pip install $(PIP_FLAGS) --constraint constraints.txt .
	@touch $@

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	.venv/bin/pip install $(PIP_FLAGS) --constraint constraints.txt --editable '.[dev]'
	@touch $@

clean:
	rm -rf .venv .venv-demo out build dist *.egg-info
