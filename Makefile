# Checks in the order in which they are cheap.
.PHONY: check
check:
	ruff check .
	ruff format --check .
	mypy
	pytest
