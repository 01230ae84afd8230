# SPDX-License-Identifier: BSD-3-Clause
"""The version of the package. Its one copy: pyproject.toml reads it here."""

__version__ = "0.1.0"
